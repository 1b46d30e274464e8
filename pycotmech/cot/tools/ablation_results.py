"""What results of ablated sets of heads share: the answers to every set, and what is called accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pycotmech.cot.tools.ablation import AblatedAnswers
from pycotmech.cot.tools.cells import Cells
from pycotmech.cot.tools.checks import one_of
from pycotmech.cot.tools.result import Analysis
from pycotmech.model.arguments import check_integer
from pycotmech.stats import bootstrap

VARIABLES = ("right", "agrees", "log_prob")
DEFINITIONS = ("exact", "paper")


class AblationResult(Analysis):
    """A result with `VARIABLES` over sets of heads, example and step, as in `Answers`."""

    @property
    def main(self) -> str:
        """What is called accuracy: "right" (gold) or, by the paper's definition, "agrees" (with the model itself)."""
        return self.about["settings"]["accuracy"]

    @property
    def accuracy_words(self) -> str:
        """What accuracy is, in words."""
        return "agreement with the untouched model" if self.main == "agrees" else "every token of the gold word"

    def accuracy(self, variable: str | None = None) -> xr.Dataset:
        """Mean over examples with its bootstrap interval: mean, low, high, n [..., step]. variable: of `VARIABLES`."""
        return self.interval(variable or self.main)

    def overall(self, variable: str | None = None) -> xr.Dataset:
        """The same over all steps: each example's mean over its steps, then over examples."""
        return type(self)(self.data[[variable or self.main]].mean("step"), self.about).interval(variable or self.main)


def words(found: xr.Dataset) -> str:
    """A mean of accuracies with its interval."""
    return f"{float(found['mean']):.2f}{bootstrap.ends(found['low'], found['high'], '{:.2f}')}"


def check_definition(definition: str, n_random: int) -> str:
    """What is called accuracy by a definition. Raises ValueError naming the argument."""
    one_of("definition", definition, DEFINITIONS)
    check_integer(n_random, "n_random", 0)
    return "agrees" if definition == "paper" else "right"


def answered(answer: AblatedAnswers, ablated: NDArray, cells: Cells, tick: Callable[[], None]) -> dict[str, NDArray]:
    """Answers [set, example, step] with sets of heads ablated, bool [set, step, L, H] or, one for all steps, [set, 1, L, H].

    Steps that share a set share its run. tick: called after each set.
    """
    out = {v: np.full((len(ablated), *cells.shape), np.nan) for v in VARIABLES}
    for i, masks in enumerate(ablated):
        steps_of: dict[bytes, list[int]] = {}
        for s, mask in enumerate(masks):
            steps_of.setdefault(mask.tobytes(), []).append(s)
        for steps in steps_of.values():
            mask, steps = masks[steps[0]], steps if len(masks) > 1 else list(range(len(cells.steps)))
            found = answer(mask, steps)
            for v in VARIABLES:
                out[v][i][:, steps] = getattr(found, v)[:, steps]
        tick()
    return out


def result_data(
    cells: Cells, found: dict[str, NDArray], axes: Mapping[str, Sequence | None], data: dict[str, Any], shape: tuple[int, int]
) -> xr.Dataset:
    """Answers [*axes, example, step] and further variables. axes: their coordinates, None without. shape: (L, H)."""
    answers = {v: ((*axes, "example", "step"), found[v]) for v in VARIABLES}
    named = {k: v for k, v in axes.items() if v is not None}
    coords = {**cells.coords, **named, "layer": np.arange(shape[0]), "head": np.arange(shape[1])}
    return xr.Dataset(answers | data, coords=coords)
