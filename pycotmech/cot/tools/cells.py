"""Chooses the steps of examples that an analysis is made on: those the model gets right (docs/protocol.md, Task)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import BoolTensor, Tensor

from pycotmech._words import plural
from pycotmech.cot.task.examples import Example, Examples, Step
from pycotmech.cot.task.steps import Graded, graded
from pycotmech.model.arguments import check_common

if TYPE_CHECKING:
    from pycotmech.model import Model


class Cell(NamedTuple):
    """One step of one example: its numbers along the axes of results, and what they are."""

    e: int
    s: int
    example: Example
    step: Step


@dataclass(frozen=True, eq=False)
class Cells:
    """The grid of examples by chosen steps, and which of them count.

    right: bool [n, len(steps)], in the order of `steps`.
    """

    examples: Examples
    steps: tuple[int, ...]
    right: BoolTensor

    def __iter__(self) -> Iterator[Cell]:
        """The cells that count, example by example."""
        for e, s in self.right.nonzero().tolist():
            example = self.examples[e]
            yield Cell(e, s, example, example.steps[self.steps[s]])

    def __len__(self) -> int:
        return int(self.right.sum())

    def by_example(self) -> dict[int, list[Cell]]:
        """The cells that count, by the number of their example; without the examples that have none."""
        groups: dict[int, list[Cell]] = {}
        for cell in self:
            groups.setdefault(cell.e, []).append(cell)
        return groups

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.right.shape)  # type: ignore[return-value]

    @property
    def kinds(self) -> list[str]:
        return [self.examples.kinds[i] for i in self.steps]

    @property
    def coords(self) -> dict[str, Any]:
        """Coordinates of the axes example and step, for results."""
        return {
            "example": [example.index for example in self.examples],
            "step": list(self.steps),
            "kind": ("step", self.kinds),
        }

    def empty(self, *shape: int) -> NDArray[np.float64]:
        """An array [n, steps, *shape] of NaN."""
        return np.full((*self.shape, *shape), np.nan)

    def dataset(self, data: Mapping[str, Any], axes: Mapping[str, int | Sequence]) -> xr.Dataset:
        """A result's variables with their coordinates.

        data: by name an array [example, step, ...] whose further axes are the first ones of `axes`, or (axes, array).
        axes: what further axes count, or their lengths.
        """
        dims = ("example", "step", *axes)
        variables = {k: v if isinstance(v, tuple) else (dims[: v.ndim], v) for k, v in data.items()}
        coords = {k: np.arange(v) if isinstance(v, int) else list(v) for k, v in axes.items()}
        return xr.Dataset(variables, coords=self.coords | coords)

    def only(self, examples: Sequence[int] | NDArray) -> Cells:
        """The same for some of the examples, by number along the axis."""
        keep = [int(i) for i in examples]
        return Cells(self.examples.only([self.examples[i] for i in keep]), self.steps, self.right[keep])  # type: ignore[arg-type]


def choose(
    model: Model,
    examples: Examples,
    *,
    steps: Sequence[int] | None = None,
    right: Graded | Tensor | None = None,
) -> Cells:
    """The cells to work on.

    steps: which, in 0 .. n_steps - 1, each once; None: all.
    right: what counts: what `graded` gave, or bool [n, n_steps]; None: graded here, one forward pass per example.
    Raises TypeError or ValueError naming the argument; ValueError if no step of any example counts.
    """
    if not isinstance(examples, Examples) or len(examples) == 0:
        got = "no example" if isinstance(examples, Examples) else type(examples).__name__
        raise TypeError(f"examples: got {got}; expected what pcm.cot.make_examples gives, at least one")
    chosen = tuple(range(examples.n_steps)) if steps is None else tuple(steps)
    if not all(isinstance(i, Integral) for i in chosen):
        raise TypeError(f"steps: got {list(chosen)}; expected numbers in 0..{examples.n_steps - 1}, or None for all")
    chosen = tuple(int(i) for i in chosen)
    if not chosen or len(set(chosen)) < len(chosen) or not all(0 <= i < examples.n_steps for i in chosen):
        raise ValueError(f"steps: got {list(chosen)}; expected numbers in 0..{examples.n_steps - 1}, each once")
    table = grade(model, examples) if right is None else right
    table = table.right if isinstance(table, Graded) else table
    shape = (len(examples), examples.n_steps)
    if not isinstance(table, Tensor) or table.dtype != torch.bool or tuple(table.shape) != shape:
        got = f"{table.dtype} {list(table.shape)}" if isinstance(table, Tensor) else type(table).__name__
        raise ValueError(f"right: got {got}; expected Graded or a bool tensor {list(shape)}")
    cells = Cells(examples, chosen, table[:, list(chosen)])  # type: ignore[arg-type]
    if len(cells) == 0:
        raise ValueError(
            f"examples: the model gets none of steps {list(chosen)} right in {plural(len(examples), 'example')}, so there is "
            "nothing to explain; expected more shots, another style, or right= to use wrong steps too"
        )
    return cells


def grade(model: Model, examples: Sequence[Example]) -> Graded:
    """Which steps the model gets right, with the gold text before them. Cost: one forward pass per example."""
    check_common(model)
    return graded(examples, lambda ids: model.run(ids).logits.argmax(-1).cpu())  # type: ignore[arg-type]
