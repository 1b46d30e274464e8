"""The information-flow graph by intervention: every edge is a path along which an output is replaced (docs/protocol.md, E8).

A writer is a head whose output, replaced where the answer is predicted, lowers logit(answer) - logit(wrong) by itself. An
edge leads from a node to a head below, or to the token itself, at a position that the node attends to: what this sender
wrote there is replaced as the node alone sees it, in its queries, its keys or its values; the node's output changes by what
follows; and that change is carried along the path to the logits while every other head stays as it was (path patching,
Wang et al. 2022, Goldowsky-Dill et al. 2023). MLPs between the heads of a path are computed anew, or frozen too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pycotmech.cot.tools.activations import (
    Prompt,
    TextActivations,
    head_outputs,
    rotated,
    token_logits,
)
from pycotmech.cot.tools.flow_graph import Edge, Graph, Node
from pycotmech.engine.bases import Bases, Stage
from pycotmech.engine.rows import Joining, Variants
from pycotmech.engine.staircase import Staircase
from pycotmech.model import work
from pycotmech.model.config import ModelConfig
from pycotmech.model.families.base import Family
from pycotmech.patching import Edit, Variant

Place = tuple[int, int, int]
"""(layer, head, position)"""


def sites(cfg: ModelConfig) -> tuple[str, ...]:
    """What is read of a text's activations. In a parallel block "resid_mid" is the stream after attention and MLP, where the
    change of a head joins, so that what attention adds is kept by itself."""
    return ("z", "q", "resid_pre", "resid_mid", *(("attn_out",) if cfg.parallel else ()))


@dataclass(frozen=True)
class Limits:
    """How far the graph is followed. writers, senders: at most so many writers, and senders of one node.

    share: of logit(answer) - logit(wrong), what an edge must carry; writer_share, floor: what a writer must, as a share and
    in logits. positions, attention: a node's senders are looked for at so many positions, of at least this weight.
    depth: of the deepest node. nodes: in all. screened: the senders at each position whose paths are computed, besides the
    token: those that change the node most with MLPs frozen (of writers: those with the largest direct attribution).
    freeze_mlps: whether MLPs keep what they add; what reaches a head by way of an MLP is then not seen.
    """

    writers: int = 6
    senders: int = 5
    share: float = 0.02
    writer_share: float = 0.03
    floor: float = 0.25
    positions: int = 3
    attention: float = 0.05
    depth: int = 3
    nodes: int = 24
    screened: int = 12
    freeze_mlps: bool = False


class Sources:
    """What a head's z, and a token's embedding, are replaced by: their means over the positions of the text, its first
    token left out; or those of an aligned counterfactual."""

    @torch.no_grad()
    def __init__(self, family: Family, acts: TextActivations, other: TextActivations | None = None) -> None:
        self.family, self.acts, self.other = family, acts, other
        self._mean: dict[int, Tensor] = {}
        self._embedding = None
        if other is None:
            positions = torch.arange(1, len(acts.tokens), device=family.device)
            self._embedding = family.embed(acts.tokens[1:].to(family.device), positions).mean(0)

    def z(self, l: int, position: int) -> Tensor:
        """[H, D]"""
        if self.other is not None:
            return self.other.at("z", l, [position])[0].to(self.family.resid_dtype)
        if l not in self._mean:
            self._mean[l] = self.acts.everywhere("z", l)[1:].to(self.family.resid_dtype).mean(0)
        return self._mean[l]

    def embedding(self, position: int) -> Tensor:
        """[d]"""
        if self.other is not None:
            return embedded(self.family, self.other.tokens, position)
        return self._embedding  # type: ignore[return-value]


@torch.no_grad()
def embedded(family: Family, tokens: Tensor, position: int) -> Tensor:
    """The embedding of one token of a text, [d]."""
    at = slice(position, position + 1)
    return family.embed(tokens[at].to(family.device), torch.arange(at.start, at.stop, device=family.device))[0]


@dataclass
class Flow:
    """One prompt, its activations, and what follows from replacing things in it."""

    family: Family
    acts: TextActivations
    prompt: Prompt
    sources: Sources
    freeze_mlps: bool = False
    _deltas: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.final = self.acts.final([self.prompt.read])
        self.difference = float(self.logit_difference(self.final))

    def logit_difference(self, x: Tensor) -> Tensor:
        """logit(answer) - logit(wrong) of final residual rows [n, d]: [n]."""
        logits = token_logits(self.family, x, [self.prompt.answer, self.prompt.wrong])
        return logits[:, 0] - logits[:, 1]

    def deltas(self, position: int) -> Tensor:
        """What replacing each head, and last the token, adds to the residual stream there: [L H + 1, d]."""
        if position not in self._deltas:
            rows = []
            for l in range(self.family.cfg.n_layers):
                z, new = self.acts.at("z", l, [position])[0], self.sources.z(l, position)
                if self.family.is_plain_projection(l):
                    rows.append(head_outputs(self.family, l, (new - z.to(self.family.resid_dtype))[None])[0])
                else:  # what one head changes depends on the others
                    rows.append(torch.cat([self.family.head_change(l, h, z, new[h : h + 1]) for h in range(len(z))]))
            token = embedded(self.family, self.acts.tokens, position)
            self._deltas[position] = torch.cat((*rows, (self.sources.embedding(position) - token)[None]))
        return self._deltas[position]

    @torch.no_grad()
    def climb(self, positions: int | list[int], change: Tensor, layers: list[int], to: int) -> Tensor:
        """The residual stream before layer `to` (L: after the last) at each of `positions` [n] (or one for all), when what a
        head of each of `layers` [n], all below `to`, adds there changes by each row of change [n, d], and no other head
        changes. A layer of -1 stands for the token's embedding. Rows do not depend on one another. Cost: an MLP for each row
        and layer above its own."""
        family, acts = self.family, self.acts
        of_rows = [positions] * len(change) if isinstance(positions, int) else positions
        places = sorted(set(of_rows))
        row = torch.tensor([places.index(p) for p in of_rows])
        if self.freeze_mlps:
            base = acts.final(places) if to == family.cfg.n_layers else acts.at("resid_pre", to, places)
            return base[row.to(change.device)] + change
        start, middle = (acts.at_layers(site, places) for site in ("resid_pre", "resid_mid"))  # [L, places, d]
        added = acts.at_layers("attn_out", places) if family.cfg.parallel else middle - start
        bases = Bases.single_rows(family, places, {"resid_mid": middle, "attn_out": added})
        layer, first = torch.tensor(layers), torch.tensor(of_rows)
        stage = torch.full_like(layer, int(Stage.MID))
        if family.cfg.parallel:  # the MLP of the first block reads the embedding, and not what follows attention
            stage[layer < 0] = int(Stage.PRE)
        variants = Variants(row, layer.clamp(min=0), stage, first)

        def join(joining: Joining) -> Tensor:
            base = middle if joining.stage == Stage.MID else start
            return base[joining.layer, joining.index] + change[joining.variant]

        upto = None if to == family.cfg.n_layers else to
        staircase = Staircase(family, bases, variants, join, frozen=("attn_out",), upto=upto)
        x = staircase.run()
        if upto is None:
            return x
        out = torch.empty_like(x)
        out[staircase.rows.variant] = x
        return out

    @torch.no_grad()
    def received(self, place: Place, position: int, x: Tensor, inputs: str) -> dict[str, Tensor]:
        """z of a head at its query when the residual stream at one position, as this head sees it, is each row of x [n, d].

        inputs: of "qkv", which are recomputed, each on its own ("q" only where position is the query's own). Returns
        input -> [n, D].
        """
        l, h, at = place
        family, wide = self.family, self.family.resid_dtype
        kv = h // family.cfg.group
        q, k, v = family.qkv(l, x.to(family.resid_dtype))
        work.count(family, work.LayerRows(qkv=len(x)))
        n = len(x)
        base_q = self.acts.queries(l, [at])[0, h].to(wide)
        keys, values = (t[: at + 1, kv].to(wide) for t in (self.acts.keys(l), self.acts.values(l)))
        products, attention = keys @ base_q, family.attention(l)
        out = {}
        if "q" in inputs and position == at:
            new = rotated(family, l, q, [position] * n)[:, h].to(wide)
            out["q"] = attention.weights(new @ keys.T, [at], h) @ values
        if "k" in inputs:
            new = rotated(family, l, k, [position] * n, keys=True)[:, kv].to(wide)
            changed = products.repeat(n, 1)
            changed[:, position] = new @ base_q
            out["k"] = attention.weights(changed, [at], h) @ values
        if "v" in inputs:
            weights = attention.weights(products[None], [at], h)[0]
            out["v"] = weights @ values + weights[position] * (v[:, kv].to(wide) - values[position])
        return out

    def carried(self, chain: list[tuple[Place, int, str]], z: Tensor) -> Tensor:
        """What logit(answer) - logit(wrong) becomes when z of the first head of a chain is each row of z [n, D].

        chain: the head, then those that receive from it up to a writer, each with the position and the input by which it
        receives. Everything that is not on the chain stays as it was.
        """
        for (place, _, _), nearer in zip(chain, [*chain[1:], None]):
            l, h, at = place
            change = self.family.head_change(l, h, self.acts.at("z", l, [at])[0], z)
            if nearer is None:
                return self.logit_difference(self.climb(at, change, [l] * len(z), self.family.cfg.n_layers))
            parent, position, input = nearer
            assert position == at
            x = self.climb(at, change, [l] * len(z), parent[0])
            z = self.received(parent, at, x, input)[input]
        raise AssertionError

    def variant(self, place: Place, z: Tensor, name: str) -> Variant:
        """The same replacement as an edit, for a sweep in which everything above is recomputed."""
        l, h, at = place
        return Variant((Edit("z", l, head=h, positions=[at], value=z[None].to(self.family.dtype)),), name)


@dataclass(frozen=True)
class _Found:
    share: float
    z: Tensor
    sender: int  # l H + h, or L H for the token
    position: int
    input: str
    attention: float


def grow(flow: Flow, limits: Limits, allowed: Tensor | None = None) -> tuple[Graph, list[Variant]]:
    """The graph of one prompt, and for each of its writers and then of its edges the edit that makes it.

    Empty if the prompt's logit(answer) - logit(wrong) is not positive. allowed: bool [L, H], heads that may be in it.
    """
    graph, variants = Graph(), []
    edges: list[Variant] = []
    if flow.difference <= 0:
        return graph, []
    read, H = flow.prompt.read, flow.family.cfg.n_heads
    chains: list[list[tuple[Place, int, str]]] = []
    number: dict[Place, int] = {}
    for i, share in _writers(flow, limits, allowed):
        place = (i // H, i % H, read)
        number[place] = len(graph.nodes)
        graph.nodes.append(Node(*place, 0, share))
        chains.append([(place, -1, "")])
        variants.append(flow.variant(place, flow.sources.z(place[0], read)[place[1]], f"writer {len(chains) - 1}"))
    todo = list(range(len(graph.nodes)))
    while todo:
        i = todo.pop(0)
        parent = graph.nodes[i]
        for found in _senders(flow, chains[i], limits, allowed):
            child = -1
            if found.sender < flow.family.cfg.n_layers * H:
                place = (found.sender // H, found.sender % H, found.position)
                if place not in number:
                    if len(graph.nodes) >= limits.nodes or parent.depth >= limits.depth:
                        continue
                    number[place] = len(graph.nodes)
                    graph.nodes.append(Node(*place, parent.depth + 1))
                    (head, _, _), *rest = chains[i]
                    chains.append([(place, -1, ""), (head, found.position, found.input), *rest])
                    todo.append(number[place])
                child = number[place]
            token = int(flow.acts.tokens[found.position])
            graph.edges.append(Edge(i, child, found.position, token, found.input, found.attention, found.share))
            edges.append(flow.variant(chains[i][0][0], found.z, f"edge {len(edges)}"))
    return graph, [*variants, *edges]


def _writers(flow: Flow, limits: Limits, allowed: Tensor | None) -> list[tuple[int, float]]:
    L, H, read = flow.family.cfg.n_layers, flow.family.cfg.n_heads, flow.prompt.read
    deltas = flow.deltas(read)[:-1]
    direct = flow.difference - flow.logit_difference(flow.final + deltas)
    if allowed is not None:
        direct = direct.masked_fill(~allowed.flatten().to(direct.device), -torch.inf)
    kept = direct.sort(descending=True, stable=True).indices[: max(limits.screened, limits.writers)]
    kept = kept[direct[kept].isfinite()].sort().values
    if len(kept) == 0:
        return []
    change = flow.difference - flow.logit_difference(flow.climb(read, deltas[kept], (kept // H).tolist(), L))
    order = change.sort(descending=True, stable=True).indices[: limits.writers].tolist()
    least = max(limits.floor, limits.writer_share * flow.difference)
    return [(int(kept[i]), float(change[i]) / flow.difference) for i in order if float(change[i]) >= least]


def _senders(flow: Flow, chain: list[tuple[Place, int, str]], limits: Limits, allowed: Tensor | None) -> list[_Found]:
    """The senders of the first head of a chain by which most of the answer goes, to either side."""
    (place, _, _) = chain[0]
    l, h, at = place
    H = flow.family.cfg.n_heads
    row = flow.acts.pattern(l, [at])[0, h]
    order = row[1:].sort(descending=True, stable=True).indices[: limits.positions] + 1
    attended = [p for p in order.tolist() if float(row[p]) >= limits.attention]
    senders = torch.arange(l * H, device=row.device)
    if allowed is not None:
        senders = senders[allowed.flatten()[: l * H].to(row.device)]
    token = flow.family.cfg.n_layers * H
    asked: list[tuple[int, str, list[int]]] = []
    for p in dict.fromkeys((*attended, at)):
        inputs = "kv" if p != at else "qkv" if p in attended else "q"
        asked.append((p, inputs, [*_screened(flow, place, p, inputs, senders, limits.screened), token]))
    positions = [p for p, _, chosen in asked for _ in chosen]
    changes = torch.cat([flow.deltas(p)[chosen] for p, _, chosen in asked])
    if l:
        layers = [-1 if i == token else i // H for _, _, chosen in asked for i in chosen]
        rows = flow.climb(positions, changes, layers, l)
    else:
        rows = flow.acts.at("resid_pre", 0, positions) + changes
    found: list[tuple[int, int, str, Tensor]] = []
    for (p, inputs, chosen), x in zip(asked, rows.split([len(chosen) for *_, chosen in asked]), strict=True):
        for name, z in flow.received(place, p, x, inputs).items():
            found += [(sender, p, name, z[i]) for i, sender in enumerate(chosen)]
    z = torch.stack([f[3] for f in found])
    share = (flow.difference - flow.carried(chain, z)) / flow.difference
    best = share.abs().sort(descending=True, stable=True).indices[: limits.senders].tolist()
    return [
        _Found(float(share[i]), z[i], found[i][0], found[i][1], found[i][2], float(row[found[i][1]]))
        for i in best
        if abs(float(share[i])) >= limits.share
    ]


def _screened(flow: Flow, place: Place, position: int, inputs: str, senders: Tensor, k: int) -> list[int]:
    """The k senders that change what a head writes most, with MLPs frozen, in order of (layer, head)."""
    l, h, _ = place
    if len(senders) <= k:
        return senders.tolist()
    x = flow.acts.at("resid_pre", l, [position]) + flow.deltas(position)[senders]
    base = flow.acts.at("z", l, [place[2]])[0]
    changes = [flow.family.head_change(l, h, base, z) for z in flow.received(place, position, x, inputs).values()]
    size = torch.stack([change.norm(dim=-1) for change in changes]).amax(0)
    return senders[size.sort(descending=True, stable=True).indices[:k]].sort().values.tolist()
