"""The graph of information flow of one prompt: which head, at which position, hands what to which head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd


class Node(NamedTuple):
    """A head at a query position. depth: 0 for answer writers. weight: of a writer, the share or probability by which it
    was found; NaN for others. total: its share with everything above recomputed; NaN where not measured."""

    layer: int
    head: int
    position: int
    depth: int
    weight: float = np.nan
    total: float = np.nan


class Edge(NamedTuple):
    """What a node takes from a position.

    parent: number of the node. child: number of the node that wrote it there, -1 for the token of the position itself.
    token: what is handed over: the paper's passed token, or the token at the position. input: "q", "k", "v" of the parent,
    or "" where the construction does not say. attention: the parent's weight on the position.
    weight: probability of the passed token in what the child writes, or the share of the answer that goes by this edge.
    total: the share with everything above the parent recomputed; NaN where not measured.
    """

    parent: int
    child: int
    position: int
    token: int
    input: str
    attention: float
    weight: float
    total: float = np.nan


@dataclass(eq=False)
class Graph:
    """A directed acyclic graph: children lie in lower layers than their parents, at positions not behind theirs."""

    nodes: list[Node] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)

    @property
    def writers(self) -> list[int]:
        """Numbers of the nodes that write the answer."""
        return [i for i, node in enumerate(self.nodes) if node.depth == 0]

    def of(self, parent: int) -> list[Edge]:
        """The edges from a node, in the order in which they were found."""
        return [edge for edge in self.edges if edge.parent == parent]

    def pathway(self, writer: int) -> list[Edge]:
        """All edges that can be reached from a node."""
        found, todo, seen = [], [writer], {writer}
        while todo:
            for edge in self.of(todo.pop()):
                found.append(edge)
                if edge.child >= 0 and edge.child not in seen:
                    seen.add(edge.child)
                    todo.append(edge.child)
        return found

    def depth_map(self, depths: int, layers: int, heads: int) -> NDArray[np.float64]:
        """1 where a head occurs at a depth: [depths, layers, heads]; deeper ones are left out."""
        out = np.zeros((depths, layers, heads))
        for node in self.nodes:
            if node.depth < depths:
                out[node.depth, node.layer, node.head] = 1
        return out

    def to_dataframe(self) -> pd.DataFrame:
        """One row per edge: the parent's layer, head, position, depth; the child's layer and head (-1: the token itself);
        position, token, input, attention, weight, total."""
        import pandas as pd

        rows = []
        for e in self.edges:
            parent = self.nodes[e.parent]
            child = self.nodes[e.child] if e.child >= 0 else None
            row = {"layer": parent.layer, "head": parent.head, "at": parent.position, "depth": parent.depth}
            row |= {"child_layer": -1 if child is None else child.layer, "child_head": -1 if child is None else child.head}
            rows.append(row | {k: getattr(e, k) for k in Edge._fields if k not in ("parent", "child")})
        names = ["layer", "head", "at", "depth", "child_layer", "child_head", *Edge._fields[2:]]
        return pd.DataFrame(rows, columns=names)


def sources(graph: Graph, writer: int, spans: Sequence[slice]) -> dict[int, list[int]]:
    """Which occurrences of the answer's word a pathway reaches: number of the occurrence -> positions, in order found."""
    out: dict[int, list[int]] = {}
    for edge in graph.pathway(writer):
        for i, span in enumerate(spans):
            if span.start <= edge.position < span.stop:
                out.setdefault(i, []).append(edge.position)
    return out
