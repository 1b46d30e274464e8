"""The table of a run, as text and as Markdown."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping

import pandas as pd
import xarray as xr

from pycotmech.files.text import markdown
from pycotmech.runs.report.aggregate import head_name, records

_LEFT = ("kind", "head")  # columns that are aligned to the left; numbers are to the right


def header(metric: str) -> list[str]:
    """Column names. The KL divergence of the clean run from itself is 0, so it has one column less."""
    measured = ["KL"] if metric == "kl" else ["clean", "corrupted"]
    return ["step", "kind", "right", "used", *measured, "floor", "control", "head", "effect", "± sd", "same sign"]


def rows(steps: xr.Dataset, top: pd.DataFrame) -> list[list[str]]:
    """Cells of the table, a row per head; what belongs to a step is in its first row only."""
    metric = steps.attrs["identity"]["metric"]
    measured = ["corrupted_metric"] if metric == "kl" else ["clean_metric", "corrupted_metric"]
    columns = len(header(metric))
    out = []
    for i, step in enumerate(steps["step"].values):
        here = steps.isel(step=i)
        graded = int(here["graded"])
        n = int(here["n"])
        front = [str(step), str(here["kind"].values), f"{int(here['right'])}/{graded}" if graded else "-", str(n)]
        if n == 0:
            out.append([*front, *["-"] * (columns - len(front))])
            continue
        front += [f"{float(here[name]):.3g}" for name in measured]
        front.append(f"{float(here['noise_floor']):.0e}")
        control = float(here["control"])
        front.append("-" if math.isnan(control) else f"{control:.3f}")
        for rank, row in enumerate(records(top, int(step))):
            name = head_name(row["layer"], row["head"])
            sd = "-" if math.isnan(row["sd"]) else f"{row['sd']:.3f}"
            agree = f"{round(row['same_sign'] * row['examples'])}/{row['examples']}"
            within = "" if row["beyond"] else " (within control)" if row["above_floor"] else " (rounding)"
            effect = f"{row['restoration']:+.3f}{within}"
            out.append([*(front if rank == 0 else [""] * len(front)), name, effect, sd, agree])
    return out


def text(steps: xr.Dataset, top: pd.DataFrame, samples: Mapping[int, str]) -> str:
    """The table for a terminal. samples: by step, its words in an example; they are in the step's second row."""
    names = header(steps.attrs["identity"]["metric"])
    cells = rows(steps, top)
    widths = [max(len(row[c]) for row in [names, *cells]) for c in range(len(names))]

    def line(row: list[str]) -> str:
        parts = [v.ljust(w) if n in _LEFT else v.rjust(w) for n, v, w in zip(names, row, widths, strict=True)]
        return "  ".join(parts).rstrip()

    body, step, indent = [], "", widths[0] + 2
    room = sum(widths[: names.index("head")]) + 2 * names.index("head") - indent
    for at, row in enumerate(cells):
        if at and row[0]:
            body.append("")
        whole = line(row)
        if not row[0] and step:  # the second row of a step has room before the heads
            sample = samples.get(int(step), "")
            sample = sample if len(sample) < room else "…" + sample[-room + 2 :]
            whole = " " * indent + sample.ljust(room) + whole[indent + room :]
        step = row[0]
        body.append(whole)
    return "\n".join([line(names), "-" * (sum(widths) + 2 * (len(widths) - 1)), *body])


def markdown_table(steps: xr.Dataset, top: pd.DataFrame) -> str:
    """The table for summary.md."""
    names = header(steps.attrs["identity"]["metric"])
    return "\n".join("| " + " | ".join(map(markdown, row)) + " |" for row in [names, ["---"] * len(names), *rows(steps, top)])


def legend(metric: str, direction: str) -> str:
    """What the columns mean, in lines of up to 120 characters."""
    does = "restores of" if direction == "denoise" else "takes away from"
    what = {"kl": "the clean run's prediction (KL)", "logit_diff": "the logit difference", "prob": "the answer's probability"}
    apart = "KL: the corrupted run's divergence from the clean one" if metric == "kl" else "clean, corrupted: the metric there"
    lines = textwrap.wrap(
        f"effect: the share that patching this head alone {does} {what.get(metric, metric)} (0 none, 1 all), over the examples "
        "used; sd: its standard deviation over examples; same sign: the examples in which it has the effect's sign; right: the "
        f"examples in which the model gets the step right (only these are used); {apart}; floor: the size of rounding errors; "
        "control: the effect that 95 % of heads do not exceed with another example's activations. Heads are ranked on one half "
        "of the examples; effect, sd and same sign are those of the other half, if there are four examples or more.",
        118,
    )
    return "\n".join(lines)
