"""Halves of the examples: sets of heads are chosen on one half and evaluated on the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pycotmech.cot.task.examples import Examples
from pycotmech.cot.tools.select_heads import Selection
from pycotmech.stats import bootstrap


def named_halves(counts: NDArray[np.bool_], definition: str, seed: int) -> NDArray:
    """Returns the half that each example belongs to, [n] strings.

    "select" or "report"; "both" if only one example counts, or with the paper's definition; "" for examples that do not count,
    so that no half consists of these alone.
    """
    out = np.where(counts, "both", "").astype("U6")
    index = np.flatnonzero(counts)
    if definition == "paper" or len(index) < 2:
        return out
    for name, half in zip(("select", "report"), bootstrap.halves(len(index), seed=seed)):
        out[index[half]] = name
    return out


def in_half(half: NDArray, name: str) -> NDArray[np.int64]:
    """Returns the indices of the examples of one half, including those of both."""
    return np.flatnonzero(np.isin(half, (name, "both")))


def chosen_apart(selection: Selection, examples: Examples, half: NDArray) -> tuple[Selection, str]:
    """Repeats the selection without the examples that are reported on, if it is known which these are.

    Returns the selection, and in words the examples that it was made on.
    """
    source = selection.source
    if selection.examples is None or source is None:
        return selection, "averages as given; they may come from the examples that are reported on"
    rows = len(selection.examples)
    scored = [selection.examples[i] for i in source.scored]
    n, numbers = len(scored), [example.index for example in examples]
    if not source.labelled and rows != len(examples):
        return selection, f"scores of {n} examples, not numbered"
    reported = {e for e, h in zip(numbers if source.labelled else range(rows), half) if h == "report"}
    rest = [e for e in selection.examples if e not in reported]
    keep = [e for e in rest if e in scored]
    if len(keep) == n:
        return selection, f"scores of {n} examples" + (", none of them reported on" if reported else "")
    if not rest:
        return selection, f"scores of {n} examples, all of them reported on"
    return selection.of(keep or rest), f"scores of the {len(keep)} of {n} examples that are not reported on"
