"""A graph of information flow, layer by position, and where heads occur in all graphs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pycotmech.cot.tools.flow_graph import Graph, Node
from pycotmech.figures.frame import PALETTE, finished
from pycotmech.figures.heatmap import draw_map
from pycotmech.figures.library import Figure, Line2D

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SEGMENT_COLOURS = {"few_shot": PALETTE[0], "question": PALETTE[1], "generated": PALETTE[2]}
_STYLES = {"v": "-", "k": (0, (4, 2)), "q": (0, (1, 1.5)), "": "-"}
_DEPTHS = 4
_ROOM = 18
"""Nodes that stand above one another in the height of the graph without touching."""


class Token(NamedTuple):
    """What is at a position: its text, the part of the prompt, and whether the answer's word is there."""

    word: str
    segment: str = ""
    answer: bool = False


def flow_figure(
    graph: Graph,
    tokens: Mapping[int, Token],
    shares: NDArray,
    *,
    about: str,
    title: str,
    lines: Sequence[str],
    path: str | PathLike | None = None,
) -> Figure:
    """One graph above; below, of depths 0 to 3, the share of all cells in which each head occurs there.

    tokens: by position, of all nodes and edges. shares [depth, layer, head]. about: the graph's own title.
    """
    figure = Figure(figsize=(11.0, 7.6), layout="constrained")
    grid = figure.add_gridspec(2, _DEPTHS, height_ratios=(2.0, 1.1))
    _draw_graph(figure.add_subplot(grid[0, :]), graph, tokens, shares.shape[1], about)
    image, axes = None, []
    for d in range(min(_DEPTHS, len(shares))):
        axis = figure.add_subplot(grid[1, d])
        image = draw_map(axis, np.where(shares[d] > 0, shares[d], np.nan), max(float(np.nanmax(shares)), 1e-9))
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
    return finished(figure, title, lines, path=path)


def _draw_graph(axis: Axes, graph: Graph, tokens: Mapping[int, Token], n_layers: int, title: str) -> None:
    axis.set_title(title, fontsize=9)
    axis.set_ylabel("layer", fontsize=8)
    axis.tick_params(labelsize=7, length=2)
    axis.spines[["top", "right"]].set_visible(False)
    if not graph.nodes:
        axis.text(0.5, 0.5, "no head writes the answer by this definition", ha="center", transform=axis.transAxes, fontsize=9)
        return
    x = {p: i for i, p in enumerate(sorted(tokens))}
    strongest = max((abs(edge.weight) for edge in graph.edges if np.isfinite(edge.weight)), default=1.0) or 1.0
    spread = offsets(graph.nodes, n_layers / _ROOM)
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
        colour = _SEGMENT_COLOURS.get(tokens[position].segment, "0.4")
        edge_colour = "black" if tokens[position].answer else colour
        axis.plot(i, -1.0, "s", ms=7, color=colour, mec=edge_colour, mew=1.6, zorder=3)
    words = [f"{tokens[p].word.strip() or repr(tokens[p].word)}\n{p}" for p in x]
    axis.set_xticks(range(len(x)), words, rotation=0, fontsize=7)
    top = n_layers - 1
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
    if any(edge.weight < 0 for edge in graph.edges):
        marks.append(Line2D([], [], color=PALETTE[0], label="lowers the answer"))
    axis.legend(handles=marks, fontsize=6.5, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def offsets(nodes: Sequence[Node], near: float) -> list[float]:
    """Sideways offsets of nodes at one position whose layers are at most `near` apart, so that none covers another."""
    out = [0.0] * len(nodes)
    at: dict[int, list[int]] = {}
    for i, node in enumerate(nodes):
        at.setdefault(node.position, []).append(i)
    for indices in at.values():
        indices.sort(key=lambda i: nodes[i].layer)
        clusters = [indices[:1]]
        for before, i in itertools.pairwise(indices):
            if nodes[i].layer - nodes[before].layer > near:
                clusters.append([])
            clusters[-1].append(i)
        for cluster in clusters:
            for j, i in enumerate(cluster):
                out[i] = (j - (len(cluster) - 1) / 2) * min(0.3, 0.8 / len(cluster))
    return out
