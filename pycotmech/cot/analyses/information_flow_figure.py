"""A graph of information flow, layer by position, and where heads occur in all graphs."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pycotmech.figures.bars import PALETTE, saved
from pycotmech.figures.heatmap import _draw, _frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pycotmech.cot.analyses.information_flow import InformationFlow

_SEGMENT_COLOURS = {"few_shot": PALETTE[0], "question": PALETTE[1], "generated": PALETTE[2]}
_STYLES = {"v": "-", "k": (0, (4, 2)), "q": (0, (1, 1.5)), "": "-"}
_DEPTHS = 4


def flow_figure(result: InformationFlow, example: int | None, step: int | None, path: str | PathLike | None) -> Figure:
    """One graph above; below, of depths 0 to 3, the share of all cells in which each head occurs there."""
    example, step = _cell(result, example, step)
    data = result.data
    figure = Figure(figsize=(11.0, 7.6), layout="constrained")
    grid = figure.add_gridspec(2, _DEPTHS, height_ratios=(2.0, 1.1))
    kind = str(data["kind"].sel(step=step).values)
    _draw_graph(figure.add_subplot(grid[0, :]), result, example, step, f"example {example}, step {step} ({kind})")
    count = len(list(result.cells()))
    shares = data["depth_map"].mean(("example", "step")).transpose("depth", "layer", "head").values
    image, axes = None, []
    for d in range(min(_DEPTHS, len(shares))):
        axis = figure.add_subplot(grid[1, d])
        image = _draw(axis, np.where(shares[d] > 0, shares[d], np.nan), max(float(np.nanmax(shares)), 1e-9))
        axis.set_facecolor("white")
        axis.set_title(f"depth {d}" + (": writers" if d == 0 else ""), fontsize=9)
        axis.set_xlabel("head", fontsize=8)
        axis.set_ylabel("layer" if d == 0 else "", fontsize=8)
        axes.append(axis)
    if image is not None:
        bar = figure.colorbar(image, ax=axes, pad=0.01)
        bar.set_label("share of cells", fontsize=8)
        bar.ax.set_ylim(0, None)
        bar.ax.tick_params(labelsize=7)
    n = int(data["writers"].notnull().any("step").sum())
    lines = [f"{n} example(s), {count} steps that are right; {result.about['definition']}", *result.about["notes"]]
    _frame(figure, f"{result.about['model']}: {result.title.lower()}", lines)
    return saved(figure, path)


def _cell(result: InformationFlow, example: int | None, step: int | None) -> tuple[int, int]:
    """The cell asked for, or one with a middling number of edges."""
    cells = [c for c in result.cells() if (example is None or c[0] == example) and (step is None or c[1] == step)]
    if not cells:
        raise ValueError(f"example, step: got {example}, {step}; expected a cell that counts, as in .cells()")
    edges = [float(result.data["edges"].sel(example=e, step=s)) for e, s in cells]
    return cells[int(np.argsort(edges, kind="stable")[len(edges) // 2])]


def _draw_graph(axis: Axes, result: InformationFlow, example: int, step: int, title: str) -> None:
    graph, data = result.graph(example, step), result.data
    axis.set_title(title, fontsize=9)
    axis.set_ylabel("layer", fontsize=8)
    axis.tick_params(labelsize=7, length=2)
    axis.spines[["top", "right"]].set_visible(False)
    if not graph.nodes:
        axis.text(0.5, 0.5, "no head writes the answer by this definition", ha="center", transform=axis.transAxes, fontsize=9)
        return
    e, s = (int(np.flatnonzero(data[k].values == v)[0]) for k, v in (("example", example), ("step", step)))
    words, segment, answer = {}, {}, set()
    for name in ("node", "edge"):
        mine = np.flatnonzero((data[f"{name}_e"].values == e) & (data[f"{name}_s"].values == s))
        for i in mine:
            position = int(data[f"{name}_position"].values[i])
            words[position] = str(data[f"{name}_word"].values[i])
            if name == "edge":
                segment[position] = str(data["edge_segment"].values[i])
                if bool(data["edge_answer"].values[i]):
                    answer.add(position)
    x = {p: i for i, p in enumerate(sorted(words))}
    strongest = max((abs(edge.weight) for edge in graph.edges if np.isfinite(edge.weight)), default=1.0) or 1.0
    spread = _spread(graph.nodes)
    for edge in graph.edges:
        parent = graph.nodes[edge.parent]
        child = graph.nodes[edge.child] if edge.child >= 0 else None
        to = (x[edge.position], -1.0) if child is None else (x[child.position] + spread[edge.child], child.layer)
        size = abs(edge.weight) / strongest if np.isfinite(edge.weight) else 0.2
        colour = "0.35" if not edge.weight < 0 else PALETTE[0]
        start = (x[parent.position] + spread[edge.parent], parent.layer)
        line = {
            "arrowstyle": "-",
            "color": colour,
            "linewidth": 0.5 + 2.5 * size,
            "linestyle": _STYLES[edge.input],
            "alpha": 0.75,
        }
        bend = {"v": 0.05, "k": 0.15, "q": -0.15, "": 0.05}[edge.input]
        axis.annotate("", xy=to, xytext=start, arrowprops={**line, "connectionstyle": f"arc3,rad={bend}"})
    for i, node in enumerate(graph.nodes):
        colour = "#dd8452" if node.depth == 0 else "white"
        at = (x[node.position] + spread[i], node.layer)
        axis.plot(*at, "o", ms=13, mfc=colour, mec="0.3", mew=0.8, zorder=3)
        axis.text(*at, f"{node.layer}.{node.head}", fontsize=5.5, ha="center", va="center", zorder=4)
    for position, i in x.items():
        colour = _SEGMENT_COLOURS.get(segment.get(position, ""), "0.4")
        axis.plot(i, -1.0, "s", ms=7, color=colour, mec="black" if position in answer else colour, mew=1.6, zorder=3)
    axis.set_xticks(range(len(x)), [f"{words[p].strip() or repr(words[p])}\n{p}" for p in x], rotation=0, fontsize=7)
    top = int(data["layer"].max())
    layers = list(range(0, top + 1, max(1, top // 8)))
    axis.set_yticks([-1, *layers], ["tokens", *map(str, layers)])
    axis.set_xlim(-0.7, len(x) - 0.3)
    axis.set_ylim(-1.8, top + 0.9)
    marks = [
        Line2D([], [], marker="s", ls="", color=c, label=f"token in {n.replace('_', '-')}") for n, c in _SEGMENT_COLOURS.items()
    ]
    marks.append(Line2D([], [], marker="s", ls="", mfc="white", mec="black", mew=1.6, label="the answer's word"))
    marks.append(Line2D([], [], marker="o", ls="", mfc="#dd8452", mec="0.3", label="writer"))
    if any(edge.input for edge in graph.edges):
        marks += [
            Line2D([], [], color="0.35", ls=_STYLES[i], label=f"by its {w}")
            for i, w in (("v", "values"), ("k", "keys"), ("q", "queries"))
        ]
    axis.legend(handles=marks, fontsize=6.5, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _spread(nodes) -> list[float]:
    """Sideways offsets of nodes that lie at one position and layer, so that they can be told apart."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, node in enumerate(nodes):
        groups.setdefault((node.position, node.layer), []).append(i)
    out = [0.0] * len(nodes)
    for members in groups.values():
        for j, i in enumerate(members):
            out[i] = (j - (len(members) - 1) / 2) * min(0.3, 0.8 / len(members))
    return out
