"""What a question of the suite is: ways to answer it, the first of them ours, and a check of what they find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

import pycotmech as pcm
from pycotmech.cost import Demand


@dataclass(frozen=True)
class Way:
    """One way to answer a question. What it needs beforehand is made at its first call, so that a process that asks for one way
    makes nothing for the others.

    run: a sample of it, whose result it returns.
    times: how many samples make the whole.
    once: what the whole needs one time beside the samples (None: nothing).
    least: a part of the sample with the same peak of memory (None: all of it).
    """

    name: str
    run: Callable[[], Any]
    times: float = 1.0
    once: Callable[[], object] | None = None
    least: Callable[[], object] | None = None


@dataclass(frozen=True)
class Asked:
    """A question, ready to be asked.

    check: takes what a run of ours returned and says how well it agrees; raises AssertionError if ours or a rival is wrong.
    demand: what ours needs, for its share of the machine; None: its products are recorded and run bare (`machine.recorded`).
    """

    ours: Way
    rivals: list[Way]
    check: Callable[[Any], str]
    cfg: Any
    demand: Demand | None = None
    note: str = ""


@dataclass(frozen=True)
class Question:
    """name: of the question; group: by which results are compared; rounds: how often every way is timed."""

    name: str
    group: str
    size: str
    make: Callable[[str], Asked]
    dtypes: tuple[str, ...] = ("float32",)
    rounds: int = 3


@cache
def load(name: str, dtype: str) -> pcm.Model:
    return pcm.Model.from_pretrained(name, dtype=dtype, check=False)


def close(ours, theirs, limit: float, what: str) -> str:
    """Says how far apart values are, of the largest of them; AssertionError if that is more than the limit, or if there is
    nothing to compare."""
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    size, error = np.abs(theirs).max(), np.abs(ours - theirs).max()
    assert size > 0 and error <= limit * size, (
        f"{what}: {error:.3g} apart where {size:.3g} is the largest; at most {limit * size:.3g}"
    )
    return f"{what} within {error / size:.1e} of the largest"
