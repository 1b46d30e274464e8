"""The graph of information flow of one prompt: which head, at which position, hands what to which head."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

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
    """A directed acyclic graph: children lie in lower layers than their parents, at positions not after theirs."""

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

    # ---- as a tree -------------------------------------------------------------------------------------------------

    def to_json(self, *, text: Callable[[int], str] | None = None, indent: int | None = 1) -> str:
        """The graph as a tree nested from the answer's writers down to tokens, in JSON; `from_json` reads it back.

        {"roots": [NODE, ...]}: the writers, then any node that is reached from none of them.
        NODE: {"node": its number, "layer", "head", "position", "depth", "weight", "total", "edges": [EDGE, ...]}. A node that
            several look at is written out the first time only; after that it is {"node": its number} alone.
        EDGE: {"position", "token", "input", "attention", "weight", "total", "child": NODE, or null for the token itself}.
        What fields mean: see `Node` and `Edge`. What is not a number is null.

        text: from a token's id to its text, as `tokenizer.decode` gives; then each EDGE has a "text" besides.
        indent: as `json.dumps`; None: on one line.
        """
        seen: set[int] = set()

        def node(i: int) -> dict[str, Any]:
            if i in seen:
                return {"node": i}
            seen.add(i)
            fields = {"node": i, **_numbers(self.nodes[i])}
            return fields | {"edges": [edge(e) for e in self.of(i)]}

        def edge(e: Edge) -> dict[str, Any]:
            fields = _numbers(e)
            fields.pop("parent"), fields.pop("child")
            if text is not None:
                fields["text"] = text(int(e.token))
            return fields | {"child": node(e.child) if e.child >= 0 else None}

        order = [*self.writers, *(i for i, n in enumerate(self.nodes) if n.depth > 0)]
        roots = []
        for i in order:
            if i not in seen:
                roots.append(node(i))
        return json.dumps({"roots": roots}, indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Graph:
        """The graph that `to_json` wrote: the same nodes, and the same edges of each node in the same order, one node after
        another. Raises ValueError if the text is not such a tree."""
        nodes: dict[int, Node] = {}
        edges: list[tuple[int, Edge]] = []

        def read(tree: dict[str, Any]) -> int:
            i = tree["node"]
            if "layer" in tree:
                nodes[i] = Node(*(_read(tree[k]) for k in Node._fields))
                for one in tree["edges"]:
                    child = -1 if one["child"] is None else read(one["child"])
                    edges.append((i, Edge(i, child, *(_read(one[k]) for k in Edge._fields[2:]))))
            return i

        try:
            for tree in json.loads(text)["roots"]:
                read(tree)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"text: {type(error).__name__}: {error}; expected what Graph.to_json writes") from None
        if sorted(nodes) != list(range(len(nodes))):
            raise ValueError(f"text: holds nodes {sorted(nodes)}; expected all of 0 to {max(nodes, default=0)}")
        return cls([nodes[i] for i in range(len(nodes))], [e for _, e in sorted(edges, key=lambda pair: pair[0])])


def _numbers(fields: Node | Edge) -> dict[str, Any]:
    """A node's or an edge's fields as JSON knows them."""
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in fields._asdict().items()}
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in plain.items()}


def _read(value: Any) -> Any:
    return np.nan if value is None else value


def sources(graph: Graph, writer: int, spans: Sequence[slice]) -> dict[int, list[int]]:
    """Which occurrences of the answer's word a pathway reaches: number of the occurrence -> positions, in order found."""
    out: dict[int, list[int]] = {}
    for edge in graph.pathway(writer):
        for i, span in enumerate(spans):
            if span.start <= edge.position < span.stop:
                out.setdefault(i, []).append(edge.position)
    return out
