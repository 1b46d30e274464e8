"""What results of ablated sets of heads share: the answers to every set, and what is called accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pycotmech._choices import check_choice
from pycotmech.cot.tools.ablation import AblatedAnswers
from pycotmech.cot.tools.cells import Cells
from pycotmech.cot.tools.result import Analysis, labelled
from pycotmech.model.arguments import check_integer
from pycotmech.stats import bootstrap
from pycotmech.stats.random_sets import beyond_draws

VARIABLES = ("right", "agrees", "log_prob")
DEFINITIONS = ("exact", "paper")


class AblationResult(Analysis):
    """A result with `VARIABLES` over sets of heads, example and step, as in `Answers`."""

    label, share, by_size = "accuracy", True, False

    @property
    def main(self) -> str:
        """What is called accuracy: "right" (gold) or, by the paper's definition, "agrees" (with the model itself)."""
        return self.about["settings"]["accuracy"]

    @property
    def accuracy_words(self) -> str:
        """What accuracy is, in words."""
        return "agreement with the untouched model" if self.main == "agrees" else "every token of the gold word"

    @property
    def definition_words(self) -> str:
        stored = self.about["definition"]
        return f"heads are ablated, and accuracy is {self.accuracy_words}" if stored in DEFINITIONS else stored

    def accuracy(self, variable: str | None = None) -> xr.Dataset:
        """Mean over examples with its bootstrap interval: mean, low, high, n [..., step]. variable: of `VARIABLES`."""
        return self.interval(variable or self.main)

    def shown(self) -> xr.Dataset:
        return self.accuracy()

    def overall(self, variable: str | None = None) -> xr.Dataset:
        """The same over all steps: each example's mean over its steps, then over examples."""
        return type(self)(self.data[[variable or self.main]].mean("step"), self.about).interval(variable or self.main)


def compared(own: xr.DataArray, drawn: xr.DataArray) -> dict[str, xr.Dataset]:
    """Accuracies of sets beside those of random ones, with intervals over examples and draws (`beyond_draws`).

    own [..., example, ...], drawn [..., draw, example, ...], with the same further axes. Returns "random", what random sets
    reach, and "gain", by how much a set is above them: each mean, low, high, n on the further axes.
    """
    out = {}
    for name, values, within in (("random", drawn, bootstrap.SHARE), ("gain", own - drawn, bootstrap.SHARES_APART)):
        values = values.transpose("example", "draw", ...)
        out[name] = labelled(beyond_draws(values.values, within=within), values.isel(draw=0, drop=True))
    return out


def random_words(n: int) -> str:
    """The random sets that a set is compared with, as the subject of a sentence."""
    return f"{'one random set' if n == 1 else f'{n} random sets'} with as many heads in each layer"


def words(found: xr.Dataset, form: str = "{:.2f}") -> str:
    """A mean of accuracies with its interval."""
    return bootstrap.number(found["mean"], form) + bootstrap.ends(found["low"], found["high"], form)


def check_definition(definition: str, n_random: int) -> str:
    """What is called accuracy by a definition. Raises ValueError naming the argument."""
    check_choice("definition", definition, DEFINITIONS)
    check_integer(n_random, "n_random", 0)
    return "agrees" if definition == "paper" else "right"


def answered(
    answer: AblatedAnswers,
    ablated: NDArray,
    cells: Cells,
    tick: Callable[[], None],
    rows: Sequence[int] | NDArray[np.int64] | None = None,
) -> dict[str, NDArray]:
    """Answers [set, example, step] with sets of heads ablated, bool [set, step, L, H] or, one for all steps, [set, 1, L, H].

    Steps that share a set share its run. tick: called after each set. rows: of which examples; the others are NaN.
    """
    out = {v: np.full((len(ablated), *cells.shape), np.nan) for v in VARIABLES}
    for i, masks in enumerate(ablated):
        steps_of: dict[bytes, list[int]] = {}
        for s, mask in enumerate(masks):
            steps_of.setdefault(mask.tobytes(), []).append(s)
        for steps in steps_of.values():
            mask, steps = masks[steps[0]], steps if len(masks) > 1 else list(range(len(cells.steps)))
            found = answer(mask, steps, rows)
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
