"""Models in which a claim was planted by hand: there it has to be borne out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pycotmech as pcm
from benchmarks.validity import claims as claiming
from tests.cot.analyses.relation_cases import said
from tests.reference import planted
from tests.reference.planted import Planted


@dataclass(frozen=True)
class Positive:
    """A claim and the planted model that bears it out. run: the results of the analyses that the claim needs by name, and why
    others failed."""

    claim: str
    model: str
    run: Callable[[], tuple[Mapping[str, Any], Mapping[str, str]]]

    @property
    def name(self) -> str:
        return f"{self.claim}: {self.model}"

    def judged(self) -> dict[str, Any]:
        """As `claims.judged`."""
        (claim,) = claiming.named([self.claim])
        return {"verdicts": {self.claim: claiming.verdict(claim, *self.run())}}


def _on(made: Planted, claim: str, n: int, **options: Any) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """The analyses that a claim needs, on n prompts of a planted model, as `pycotmech paper` runs them."""
    examples = planted.examples(made, n, **options)
    return claiming.results(made.model, examples, pcm.cot.grade(made.model, examples), claiming.named([claim]))[:2]


def _movers() -> tuple[Mapping[str, Any], Mapping[str, str]]:
    made = planted.relation()
    return {"relation_heads": pcm.cot.relation_heads(made.model, questions=said(32))}, {}


def _shared_heads() -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """What heads are replaced by is the mean over prompts of the planted kind; the task has none of its own."""
    made = planted.induction()
    examples, others = planted.examples(made, 32), planted.examples(made, 8, seed=9)
    scores = pcm.cot.patch_steps(made.model, examples)
    curve = pcm.cot.knock_out_curve(made.model, examples, pcm.cot.select_heads(scores, k=[2]), n_random=8, mean=others)
    return {"knock_out_curve": curve}, {}


POSITIVES: tuple[Positive, ...] = (
    Positive("shared_heads", "induction", _shared_heads),
    Positive("movers", "relation", _movers),
    Positive("pathways", "parallel", lambda: _on(planted.parallel(), "pathways", 16)),
    Positive("sources", "parallel", lambda: _on(planted.parallel(), "sources", 16)),
    Positive("writers", "parallel", lambda: _on(planted.parallel(question=(2, 1), generated=(3, 2)), "writers", 48)),
    Positive("rift", "bigram", lambda: _on(planted.bigram(table=None, writer=(2, 3)), "rift", 16)),
    Positive("abidance", "abiding", lambda: _on(planted.abiding(), "abidance", 16)),
)
