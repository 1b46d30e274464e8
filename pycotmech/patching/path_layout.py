"""Which direct paths there are between senders and receivers, and how they are cut to be run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pycotmech.engine import planner
from pycotmech.engine.bases import Stage
from pycotmech.engine.joins import SELF_PATCH_SITES, controls_of
from pycotmech.engine.row_edits import PER_QUERY
from pycotmech.engine.rows import Variants
from pycotmech.model.config import ModelConfig
from pycotmech.model.families.base import Family
from pycotmech.patching.edits import reaches


@dataclass(frozen=True)
class Span:
    """Of one pair: where the metric is read, and where senders are replaced (ascending)."""

    read: int
    targets: list[int]


@dataclass(frozen=True)
class Paths:
    """What is asked, checked: every sender (layer, head) to every receiver, by each input.

    receivers: None: the logits. by_query: k and v of a receiver are replaced as its own query head reads them, not for the
    query heads that share them.
    """

    senders: list[tuple[int, int]]
    receivers: list[tuple[int, int]] | None
    inputs: tuple[str, ...]
    by_query: bool
    freeze_mlps: bool

    @cached_property
    def layers(self) -> list[int]:
        """Those with receivers, ascending; empty for the logits."""
        return sorted({l for l, _ in self.receivers or ()})

    @property
    def shape(self) -> tuple[int, ...]:
        """[inputs, senders, receivers], or [senders] for the logits."""
        if self.receivers is None:
            return (len(self.senders),)
        return (len(self.inputs), len(self.senders), len(self.receivers))

    def columns(self, cfg: ModelConfig, layer: int, input: str) -> tuple[Tensor, Tensor, Tensor, int]:
        """Of the receivers in a layer: their numbers [K], the edit that each belongs to [K], the first query head of each
        edit [C], and how many query heads an edit moves."""
        assert self.receivers is not None
        numbers = [i for i, (l, _) in enumerate(self.receivers) if l == layer]
        heads = torch.tensor([self.receivers[i][1] for i in numbers])
        moved = 1 if input == "q" or self.by_query else cfg.group
        first, column = (heads // moved * moved).unique(return_inverse=True)
        return torch.tensor(numbers), column, first, moved

    def reach(self, cfg: ModelConfig, span: Span) -> Tensor:
        """Which paths can change what is read: bool [inputs, senders, receivers], or [senders] for the logits."""
        positions = torch.tensor(span.targets)
        if self.receivers is None:
            return torch.full((len(self.senders),), span.read in span.targets)
        sender, receiver = (torch.tensor(heads)[:, 0] for heads in (self.senders, self.receivers))
        below = sender[:, None] < receiver
        out = []
        for input in self.inputs:
            site = PER_QUERY.get(input, input)
            ok = {l: bool(reaches(site, l == cfg.n_layers - 1, positions, span.read).any()) for l in self.layers}
            out.append(below & torch.tensor([ok[l] for l, _ in self.receivers]))
        return torch.stack(out)


@dataclass(frozen=True)
class PathBlock:
    """The paths by one input to one layer's receivers, in order of (sender, edit): U senders, C edits, K receivers."""

    layer: int
    input: int
    senders: Tensor  # [U] rank in the batch of senders
    heads: Tensor  # [C] first query head of each edit
    moved: int  # how many query heads an edit moves
    receivers: Tensor  # [K] number of the receiver
    column: Tensor  # [K] its edit


@dataclass(frozen=True)
class SenderBatch:
    """Senders that go up together, ascending by layer, and the paths from them, after `n_controls` controls."""

    senders: Variants
    head: Tensor  # [U]
    number: Tensor  # [U] of the sender as it was asked for; -1 for a control
    streams: Tensor  # [U] of the noise of the jittered copies among them; -1: none
    blocks: list[PathBlock]
    paths: Variants  # [N], controls first
    path_head: Tensor  # [N]
    control_streams: Tensor  # [n_controls] of noise, of the controls that go with the paths; -1: self-patches

    @property
    def n_controls(self) -> int:
        return len(self.control_streams)

    def of_blocks(self, value: Callable[[PathBlock], Tensor | int]) -> Tensor:
        """One number for each path [N], 0 for controls: value(block) broadcasts to [U, C]."""
        parts = [torch.zeros(self.n_controls, dtype=torch.long)]
        for b in self.blocks:
            parts.append(torch.as_tensor(value(b)).expand(len(b.senders), len(b.heads)).flatten())
        return torch.cat(parts)


@dataclass(frozen=True)
class PathLayout:
    """All paths of all pairs. shared: how many tokens all prompts begin with."""

    family: Family
    paths: Paths
    spans: list[Span]
    shared: int
    seed: int

    @property
    def base_sites(self) -> tuple[str, ...]:
        receivers, frozen = ("q",) if self.paths.layers else (), ("mlp_out",) if self.paths.freeze_mlps else ()
        return (*SELF_PATCH_SITES, "attn_out", *receivers, *frozen)

    @property
    def source_sites(self) -> tuple[str, ...]:
        return ("z",)

    @cached_property
    def measured(self) -> Tensor:
        """Which results were asked for: all of them."""
        return torch.ones(self.paths.shape, dtype=torch.bool)

    def kept_from(self, i: int) -> int:
        return self.spans[i].targets[0]

    @property
    def reached(self) -> Tensor:
        """Which paths can change what is read of any pair, in the shape of the results."""
        return torch.stack([self.paths.reach(self.family.cfg, span) for span in self.spans]).any(0)

    def rows(self, a: int, senders: Variants) -> Tensor:
        """Rows of each sender [U] of a chunk whose first pair is a."""
        return torch.tensor([span.read for span in self.spans])[a + senders.base] - senders.first + 1

    def sender_bytes(self, a: int, senders: Variants) -> Tensor:
        """What each sender keeps on its way up: its residual rows, and z of all heads in the receivers' layers above."""
        cfg = self.family.cfg
        above = (torch.tensor(self.paths.layers).long() > senders.layer[:, None]).sum(1)
        layer = len(self.paths.inputs) * cfg.n_heads * cfg.d_head * self.family.dtype.itemsize
        return self.rows(a, senders) * (planner.row_bytes(self.family) + above * layer)

    def batches(self, a: int, b: int, fits: Callable[[int, int], bool]) -> list[SenderBatch]:
        """Those of pairs a..b - 1. fits: whether senders that keep so many bytes in so many rows may go up together (one alone
        always may)."""
        paths, n_layers = self.paths, self.family.cfg.n_layers
        top = max(paths.layers, default=n_layers)
        found = []  # layer, head, base, first, number
        for e, span in enumerate(self.spans[a:b]):
            asked = [(l, h, e, span.targets[0], i, -1) for i, (l, h) in enumerate(paths.senders) if l < top]
            found.append(torch.tensor(asked))
        if paths.receivers is None:
            own = self._controls(a, b)
            found.append(torch.cat((own[:, :4], torch.full((len(own), 1), -1), own[:, 4:]), 1))
        found = torch.cat(found)
        layer, head, base, first, number, streams = found[torch.argsort(found[:, 0], stable=True)].T
        senders = Variants(base, layer, torch.full_like(layer, int(Stage.MID)), first)
        kept, rows = ([0, *t.cumsum(0).tolist()] for t in (self.sender_bytes(a, senders), self.rows(a, senders)))
        cuts = planner.cut_where(len(senders), lambda c, d: fits(kept[d] - kept[c], rows[d] - rows[c]))
        reach = [paths.reach(self.family.cfg, span) for span in self.spans[a:b]]
        return [
            self._batch(reach, senders[at], head[at], number[at], streams[at], self._controls(a, b) if at[0] == 0 else None)
            for at in (torch.arange(c, d) for c, d in cuts)
        ]

    def _controls(self, a: int, b: int) -> Tensor:
        """(layer, head, base, first position, stream of noise) of the controls of pairs a..b - 1: [n, 5]."""
        found = []
        for e in range(b - a):
            own = controls_of(self.family.cfg, self.seed, a + e)
            where = torch.tensor([e, self.spans[a + e].targets[0]]).expand(len(own), 2)
            found.append(torch.cat((own[:, :2], where, own[:, 2:]), 1))
        return torch.cat(found)

    def _batch(
        self,
        reach: Sequence[Tensor],
        senders: Variants,
        head: Tensor,
        number: Tensor,
        streams: Tensor,
        own: Tensor | None,
    ) -> SenderBatch:
        """reach: which paths of each pair can change what is read. own: controls that go with the paths."""
        if own is None or not self.paths.layers:
            own = torch.zeros(0, 5, dtype=torch.long)
        joins, blocks = [own[:, :4]], []
        for l in self.paths.layers:
            below = torch.arange(int(torch.searchsorted(senders.layer, l)))
            for i, input in enumerate(self.paths.inputs):
                receivers, column, heads, moved = self.paths.columns(self.family.cfg, l, input)
                reached = torch.tensor([bool(r[i][:, receivers].any()) for r in reach])
                u = below[reached[senders.base[below]]]
                if len(u):
                    blocks.append(PathBlock(l, i, u, heads, moved, receivers, column))
                    part = (torch.full((), l), heads, senders.base[u, None], senders.first[u, None])
                    joins.append(torch.stack([t.expand(len(u), len(heads)).flatten() for t in part], 1))
        layer, path_head, base, first = torch.cat(joins).T
        paths = Variants(base, layer, torch.full_like(layer, int(Stage.MID)), first)
        return SenderBatch(senders, head, number, streams, blocks, paths, path_head, own[:, 4])
