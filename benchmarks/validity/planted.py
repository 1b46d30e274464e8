"""Models in which a claim was planted by hand, so that it has to be borne out, or its null, so that it must not be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pycotmech as pcm
from benchmarks.validity import claims as claiming
from benchmarks.validity.models import every_step
from pycotmech.cot.task.relations import Question
from tests.cot.analyses.relation_cases import apart_by_distance, chained, rooted, said
from tests.reference import planted
from tests.reference.planted import Planted


@dataclass(frozen=True)
class Planting:
    """A claim and a planted model.

    run: returns the results of the analyses that the claim needs, by name, and why others failed.
    true: whether the claim was planted and has to be borne out; otherwise its null was, and it must not be.
    """

    claim: str
    model: str
    run: Callable[[], tuple[Mapping[str, Any], Mapping[str, str]]]
    true: bool = True

    @property
    def name(self) -> str:
        return f"{self.claim}: {self.model}"

    def judged(self) -> dict[str, Any]:
        """As `claims.judged`, with `true`."""
        (claim,) = claiming.named([self.claim])
        return {"verdicts": {self.claim: claiming.verdict(claim, *self.run())}, "true": self.true}


def _on(
    made: Planted, claim: str, n: int, *, graded: bool = True, **options: Any
) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """The analyses that a claim needs, on n prompts of a planted model, as `pycotmech paper` runs them.

    graded: whether the steps that the model gets right count; otherwise every step.
    """
    examples = planted.examples(made, n, **options)
    right = pcm.cot.grade(made.model, examples) if graded else every_step(examples)
    return claiming.results(made.model, examples, right, claiming.named([claim]))[:2]


def _several() -> Planted:
    """Six heads along "is" in the first half: one or a few may lie there by chance."""
    relate, *also = [(layer, head) for layer in (1, 2, 3) for head in (1, 3)]
    return planted.relation(relate=relate, also=tuple(also), writer=(7, 0), n_layers=8)


def _movers(make: Callable[[], Planted]) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    return {"relation_heads": pcm.cot.relation_heads(make().model, questions=said(32))}, {}


def _mixing(model: pcm.Model, questions: list[Question]) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    return {"pair_probes": pcm.cot.pair_probes(model, questions=questions)}, {}


def _two_steps(apart: bool) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """Two kinds of steps that use the same heads, or each its own (apart). Other heads are replaced by zero: means are of the
    task's own prompts, which are not of the planted kind."""
    made, examples = planted.two_circuits(apart=apart), planted.two_step_examples(36)
    given = dict(right=pcm.cot.grade(made.model, examples), kind="zero")
    scores = pcm.cot.patch_steps(made.model, examples, right=given["right"])
    curve = pcm.cot.knock_out_curve(made.model, examples, scores, sizes=range(8, 17), **given)
    points = curve.operating_points().set_index("step")
    transfer = pcm.cot.set_transfer(made.model, examples, scores, k=int(points.loc["all"]["kept"]), **given)
    return {"knock_out_curve": curve, "set_transfer": transfer}, {}


def _parallel(claim: str, n: int, model: str = "parallel", *, true: bool = True, **options: Any) -> Planting:
    """Writers that pass another concept of the prompt by, unless the options say otherwise."""
    options = {"other": "passed by"} | options
    return Planting(claim, model, lambda: _on(planted.parallel(**options), claim, n, others=True, graded=true), true=true)


PLANTINGS: tuple[Planting, ...] = (
    Planting("shared_heads", "two_circuits", lambda: _two_steps(apart=False)),
    Planting("shared_heads", "two_circuits apart", lambda: _two_steps(apart=True), true=False),
    Planting("movers", "relation", lambda: _movers(_several)),
    Planting("mixing", "root", lambda: _mixing(rooted(), chained(100))),
    Planting("mixing", "distance", lambda: _mixing(planted.nothing().model, apart_by_distance(48)), true=False),
    Planting("movers", "looking_back", lambda: _movers(planted.looking_back), true=False),
    _parallel("pathways", 16),
    _parallel("pathways", 16, "parallel, one writer", true=False, writers=["question"]),
    _parallel("pathways", 16, "parallel, every concept written", true=False, other="written"),
    _parallel("sources", 16),
    _parallel("sources", 16, "parallel, one writer", true=False, writers=["question"]),
    _parallel("writers", 48, question=(2, 1), generated=(3, 2)),
    _parallel("writers", 48, "parallel, early writers", true=False, question=(0, 1), generated=(1, 2)),
    Planting("rift", "bigram", lambda: _on(planted.bigram(table=None, writer=(2, 3)), "rift", 16)),
    Planting("abidance", "abiding", lambda: _on(planted.abiding(), "abidance", 16)),
    Planting("rift", "nothing", lambda: _on(planted.nothing(), "rift", 16, graded=False), true=False),
    Planting("abidance", "nothing", lambda: _on(planted.nothing(), "abidance", 16, graded=False), true=False),
)
