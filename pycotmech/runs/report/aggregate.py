"""Results of single sweeps put together over examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pycotmech.runs.store import SweepState


def by_step(data: xr.Dataset) -> xr.Dataset:
    """Effects by step, layer and head, over the examples whose sweep is finished.

    data: what `pycotmech.runs.read` gives. Returns, for each step, layer and head:
    restoration: the ratio of means (docs/protocol.md, E1), which is the mean of the examples' effects weighted by the distance
        between their clean and corrupted metric; so an example in which the counterfactual hardly matters hardly counts.
    sd: the standard deviation of the examples' effects around it, with the same weights; NaN for a single example.
    same_sign: the share of examples whose effect has the sign of the restoration.
    And for each step: n (examples used), right and graded (examples that are right, examples graded), pending, noise_floor
    (weighted mean of the examples' floors: no smaller than the floor of the mean), clean_metric and corrupted_metric
    (means), seconds (sum).
    """
    used = data["state"] == SweepState.FINISHED
    n = used.sum("example")
    weight = abs(data["clean_metric"] - data["corrupted_metric"]).where(used, 0.0)
    share = weight / weight.sum("example").where(n > 0)
    effect = data["effect"].astype("f8").where(used)
    mean = (effect * share).sum("example", skipna=True, min_count=1)
    sd = ((share * (effect - mean) ** 2).sum("example", skipna=True, min_count=1) ** 0.5).where(n > 1)
    same = ((np.sign(effect) == np.sign(mean)) & used).sum("example") / n.where(n > 0)
    out = xr.Dataset(
        {
            "restoration": mean,
            "sd": sd,
            "same_sign": same,
            "n": n,
            "right": (data["right"] == 1).sum("example"),
            "graded": (data["right"] >= 0).sum("example"),
            "pending": (data["state"] == SweepState.PENDING).sum("example"),
            "noise_floor": (data["noise_floor"] * share).sum("example", min_count=1),
            "seconds": data["seconds"].where(used).sum("example"),
        }
    )
    for name in ("clean_metric", "corrupted_metric"):
        out[name] = data[name].where(used).mean("example")
    return out.assign_coords(kind=data["kind"]).assign_attrs(data.attrs)


def top_heads(steps: xr.Dataset, k: int = 5) -> pd.DataFrame:
    """The k heads with the largest |restoration| of each step, strongest first; ties to the lower layer and head.

    steps: what `by_step` gives. One row per step and head; steps without a finished sweep have none.
    """
    rows = []
    n_heads = steps.sizes["head"]
    for i, step in enumerate(steps["step"].values):
        here = steps.isel(step=i)
        if int(here["n"]) == 0:
            continue
        grid = here["restoration"].transpose("layer", "head").values.ravel()
        order = np.argsort(-np.abs(np.nan_to_num(grid)), kind="stable")[:k]
        floor = float(here["noise_floor"])
        for rank, at in enumerate(order, 1):
            cell = here.isel(layer=at // n_heads, head=at % n_heads)
            rows.append(
                {
                    "step": int(step),
                    "kind": str(here["kind"].values),
                    "rank": rank,
                    "layer": int(cell["layer"]),
                    "head": int(cell["head"]),
                    "restoration": float(cell["restoration"]),
                    "sd": float(cell["sd"]),
                    "same_sign": float(cell["same_sign"]),
                    "noise_floor": floor,
                    "above_floor": abs(float(cell["restoration"])) > floor,
                    "examples": int(here["n"]),
                    "right": int(here["right"]),
                    "graded": int(here["graded"]),
                }
            )
    return pd.DataFrame(rows, columns=COLUMNS)


COLUMNS = [
    "step", "kind", "rank", "layer", "head", "restoration", "sd", "same_sign", "noise_floor", "above_floor", "examples",
    "right", "graded",
]  # fmt: skip


def records(top: pd.DataFrame, step: int | None = None) -> list[dict[str, Any]]:
    """The rows of `top_heads`, of one step or of all, as dictionaries."""
    chosen: Any = top if step is None else top[top["step"] == step]
    return chosen.to_dict("records")


def head_name(layer: int, head: int) -> str:
    return f"L{layer}H{head}"
