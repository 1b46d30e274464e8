"""Heat maps of a run: one of each step, and all steps on one scale."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

import xarray as xr

from pycotmech._words import plural
from pycotmech.figures.words import step_title

if TYPE_CHECKING:
    from pycotmech.figures.library import Figure


def step_figure(steps: xr.Dataset, step: int, *, sample: str = "", path: str | PathLike | None = None) -> Figure:
    """One step of a run: the restoration of every head. sample: the step's words in an example."""
    from pycotmech.figures.heatmap import effect_figure

    at = steps.sel(step=step)
    about, identity = steps.attrs["about"], steps.attrs["identity"]
    counted = f"{plural(int(at['n']), 'example')}, noise floor {float(at['noise_floor']):.1g}"
    if bool(at["control"].notnull()):
        counted += f", control {float(at['control']):.2g}"
    return effect_figure(
        at["restoration"].transpose("layer", "head").values,
        title=step_title(step, str(at["kind"].values), sample),
        lines=[f"{about['model']['name']}, {counted}", *about["model"]["notes"]],
        metric=identity["metric"],
        direction=identity["direction"],
        normalised=True,
        path=path,
    )


def overview_figure(steps: xr.Dataset, *, path: str | PathLike | None = None) -> Figure:
    """All steps of a run side by side, on one scale."""
    from pycotmech.figures.heatmap import maps_figure
    from pycotmech.figures.words import effect_label

    about, identity = steps.attrs["about"], steps.attrs["identity"]
    shown = [steps.isel(step=i) for i in range(steps.sizes["step"]) if int(steps["n"][i]) > 0]
    return maps_figure(
        [at["restoration"].transpose("layer", "head").values for at in shown],
        [f"{int(at['step'])} {at['kind'].values}\nn = {int(at['n'])}" for at in shown],
        title=f"{about['model']['name']}: what each head restores by itself, step by step",
        lines=list(about["model"]["notes"]),
        label=effect_label(identity["metric"], identity["direction"], True),
        path=path,
    )
