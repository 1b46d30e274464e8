"""What the numbers say, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pycotmech._words import listed, plural
from pycotmech.runs.report.aggregate import head_name, records
from pycotmech.stats.null_effects import ENOUGH, LEVEL

_STRONG = 0.05
"""A head that restores less than this by itself is not named as one that a step depends on."""
_SEVERAL = 3
_FEW_EXAMPLES = 5


def findings(steps: xr.Dataset, top: pd.DataFrame) -> list[str]:
    """Sentences about a run: each step's heads, heads that recur, how effects compare with rounding and with the controls, and
    what to beware of.

    steps: from `by_step`. top: from `top_heads`.
    """
    direction = steps.attrs["identity"]["direction"]
    if top.empty:
        return [_unused(steps) or "No sweep is finished yet."]
    out = [_about_step(steps, top, int(step), direction) for step in top["step"].unique()]
    out += [
        text
        for text in (_recurring(top, direction), _depth(steps), _floor(steps), _control(steps), _unused(steps), _few(steps))
        if text
    ]
    return out


def _about_step(steps: xr.Dataset, top: pd.DataFrame, step: int, direction: str) -> str:
    here = steps.sel(step=step)
    # In the order of the half that ranks: the largest on the half that is reported would be too large there.
    rows = [row for row in records(top, step) if row["beyond"]]
    kind = str(here["kind"].values)
    name = "The pairs" if kind == "pair" else f"Step {step} ({kind})"
    verb = "depend" if kind == "pair" else "depends"
    towards = "restores" if direction == "denoise" else "destroys"
    strong = [row for row in rows if row["restoration"] >= _STRONG]
    against = [row for row in rows if row["restoration"] <= -_STRONG]
    text = f"{name}: no single head {towards} {_STRONG:.0%} or more"
    if strong:
        first = strong[0]
        text = f"{name} {verb} most on {_name(first)}, which {towards} {first['restoration']:.0%} by itself"
        if first["examples"] > 1:
            n, agree = first["examples"], round(first["same_sign"] * first["examples"])
            which = "held-out examples" if first["held_out"] else "examples"
            text += f" (in all {n} {which})" if agree == n else f" (in {agree} of {n} {which})"
        if len(strong) > 1:
            text += f"; then {_heads(strong[1:4])}"
    if against:
        works = "works" if len(against) == 1 else "work"
        text += f"; {_heads(against[:3])} {works} against it"
    return text + "."


def _recurring(top: pd.DataFrame, direction: str) -> str:
    n_steps = len(set(top["step"]))
    if n_steps < 2:
        return ""
    steps_of: dict[tuple[int, int], list[str]] = {}
    for row in records(top):
        if abs(row["restoration"]) >= _STRONG and row["beyond"]:
            steps_of.setdefault((row["layer"], row["head"]), []).append(str(row["step"]))
    again = sorted(((head, found) for head, found in steps_of.items() if len(found) > 1), key=lambda x: (-len(x[1]), x[0]))
    if not again:
        return "No head is among the strongest in more than one step."
    named = []
    for head, found in again[:_SEVERAL]:
        where = "all steps" if len(found) == n_steps else f"steps {listed(found)}"
        named.append(f"{head_name(*head)} ({where})")
    more = len(again) - len(named)
    return f"Among the strongest in several steps: {listed(named)}" + (f", and {more} more." if more else ".")


def _depth(steps: xr.Dataset) -> str:
    """Up to which layer half of the positive effects lies, by kind of step."""
    positive = steps["restoration"].where(steps["n"] > 0).clip(min=0).sum("head")
    if steps.sizes["layer"] < 4:
        return ""
    parts = []
    for kind in dict.fromkeys(steps["kind"].values.tolist()):
        by_layer = positive.where(steps["kind"] == kind, drop=True).sum("step").values
        if by_layer.sum() > 0:
            half = int(np.searchsorted(np.cumsum(by_layer), by_layer.sum() / 2))
            parts.append(f"{half}" if kind == "pair" else f"{half} for {kind}")
    last = steps.sizes["layer"] - 1
    return f"Depth: of layers 0 to {last}, half of all positive effects is reached at layer {listed(parts)}." if parts else ""


def _floor(steps: xr.Dataset) -> str:
    used = steps.where(steps["n"] > 0, drop=True)
    above = int((abs(used["restoration"]) > used["noise_floor"]).sum())
    total = int(used["restoration"].notnull().sum())
    floor = float(used["noise_floor"].max())
    if above == 0:
        return f"No effect exceeds the noise floor ({floor:.1g}): everything shown may be rounding."
    return (
        f"{above:,} of {total:,} effects are larger than rounding errors (noise floor at most {floor:.1g}); "
        "the others cannot be distinguished from zero."
        if above < total
        else f"All {total:,} effects are larger than rounding errors (noise floor at most {floor:.1g})."
    )


def _control(steps: xr.Dataset) -> str:
    """How many effects lie beyond floor and control, and what the control is."""
    used = steps.where((steps["n"] > 0) & steps["control"].notnull(), drop=True)
    if used.sizes["step"] == 0:
        return "" if steps["n"].sum() == 0 else "No random control was measured, so effects are compared with rounding alone."
    control = used["control"]
    beyond = int((abs(used["restoration"]) > np.fmax(used["noise_floor"], control)).sum())
    total = int(used["restoration"].notnull().sum())
    low, high = float(control.min()), float(control.max())
    limit = f"{high:.2g}" if f"{low:.2g}" == f"{high:.2g}" else f"{low:.2g} to {high:.2g} by step"
    heads, n = f"{100 * (1 - LEVEL):.0f} % of heads", int(used["n_controls"].sum())
    counted = f"{n:,} control{'s' * (n != 1)}"
    text = f"{beyond:,} of {total:,} effects exceed both noise floor and control: with another example's activations, "
    fewest = int(used["n_controls"].min())
    if fewest >= ENOUGH:
        text += f"{heads} change at most {limit} ({counted})."
    else:  # the threshold is the largest of them, which an effect like them exceeds more often
        text += (
            f"heads change at most {limit} ({counted}). A step with {plural(fewest, 'control')} says little: of heads "
            f"without an effect, 1 in {fewest + 1} exceeds them; {heads} stay within {ENOUGH} or more."
        )
    sham = used["sham"].max()
    return text + (f" Before the first difference, patches change {float(sham):.2g}." if bool(sham.notnull()) else "")


def _unused(steps: xr.Dataset) -> str:
    wrong = [
        int(s) for s, n, g, p in zip(steps["step"], steps["n"], steps["graded"], steps["pending"]) if n == 0 < g and p == 0
    ]
    if not wrong:
        return ""
    word = "step" if len(wrong) == 1 else "steps"
    return f"Not patched: {word} {listed([str(s) for s in wrong])}, which the model gets right in no example."


def _few(steps: xr.Dataset) -> str:
    few = steps.where((steps["n"] > 0) & (steps["n"] < _FEW_EXAMPLES), drop=True)
    if few.sizes["step"] == 0:
        return ""
    least, most = int(few["n"].min()), int(few["n"].max())
    n = plural(most, "example") if least == most else f"{least} to {most} examples"
    all_of_it = few.sizes["step"] == int((steps["n"] > 0).sum())
    where = "This" if all_of_it else f"Step {listed([str(int(s)) for s in few['step']])}"
    return f"{where} rests on {n}: read it as a sketch. More examples (--examples) say more."


def _name(row: Mapping[str, Any]) -> str:
    return head_name(row["layer"], row["head"])


def _heads(rows: Sequence[Mapping[str, Any]]) -> str:
    return listed([f"{_name(row)} ({row['restoration']:.0%})" for row in rows])
