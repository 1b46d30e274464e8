"""Builds the information-flow graph as the authors do, or with its flaws corrected (docs/protocol.md, E8, I to III).

From a writer to the position it attends to most; there to the token that the residual stream says; from the token to the
heads below whose output says it. Every link is a likeness of unembeddings, none is measured by intervention.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pycotmech.cot.tools.activations import Prompt, TextActivations, head_outputs, projected, token_logits
from pycotmech.cot.tools.flow_graph import Edge, Graph, Node
from pycotmech.model.families.base import Family


@dataclass
class Lens:
    """What heads and residual streams of a text say, each looked at once. shared: what was found at positions of the
    beginning that texts share, kept from text to text."""

    family: Family
    acts: TextActivations
    shared: dict = field(default_factory=dict)
    own: dict = field(default_factory=dict)

    def _kept(self, position: int) -> dict:
        return self.shared if position < self.acts.shared else self.own

    def _heads(self, position: int) -> tuple[Tensor, Tensor]:
        """Output of every head at a position [L H, d], and the normalisers of what they say [L H]."""
        kept = self._kept(position)
        if position not in kept:
            L = self.family.cfg.n_layers
            out = torch.cat([head_outputs(self.family, l, self.acts.at("z", l, [position]))[0] for l in range(L)])
            with torch.no_grad():
                size = torch.cat([self.family.logits(out[a : a + 256]).logsumexp(-1) for a in range(0, len(out), 256)])
            kept[position] = (out, size)
        return kept[position]

    def written(self, position: int, token: int) -> Tensor:
        """U(z W_O)[token] of every head at a position: [L, H]."""
        out, size = self._heads(position)
        return (token_logits(self.family, out, [token])[:, 0] - size).exp().view(self.family.cfg.n_layers, -1)

    def said(self, l: int, position: int) -> tuple[int, float]:
        """The likeliest token of the residual stream before a layer, and its probability."""
        kept = self._kept(position)
        if (l, position) not in kept:
            _, top, peak = projected(self.family, self.acts.at("resid_pre", l, [position]), [])
            kept[l, position] = (int(top), float(peak))
        return kept[l, position]


@dataclass(frozen=True)
class Rules:
    """How the graph is grown. `paper` gives the authors' own.

    writers: heads at depth 0; at each depth one less, at least 1. keys: positions that a node attends to.
    floor: probability from which a head counts as writing a token and a residual stream as saying one; where no token
    reaches it the chain ends at the token itself. skip_first: the first token, where heads rest, is not attended to.
    gold: writers are those of the right word; else of the word that the model would say.
    """

    writers: int = 4
    keys: int = 1
    floor: float = 0.05
    skip_first: bool = True
    gold: bool = True

    @classmethod
    def paper(cls) -> Rules:
        return cls(floor=0.0, skip_first=False, gold=False)


def grow(lens: Lens, prompt: Prompt, rules: Rules, allowed: Tensor | None = None) -> Graph:
    """The graph of one prompt. allowed: bool [L, H], the heads that may be in it; None: all.

    Deterministic: ties go to the lower layer, head and position. Nodes are distinguished by (layer, head, position), those at
    depth 0 by themselves: the authors count a writer's position as -1, which no later node has.
    """
    family, acts, graph = lens.family, lens.acts, Graph()
    target = prompt.answer
    if not rules.gold:
        target = int(family.logits(acts.final([prompt.read])).argmax())
    number: dict[tuple[int, int, int], int] = {}
    for l, h, w in _writers(lens, prompt.read, target, family.cfg.n_layers, rules, rules.writers, allowed):
        graph.nodes.append(Node(l, h, prompt.read, 0, w))
        if rules.gold:
            number[l, h, prompt.read] = len(graph.nodes) - 1
    frontier, width, depth = list(range(len(graph.nodes))), rules.writers, 0
    while frontier and any(graph.nodes[i].layer > 0 for i in frontier):
        width, depth, found = max(1, width - 1), depth + 1, []
        for i in frontier:
            parent = graph.nodes[i]
            for position, weight in _attended(acts, parent, rules):
                token, said = lens.said(parent.layer, position)
                below = []
                if said >= rules.floor:
                    below = _writers(lens, position, token, parent.layer, rules, width, allowed)
                for l, h, w in below:
                    place = (l, h, position)
                    if place not in number:
                        number[place] = len(graph.nodes)
                        graph.nodes.append(Node(l, h, position, depth))
                        found.append(number[place])
                    graph.edges.append(Edge(i, number[place], position, token, "", weight, w))
                if not below:
                    graph.edges.append(Edge(i, -1, position, int(acts.tokens[position]), "", weight, float("nan")))
        frontier = found
    return graph


def _writers(
    lens: Lens, position: int, token: int, below: int, rules: Rules, width: int, allowed: Tensor | None
) -> list[tuple[int, int, float]]:
    """Stage I: the heads below a layer that say a token at a position, the surest first."""
    w = lens.written(position, token)[:below]
    if allowed is not None:
        w = w.masked_fill(~allowed[:below].to(w.device), -1.0)
    order = w.flatten().sort(descending=True, stable=True).indices[:width].tolist()
    H = w.shape[1] if w.ndim == 2 else 1
    found = [(i // H, i % H, float(w[i // H, i % H])) for i in order]
    return [x for x in found if x[2] >= rules.floor and x[2] >= 0]


def _attended(acts: TextActivations, node: Node, rules: Rules) -> list[tuple[int, float]]:
    """Stage II: the positions with the largest weights above the median of the row."""
    row = acts.pattern(node.layer, [node.position])[0, node.head]
    visible = row if not rules.skip_first else row[: node.position + 1]
    median = visible.median()
    row = visible.clone()
    if rules.skip_first:
        row[0] = -1.0
    order = row.sort(descending=True, stable=True).indices[: rules.keys].tolist()
    return [(p, float(row[p])) for p in order if row[p] > median or len(visible) == 1]
