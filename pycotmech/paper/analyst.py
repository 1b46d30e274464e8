"""Analyses as units of work: what goes to a worker, and how its replica of the model answers it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pycotmech.cot.tools.registry import Given
from pycotmech.paper.entries import EVERY
from pycotmech.runs.settings import Settings
from pycotmech.runs.work import make_examples
from pycotmech.runs.workers.replica import described, load_replica, memory_of, with_warnings
from pycotmech.runs.workers.units import Answer, ReplicaSpec

if TYPE_CHECKING:
    from pycotmech.cot import Examples, Graded
    from pycotmech.cot.tools.result import Analysis
    from pycotmech.model import Model

OPENER = "pycotmech.paper.analyst:open_analyst"
"""What makes a worker's analyst (`pycotmech.runs.workers.units.REPLICA`)."""


@dataclass(frozen=True, eq=False)
class AnalysisUnit:
    """An analysis of one setting of the task.

    settings: of that setting; a worker makes its examples itself. right: which of their steps the model gets right. done: the
    results that the analysis needs, by name.
    """

    number: int
    name: str
    settings: Settings
    right: Graded
    done: Mapping[str, Analysis]

    @property
    def where(self) -> str:
        return self.name

    @property
    def beginning(self) -> NDArray[np.int64]:
        return np.zeros(0, np.int64)  # of one setting all analyses have the same


class Analyst:
    """Answers analyses. The examples of a setting are made once."""

    def __init__(self, model: Model, spec: ReplicaSpec) -> None:
        self.model = model
        self._memory_gb = memory_of(model, spec)
        self._examples: dict[str, Examples] = {}

    def answer(self, unit: AnalysisUnit) -> Answer:
        """Does an analysis. An error is an answer too."""
        return with_warnings(lambda: self._answer(unit))

    def _answer(self, unit: AnalysisUnit) -> Answer:
        (entry,) = (e for e in EVERY if e.name == unit.name)
        s, start = unit.settings, time.perf_counter()
        try:
            steps = tuple(s.chosen_steps)
            given = Given(self.model, self._made(s), unit.right, steps, s.seed, self._memory_gb, unit.done)
            result: Any = entry.run(given)
        except Exception as error:
            return Answer(unit.number, seconds=time.perf_counter() - start, error=described(error), final=True)
        return Answer(unit.number, seconds=time.perf_counter() - start, result=result)

    def _made(self, settings: Settings) -> Examples:
        key = repr(settings)
        if key not in self._examples:
            self._examples[key] = make_examples(self.model, settings)
        return self._examples[key]


def open_analyst(spec: ReplicaSpec) -> Analyst:
    """Returns an analyst with a model of its own. Raises what `load_replica` raises."""
    return Analyst(load_replica(spec), spec)
