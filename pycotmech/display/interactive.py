"""Figures that answer to the mouse, made with plotly: heat maps with the name, value and noise floor of each cell, and bars."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import numpy as np

from pycotmech._optional import optional_import
from pycotmech.display.view import Panel, View, plain
from pycotmech.files.text import printable

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MOST_CELLS = 200_000
_MOST_TICKS, _MOST_ROWS = 40, 20
_MISSING = "rgba(128,128,128,.22)"
"""The colour of cells without a number."""
_POSITIVE, _NEGATIVE = "#4c8ac0", "#cf5f5f"


def interactive_figure(view: View, title: str | None = None) -> Figure:
    """A view as a plotly figure. Raises ValueError for more than `MOST_CELLS` cells."""
    with optional_import():
        import plotly.graph_objects as go

    panels = view.panels()
    if sum(panel.where.size for panel in panels) > MOST_CELLS:
        raise ValueError(
            f"to_plotly: {sum(panel.where.size for panel in panels):,} cells are too many for one page; expected at most "
            f"{MOST_CELLS:,}: choose some of them with to_xarray(), or draw with plot()"
        )
    rows, columns = view.drawn
    draw = _bars if rows is None else _heat_map
    strongest = [int(np.ravel_multi_index(index, view.values.shape)) for index, _ in view.strongest(1)]
    first = next((i for i, panel in enumerate(panels) if np.isin(strongest, panel.where).any()), 0)
    figure = go.Figure([draw(go, view, panel, visible=i == first) for i, panel in enumerate(panels)])
    heading = escaped(title or view.title)
    lines = "<br>".join(escaped(line, 110) for line in view.facts[:2])
    titles = [f"{heading}: {escaped(p.name)}" if p.name else heading for p in panels]
    figure.update_layout(
        title={"text": titles[first], "subtitle": {"text": lines, "font": {"size": 11}}, "font": {"size": 15}},
        plot_bgcolor=_MISSING,
        margin={"t": 110, "l": 70, "r": 20, "b": 70},
        updatemenus=[_menu(panels, titles, first)] if len(panels) > 1 else [],
        showlegend=False,
    )
    figure.update_xaxes(title_text=escaped(columns), **_ticks(view, columns), showgrid=False, zeroline=False)
    if rows is None:
        figure.update_yaxes(title_text=escaped(view.label), zeroline=True)
        if view.floor:
            figure.add_hrect(-view.floor, view.floor, fillcolor="grey", opacity=0.25, line_width=0)
    else:
        figure.update_yaxes(title_text=escaped(rows), **_ticks(view, rows, _MOST_ROWS), showgrid=False, zeroline=False)
    return figure


def escaped(text: Any, longest: int = 160) -> str:
    """Text as plotly takes it: no markup of its own, and no formula between dollar signs."""
    line = printable(text)
    line = line if len(line) <= longest else f"{line[: longest - 1]}…"
    return html.escape(line, quote=False).replace("$", "&#36;")


def _heat_map(go: Any, view: View, panel: Panel, *, visible: bool) -> Any:
    scale = {"colorscale": "Viridis", "zmin": 0, "zmax": 1} if view.share else _around_zero(view)
    return go.Heatmap(
        z=panel.of(view.values).astype(float),
        **scale,
        **_hover(view, panel, "z"),
        colorbar={"title": {"text": escaped(view.label), "side": "right"}},
        hoverongaps=False,
        visible=visible,
    )


def _around_zero(view: View) -> dict[str, Any]:
    """Red, white, blue around 0, as in the figures of the field."""
    return {"colorscale": "RdBu", "zmin": -view.limit, "zmid": 0, "zmax": view.limit}


def _bars(go: Any, view: View, panel: Panel, *, visible: bool) -> Any:
    values = panel.of(view.values).astype(float)
    reach = {}
    if {"low", "high"} <= set(view.beside):
        low, high = (panel.of(view.beside[name]).astype(float) for name in ("low", "high"))
        up, down = np.nan_to_num(high - values), np.nan_to_num(values - low)
        reach = {"error_y": {"type": "data", "symmetric": False, "array": up.clip(min=0), "arrayminus": down.clip(min=0)}}
    colours = [_NEGATIVE if value < 0 else _POSITIVE for value in values]
    return go.Bar(
        x=np.arange(len(values)), y=values, marker_color=colours, visible=visible, **reach, **_hover(view, panel, "y")
    )


def _hover(view: View, panel: Panel, axis: str) -> dict[str, Any]:
    """What is said of a cell under the mouse: its name, its value, what stands beside it, the noise floor."""
    names = np.array([escaped(view.name_of(int(i))) for i in panel.where.ravel()], dtype=object).reshape(panel.where.shape)
    lines = [f"<b>%{{text}}</b><br>{escaped(view.label)} %{{{axis}:{'.3f' if view.share else '+.4f'}}}"]
    found = {}
    if view.beside:
        columns = [
            np.array([escaped(plain(v), 60) for v in panel.of(values).ravel()], dtype=object) for values in view.beside.values()
        ]
        found["customdata"] = np.stack(columns, -1).reshape(*panel.where.shape, len(columns))
        lines += [f"{escaped(name)} %{{customdata[{i}]}}" for i, name in enumerate(view.beside)]
    if view.floor is not None:
        lines.append(f"noise floor {view.floor:.2g}")
    text = {"hovertext": names} if axis == "y" else {"text": names}
    template = "<br>".join(lines).replace("%{text}", "%{hovertext}" if axis == "y" else "%{text}")
    return {**found, **text, "hovertemplate": f"{template}<extra></extra>"}


def _ticks(view: View, axis: str, most: int = _MOST_TICKS) -> dict[str, Any]:
    """Labels of an axis: as many as can be read."""
    n = view.values.shape[view.axes.index(axis)]
    step = max(1, -(-n // most))
    at = list(range(0, n, step))
    return {"tickvals": at, "ticktext": [escaped(view.tick(axis, i), 24) for i in at]}


def _menu(panels: list[Panel], titles: list[str], first: int) -> dict[str, Any]:
    """Chooses the part that is drawn; at first that with the strongest cell."""
    buttons = [
        {
            "label": escaped(panel.name, 60),
            "method": "update",
            "args": [{"visible": [i == j for j in range(len(panels))]}, {"title.text": titles[i]}],
        }
        for i, panel in enumerate(panels)
    ]
    return {"buttons": buttons, "active": first, "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"}
