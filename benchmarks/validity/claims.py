"""Runs the analyses that claims need on one model in memory, and lets the claims judge."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from pycotmech.cot.task.examples import Examples
from pycotmech.cot.task.steps import Graded
from pycotmech.cot.tools.registry import Given
from pycotmech.model import Model
from pycotmech.paper import CLAIMS, Claim
from pycotmech.paper.entries import chosen

BORNE_OUT, NOT_BORNE_OUT, NOT_DECIDED = "borne out", "not borne out", "not decided"


def named(names: Sequence[str] | None) -> tuple[Claim, ...]:
    """The claims of these names; None: all. Raises ValueError for a name that is none."""
    known = {claim.name: claim for claim in CLAIMS}
    wrong = [name for name in names or () if name not in known]
    if wrong:
        raise ValueError(f"claims: got {', '.join(wrong)}; expected some of {', '.join(known)}")
    return tuple(CLAIMS) if names is None else tuple(known[name] for name in dict.fromkeys(names))


def judged(
    model: Model,
    examples: Examples,
    right: Graded,
    claims: Sequence[Claim],
    *,
    steps: Sequence[int] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """What each claim says of a model: {"verdicts": by claim, "failures": by analysis, "seconds": by analysis}.

    An analysis that fails is named in `failures` and in the verdicts of the claims that it leaves without data.
    """
    done, failures, seconds = results(model, examples, right, claims, steps=steps, seed=seed)
    return {
        "verdicts": {claim.name: verdict(claim, done, failures) for claim in claims},
        "failures": failures,
        "seconds": seconds,
    }


def results(
    model: Model,
    examples: Examples,
    right: Graded,
    claims: Sequence[Claim],
    *,
    steps: Sequence[int] | None = None,
    seed: int = 0,
) -> tuple[dict[str, Any], dict[str, str], dict[str, float]]:
    """The analyses that the claims need, as `pycotmech paper` runs them, by name: results, failures in words, seconds."""
    done: dict[str, Any] = {}
    failures: dict[str, str] = {}
    seconds: dict[str, float] = {}
    given = Given(model, examples, right, tuple(range(examples.n_steps) if steps is None else steps), seed, None, done)
    for entry in chosen(tuple(dict.fromkeys(name for claim in claims for name in claim.needs))):
        missing = [name for name in entry.needs if name not in done]
        if missing:
            failures[entry.name] = f"needs {', '.join(missing)}"
            continue
        start = time.perf_counter()
        try:
            done[entry.name] = entry.run(given)
        except Exception as error:  # whatever it is, it is named, and the other claims are judged
            failures[entry.name] = f"{type(error).__name__}: {error}"
        seconds[entry.name] = round(time.perf_counter() - start, 3)
    return done, failures, seconds


def verdict(claim: Claim, results: Mapping[str, Any], failures: Mapping[str, str]) -> dict[str, Any]:
    """A verdict as it is kept: word, evidence, null, and why there is no data, if there is none."""
    failed = [f"{name} failed ({failures[name]})" for name in claim.needs if name in failures]
    if failed:
        return {"word": NOT_DECIDED, "evidence": "", "null": "", "no_data": "; ".join(failed)}
    found = claim.verdict(results)
    row = {"word": found.word, "evidence": found.evidence, "null": found.null}
    if found.word == NOT_DECIDED and not found.data:
        row["no_data"] = f"{', '.join(claim.needs)}: {found.evidence}"
    return row
