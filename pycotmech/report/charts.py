"""What `report.js` draws: charts as plain JSON values, made from arrays and labels.

Every function returns a dictionary with `kind`, `title` and `label`. Numbers are rounded to four significant digits, and what
is not finite is null. Texts are passed on as they are: the page writes JSON that cannot end its script, and the script writes
text nodes only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pycotmech.files.text import printable

Chart = dict[str, Any]
DIGITS = 4


def number(value: Any, digits: int = DIGITS) -> float | int | None:
    """A number for JSON, rounded; None for what is not finite."""
    value = float(value)
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded == int(rounded) and abs(rounded) < 1e15 else rounded


def numbers(values: ArrayLike, digits: int = DIGITS) -> list[float | int | None]:
    """All numbers of an array in one list, the last axis varying fastest."""
    return [number(v, digits) for v in np.asarray(values, dtype=float).ravel().tolist()]


def head_map(
    name: str,
    value: ArrayLike,
    *,
    kind: str = "",
    n: int | None = None,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    floor: float | None = None,
    control: float | None = None,
    own: ArrayLike | None = None,
    step: int | None = None,
    marked: ArrayLike | None = None,
    mark: str = "",
) -> dict[str, Any]:
    """One map of heads, of those that `heads` shows one at a time.

    value, low, high: [layer, head], and the ends of the interval. floor, control: sizes that rounding and that 95 % of the
    random controls do not exceed. own: [layer, head], the mean of each head's own controls. step: the step whose views of heads
    belong to the map. marked: bool [layer, head], heads with a dot, and `mark` what it says; by default those beyond floor and
    control.
    """
    out: dict[str, Any] = {"name": printable(name), "kind": printable(kind), "value": numbers(value)}
    for key, values in (("low", low), ("high", high), ("own", own)):
        if values is not None and np.isfinite(np.asarray(values, dtype=float)).any():
            out[key] = numbers(values)
    for key, one in (("floor", floor), ("control", control)):
        if one is not None and math.isfinite(one):
            out[key] = number(one)
    if marked is not None:
        out |= {"marked": np.flatnonzero(np.asarray(marked)).tolist(), "mark": mark}
    return out | {"n": n, "step": step}


def heads(
    title: str,
    label: str,
    shape: tuple[int, int],
    maps: Sequence[Mapping[str, Any]],
    *,
    unit: str = "number",
    scale: str = "diverging",
    views: bool = False,
    details: Mapping[str, Any] | None = None,
    note: str = "",
) -> Chart:
    """Heat maps layer by head, one of `maps` at a time, on one scale.

    unit: "share" or "number". scale: "diverging" (around 0) or "sequential" (from 0). views: whether a head shows what
    `Page.views` holds of it. details: for a head "layer.head" lines of text, or {"text", "rows": [[words, number], ...]}.
    note: said where a head has no views.
    """
    return {
        "kind": "heads", "title": title, "label": label, "layers": shape[0], "heads": shape[1], "maps": list(maps),
        "unit": unit, "scale": scale, "views": views, "details": dict(details or {}), "note": note,
    }  # fmt: skip


def series(
    name: str,
    x: ArrayLike,
    y: ArrayLike,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    *,
    dashed: bool = False,
) -> dict[str, Any]:
    """One line of `lines`, with the ends of its interval."""
    out = {"name": printable(name), "x": numbers(x), "y": numbers(y), "dashed": dashed}
    return out if low is None or high is None else out | {"low": numbers(low), "high": numbers(high)}


def lines(
    title: str,
    label: str,
    across: str,
    drawn: Sequence[Mapping[str, Any]],
    *,
    unit: str = "number",
    limits: tuple[float | None, float | None] = (None, None),
    level: tuple[float, str] | None = None,
    span: tuple[float, float, str] | None = None,
) -> Chart:
    """Lines with bands. across: what the x axis counts. limits: of the y axis. level: (value, words) of a horizontal line.
    span: (from, to, words) of a vertical band."""
    return {
        "kind": "lines", "title": title, "label": label, "across": across, "series": list(drawn), "unit": unit,
        "limits": [None if v is None else number(v) for v in limits],
        "level": None if level is None else [number(level[0]), level[1]],
        "span": None if span is None else [number(span[0]), number(span[1]), span[2]],
    }  # fmt: skip


def bars(
    title: str,
    label: str,
    groups: Sequence[str],
    drawn: Mapping[str, ArrayLike],
    low: Mapping[str, ArrayLike] | None = None,
    high: Mapping[str, ArrayLike] | None = None,
    *,
    unit: str = "number",
    stacked: bool = False,
    level: tuple[float, str] | None = None,
    texts: Sequence[str] | None = None,
    tints: Mapping[str, int] | None = None,
    across: str = "",
) -> Chart:
    """Bars of each group beside each other, with intervals; or shares on top of each other.

    drawn: by name the values of all groups. level: (value, words) of a line across. texts: longer names of the groups.
    tints: by name the number of its colour, where it is the same in several charts. across: what the groups are, below them.
    """
    made = []
    for name, values in drawn.items():
        one: dict[str, Any] = {"name": printable(name), "value": numbers(values)}
        if tints is not None and name in tints:
            one["tint"] = tints[name]
        if low is not None and high is not None and name in low:
            one |= {"low": numbers(low[name]), "high": numbers(high[name])}
        made.append(one)
    return {
        "kind": "stack" if stacked else "bars", "title": title, "label": label, "groups": [printable(g) for g in groups],
        "series": made, "unit": unit, "level": None if level is None else [number(level[0]), level[1]],
        "texts": None if texts is None else [printable(t) for t in texts], "across": across,
    }  # fmt: skip


def matrix(
    title: str,
    label: str,
    values: ArrayLike,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    up: str,
    across: str,
    unit: str = "number",
    scale: str = "diverging",
    texts: Sequence[str] | None = None,
) -> Chart:
    """A matrix of rows by columns. texts: of rows and columns alike, shown for the entry that is pointed at."""
    return {
        "kind": "matrix", "title": title, "label": label, "value": numbers(values, 3), "rows": [printable(r) for r in rows],
        "columns": [printable(c) for c in columns], "up": up, "across": across, "unit": unit, "scale": scale,
        "texts": None if texts is None else [printable(t) for t in texts],
    }  # fmt: skip


def flow(title: str, label: str, graphs: Sequence[Mapping[str, Any]], n_layers: int) -> Chart:
    """Graphs of heads over tokens, one at a time: {"name", "tokens": [{"position", "word", "segment", "answer"}],
    "nodes": [{"layer", "head", "position", "depth"}], "edges": [{"parent", "child", "position", "input", "weight"}]}."""
    return {"kind": "flow", "title": title, "label": label, "graphs": list(graphs), "layers": n_layers}


def interval(
    title: str, label: str, mean: float, low: float, high: float, threshold: float, *, unit: str, values: ArrayLike
) -> Chart:
    """One quantity with its interval beside a threshold. values: of the examples, as points."""
    return {
        "kind": "interval", "title": title, "label": label, "mean": number(mean), "low": number(low), "high": number(high),
        "threshold": number(threshold), "unit": unit, "values": numbers(values, 3),
    }  # fmt: skip
