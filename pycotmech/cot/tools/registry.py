"""How an analysis describes itself, and what it is given when all of the paper is run on one model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pycotmech.cot.task.examples import Examples
from pycotmech.cot.task.steps import Graded
from pycotmech.cot.tools.cost import Cost, Workload
from pycotmech.cot.tools.result import Analysis, Progress
from pycotmech.cot.tools.select_heads import Selection, select_heads
from pycotmech.model import Model
from pycotmech.model.config import ModelConfig
from pycotmech.stats import bootstrap

COMPARED = ("patch_steps", "decision_heads", "copy_heads")
"""Analyses whose strongest heads are compared and kept (docs/protocol.md, E6)."""


@dataclass(frozen=True)
class Given:
    """What an analysis gets: the model, the examples and which of their steps are right, settings, earlier results.

    done: results by the name of their analysis.
    """

    model: Model
    examples: Examples
    right: Graded | Tensor
    steps: tuple[int, ...]
    seed: int
    memory_gb: float | None
    done: Mapping[str, Any]

    def call(
        self,
        function: Callable[..., Any],
        progress: Progress | None,
        *first: Any,
        steps: Sequence[int] | bool = True,
        **more: Any,
    ) -> Any:
        """Calls an analysis with what all of them take. steps: which; or whether it is made on steps at all."""
        common = {"right": self.right, "seed": self.seed, "memory_gb": self.memory_gb, "progress": progress}
        if steps is not False:
            common["steps"] = self.steps if steps is True else tuple(steps)
        return function(self.model, self.examples, *first, **common, **more)

    def sets(self, names: Sequence[str] = COMPARED, *, choosing: bool = False) -> dict[str, Selection]:
        """The third of all heads that each of these analyses puts first, all steps pooled, by its name.

        choosing: by the scores of the choosing half alone.
        """
        third = max(1, self.model.cfg.n_layers * self.model.cfg.n_heads // 3)
        found = {name: self.selection(name, third) for name in names}
        return {name: s.of(self.choosing) for name, s in found.items()} if choosing else found

    def selection(self, name: str, k: int | None) -> Selection:
        """The k heads that a result puts first, as it ranks them; None: nested sets, about 12 from none to all."""
        result = self.done[name]
        by = "size" if result.by_size else "value"
        return select_heads(result, variable=result.main, k=k, by=by, name=name, seed=self.seed)

    @property
    def halves(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Examples with a step that counts, by place, to choose sets on and to report on: the halves of `knock_out_curve`.

        Both are all of these examples if they are fewer than `bootstrap.HALVED`.
        """
        counts = np.flatnonzero(self._right[:, list(self.steps)].any(1).numpy())
        if len(counts) < bootstrap.HALVED:
            return counts, counts
        choosing, reporting = bootstrap.halves(len(counts), seed=self.seed)
        return counts[choosing], counts[reporting]

    @property
    def choosing(self) -> tuple[int, ...]:
        """The numbers of the examples to choose on."""
        return tuple(self.examples[int(i)].index for i in self.halves[0])

    def reporting(self) -> Given:
        """The same with the examples to report on only."""
        return self.of(self.halves[1])

    def of(self, places: Iterable[int]) -> Given:
        """The same with some of the examples, by place. Earlier results stay those of all."""
        rows = [int(i) for i in places]
        items = [self.examples[i] for i in rows]
        return replace(self, examples=self.examples.only(items), right=self._right[rows])

    @property
    def _right(self) -> Tensor:
        return self.right if isinstance(self.right, Tensor) else self.right.right


@dataclass(frozen=True)
class Description:
    """What an analysis says of itself. Each file of `pycotmech.cot.analyses` has one, called ANALYSIS.

    result: the class of its results, which has its name and its title.
    function: makes a result; the public function of the same name.
    order: its place among the analyses of one experiment.
    cost, authors: of our function and of the authors' loops, predicted for a model and a workload.
    needs: names of the analyses whose results it takes.
    claims: names of the claims of the paper that it helps to decide (`pycotmech.paper.claims`).
    steps: whether it is made on the steps of examples. It is called as `Given.call` does;
    how: if given, makes the result from a `Given` instead.
    on_request: whether `pycotmech paper` makes it only where it is named.
    """

    result: type[Analysis]
    function: Callable[..., Analysis]
    cost: Callable[[ModelConfig, Workload], Cost]
    authors: Callable[[ModelConfig, Workload], Cost]
    needs: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    order: int = 0
    steps: bool = True
    how: Callable[[Given, Progress | None], Analysis] | None = None
    on_request: bool = False

    @property
    def name(self) -> str:
        """Of the analysis, its function, its file and its stored results."""
        return self.result.name

    @property
    def title(self) -> str:
        return self.result.title

    @property
    def source(self) -> str:
        """The experiment in docs/protocol.md, "E1" to "E13"."""
        return re.split(r"\W", self.result.source)[0]

    def run(self, given: Given, progress: Progress | None = None) -> Analysis:
        """Makes the result."""
        return self.how(given, progress) if self.how else given.call(self.function, progress, steps=self.steps)
