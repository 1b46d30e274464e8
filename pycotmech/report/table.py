"""The table of a run, as text and as Markdown."""

from __future__ import annotations

import math

import pandas as pd
import xarray as xr

from pycotmech.report.aggregate import head_name

_HEADER = ("step", "kind", "right", "used", "clean", "corrupted", "floor", "head", "effect", "± sd", "same sign")


def rows(steps: xr.Dataset, top: pd.DataFrame) -> list[list[str]]:
    """Cells of the table, a row per head; what belongs to a step stands in its first row only."""
    out = []
    for i, step in enumerate(steps["step"].values):
        here = steps.isel(step=i)
        graded = int(here["graded"])
        n = int(here["n"])
        front = [str(step), str(here["kind"].values), f"{int(here['right'])}/{graded}" if graded else "-", str(n)]
        if n == 0:
            out.append([*front, "-", "-", "-", "-", "-", "-", "-"])
            continue
        front += [_number(here["clean_metric"]), _number(here["corrupted_metric"]), f"{float(here['noise_floor']):.0e}"]
        for rank, (_, row) in enumerate(top[top["step"] == step].iterrows()):
            name = head_name(int(row["layer"]), int(row["head"]))
            sd = "-" if math.isnan(row["sd"]) else f"{row['sd']:.3f}"
            agree = f"{round(row['same_sign'] * n)}/{n}"
            effect = f"{row['restoration']:+.3f}" + ("" if row["above_floor"] else " (rounding)")
            out.append([*(front if rank == 0 else [""] * len(front)), name, effect, sd, agree])
    return out


def text(steps: xr.Dataset, top: pd.DataFrame) -> str:
    """The table for a terminal."""
    cells = rows(steps, top)
    widths = [max(len(row[c]) for row in [list(_HEADER), *cells]) for c in range(len(_HEADER))]

    def line(row: list[str]) -> str:
        parts = [v.ljust(w) if c in (1, 7) else v.rjust(w) for c, (v, w) in enumerate(zip(row, widths, strict=True))]
        return "  ".join(parts).rstrip()

    body = []
    for at, row in enumerate(cells):
        if at and row[0]:
            body.append("")
        body.append(line(row))
    return "\n".join([line(list(_HEADER)), "-" * (sum(widths) + 2 * (len(widths) - 1)), *body])


def markdown(steps: xr.Dataset, top: pd.DataFrame) -> str:
    lines = [list(_HEADER), ["---"] * len(_HEADER), *rows(steps, top)]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def legend(metric: str, direction: str) -> str:
    """What the columns mean."""
    does = "brings back of" if direction == "denoise" else "takes away from"
    what = {"kl": "the clean run's prediction (KL)", "logit_diff": "the logit difference", "prob": "the answer's probability"}
    return (
        f"effect: the share that patching this head alone {does} {what.get(metric, metric)}, 0 none, 1 all, over the examples "
        "used; sd: spread over examples;\nsame sign: examples that agree in sign; right: examples in which the model gets the "
        "step right, which are those used; clean, corrupted: the metric\nof the unpatched runs; floor: the size of rounding."
    )


def _number(value: xr.DataArray) -> str:
    return f"{float(value):.3g}"
