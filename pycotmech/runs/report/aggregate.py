"""Results of single sweeps put together over examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pycotmech.runs.store import SweepState
from pycotmech.stats.bootstrap import HALVED, halves, ratio_interval
from pycotmech.stats.null_effects import null_threshold


def by_step(data: xr.Dataset) -> xr.Dataset:
    """Effects by step, layer and head, over the examples whose sweep is finished.

    data: what `pycotmech.runs.read` gives. Returns, for each step, layer and head:
    restoration: the ratio of means (docs/protocol.md, E1), which is the mean of the examples' effects weighted by the distance
        between their clean and corrupted metric; so an example in which the counterfactual hardly matters hardly counts.
    sd: the standard deviation of the examples' effects around it, with the same weights; NaN for a single example.
    same_sign: the share of examples whose effect has the sign of the restoration.
    head_control: the mean of the head's own random controls, in units of the step's mean distance; NaN where none was measured.
    ranking: the restoration on the half of the examples by which heads are ranked; held_out_restoration, held_out_sd,
        held_out_same_sign: the same as above on the other half. With fewer than four examples all are of all of them.
    And for each step: n (examples used), held_out_n (those that heads are reported on), held_out (whether heads were ranked on
    others), right and graded (examples that are right, examples graded), pending, noise_floor (weighted mean of the examples'
    floors: no smaller than the floor of the mean), control (the size that 5 % at most of the random controls exceed,
    `stats.null_effects.null_threshold`; NaN without any), n_controls, sham (largest effect at the sham position), clean_metric
    and corrupted_metric (means), seconds (sum).
    """
    used = data["state"] == SweepState.FINISHED
    ranked, reported = _halves(used)
    n = used.sum("example")
    mean, sd, same = _over_examples(data, used)
    held = dict(zip(("held_out_restoration", "held_out_sd", "held_out_same_sign"), _over_examples(data, reported), strict=True))
    weight = _weight(data, used)
    share = weight / weight.sum("example").where(n > 0)
    out = xr.Dataset(
        {
            "restoration": mean,
            "sd": sd,
            "same_sign": same,
            "ranking": _over_examples(data, ranked)[0],
            **held,
            "n": n,
            "held_out_n": reported.sum("example"),
            "held_out": ~(ranked & reported).any("example") & (n > 0),
            "right": (data["right"] == 1).sum("example"),
            "graded": (data["right"] >= 0).sum("example"),
            "pending": (data["state"] == SweepState.PENDING).sum("example"),
            "noise_floor": (data["noise_floor"] * share).sum("example", min_count=1),
            "seconds": data["seconds"].where(used).sum("example"),
            **_controls(data, used),
        }
    )
    for name in ("clean_metric", "corrupted_metric"):
        out[name] = data[name].where(used).mean("example")
    return out.assign_coords(kind=data["kind"]).assign_attrs(data.attrs)


def intervals(data: xr.Dataset) -> xr.Dataset:
    """The ends of the bootstrap intervals of `by_step`'s effects [step, layer, head], over examples drawn anew: low and high of
    restoration, held_out_low and held_out_high of held_out_restoration; NaN where fewer than two examples count.

    Cost: 2,000 resamples of the effects, seconds for 1,024 heads at ten steps of 500 examples.
    """
    used = (data["state"] == SweepState.FINISHED).transpose("example", "step")
    out = xr.Dataset(coords={name: data[name] for name in ("step", "layer", "head")})
    effect = data["effect"].transpose("example", "step", "layer", "head").astype("f8")
    for start, counted in (("", used), ("held_out_", _halves(used)[1])):
        weight = _weight(data, counted).where(counted).transpose("example", "step").values[..., None, None]
        found = ratio_interval(effect.values * weight, weight + 0 * effect.values)
        for name, value in (("low", found.low), ("high", found.high)):
            out[start + name] = (("step", "layer", "head"), value)
    return out


def _weight(data: xr.Dataset, used: xr.DataArray) -> xr.DataArray:
    """The distance between an example's clean and corrupted metric; 0 for examples that are not used."""
    return abs(data["clean_metric"] - data["corrupted_metric"]).where(used, 0.0)


def _over_examples(data: xr.Dataset, used: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    """Weighted mean, its spread, and the share of examples with its sign, over the examples used [example, step]."""
    n, weight = used.sum("example"), _weight(data, used)
    share = weight / weight.sum("example").where(n > 0)
    effect = data["effect"].astype("f8").where(used)
    mean = (effect * share).sum("example", skipna=True, min_count=1)
    sd = ((share * (effect - mean) ** 2).sum("example", skipna=True, min_count=1) ** 0.5).where(n > 1)
    same = ((np.sign(effect) == np.sign(mean)) & used).sum("example") / n.where(n > 0)
    return mean, sd, same


def _halves(used: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Of the examples used [example, step] at each step those that heads are ranked on, and those that they are reported on: a
    seeded split, or all of them if there are fewer than four."""
    ranked, reported = used.copy(), used.copy()
    at = used.transpose("example", "step").values
    for step in range(at.shape[1]):
        numbers = np.flatnonzero(at[:, step])
        if len(numbers) >= HALVED:
            for half, chosen in zip((ranked, reported), halves(len(numbers)), strict=True):
                mask = np.zeros(len(at), dtype=bool)
                mask[numbers[chosen]] = True
                half[{"step": step}] = mask
    return ranked, reported


def _controls(data: xr.Dataset, used: xr.DataArray) -> dict[str, Any]:
    """control, n_controls and sham [step], head_control [step, layer, head].

    Controls are changes in units of the step's mean distance, as what a restoration is the mean of. A mean varies less than
    one of them, so the threshold is on the safe side.
    """
    weight = _weight(data, used)
    scale = weight / weight.where(used).mean("example")
    found = (data["control"].astype("f8") * scale).where(used)
    by_step = found.transpose("step", ...)
    threshold = [null_threshold(by_step.values[i]) for i in range(by_step.sizes["step"])]
    return {
        "control": ("step", threshold),
        "n_controls": found.notnull().sum(("example", "layer", "head")),
        "sham": data["sham"].where(used).max("example"),
        "head_control": found.mean("example"),
    }


def top_heads(steps: xr.Dataset, k: int = 5) -> pd.DataFrame:
    """The k heads with the largest |restoration| of each step, strongest first; ties to the lower layer and head.

    steps: what `by_step` gives. One row per step and head; steps without a finished sweep have none. Heads are ranked on one
    half of the examples and reported on the other (column held_out; with fewer than four examples on all of them): the largest
    of many effects is too large on the examples that made it the largest. examples: those that are reported on.
    beyond: larger than noise floor and control (where there is one).
    """
    rows = []
    n_heads = steps.sizes["head"]
    for i, step in enumerate(steps["step"].values):
        here = steps.isel(step=i)
        if int(here["n"]) == 0:
            continue
        grid = here["ranking"].transpose("layer", "head").values.ravel()
        order = np.argsort(-np.abs(np.nan_to_num(grid)), kind="stable")[:k]
        floor, control = float(here["noise_floor"]), float(here["control"])
        for rank, at in enumerate(order, 1):
            cell = here.isel(layer=at // n_heads, head=at % n_heads)
            size = abs(float(cell["held_out_restoration"]))
            rows.append(
                {
                    "step": int(step),
                    "kind": str(here["kind"].values),
                    "rank": rank,
                    "layer": int(cell["layer"]),
                    "head": int(cell["head"]),
                    "restoration": float(cell["held_out_restoration"]),
                    "sd": float(cell["held_out_sd"]),
                    "same_sign": float(cell["held_out_same_sign"]),
                    "noise_floor": floor,
                    "above_floor": size > floor,
                    "control": control,
                    "head_control": float(cell["head_control"]),
                    "beyond": size > np.fmax(floor, control),
                    "held_out": bool(here["held_out"]),
                    "examples": int(here["held_out_n"]),
                    "right": int(here["right"]),
                    "graded": int(here["graded"]),
                }
            )
    return pd.DataFrame(rows, columns=COLUMNS)


COLUMNS = [
    "step", "kind", "rank", "layer", "head", "restoration", "sd", "same_sign", "noise_floor", "above_floor", "control",
    "head_control", "beyond", "held_out", "examples", "right", "graded",
]  # fmt: skip


def records(top: pd.DataFrame, step: int | None = None) -> list[dict[str, Any]]:
    """The rows of `top_heads`, of one step or of all, as dictionaries."""
    chosen: Any = top if step is None else top[top["step"] == step]
    return chosen.to_dict("records")


def chosen_first(steps: xr.Dataset, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Returns, of rows of `top_heads`, the one with the largest restoration on the examples that heads are ranked on: of many
    steps and heads, the largest on those that are reported would be too large there."""
    ranking = steps["ranking"]
    return max(rows, key=lambda row: float(ranking.sel(step=row["step"], layer=row["layer"], head=row["head"])))


def head_name(layer: int, head: int) -> str:
    return f"L{layer}H{head}"
