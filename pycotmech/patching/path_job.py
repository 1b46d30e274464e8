"""Path patching as a job: which paths there are, how they are cut to fit, the two halves of each, the metric of every path."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pycotmech.engine import planner
from pycotmech.engine.bases import PairRuns, Stage, common_prefix
from pycotmech.engine.evaluate import SELF_PATCH_SITES, Evaluator, HeadJoins, self_patch_signs, self_patches
from pycotmech.engine.metrics import Metric
from pycotmech.engine.row_edits import PER_QUERY, RowEdits
from pycotmech.engine.rows import Variants
from pycotmech.engine.senders import Climbed, PathJoins, climb
from pycotmech.model.config import ModelConfig
from pycotmech.model.families.base import Family
from pycotmech.model.prefixes import Prefixes
from pycotmech.patching.edits import reaches
from pycotmech.patching.pairs import Pair
from pycotmech.patching.shared_runs import each_alone, example_metrics, run_hosts


@dataclass(frozen=True)
class Paths:
    """What is asked, checked: every sender (layer, head) to every receiver, by each input.

    receivers: None: the logits. by_query: k and v of a receiver are replaced as its own query head reads them, not for the
    group that shares them.
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

    def columns(self, cfg: ModelConfig, layer: int, input: str) -> tuple[Tensor, Tensor, Tensor, int]:
        """Of the receivers in a layer: their numbers [K], the edit that each stands for [K], the first query head of each
        edit [C], and how many query heads an edit moves."""
        assert self.receivers is not None
        numbers = [i for i, (l, _) in enumerate(self.receivers) if l == layer]
        heads = torch.tensor([self.receivers[i][1] for i in numbers])
        group = 1 if input == "q" or self.by_query else cfg.group
        first, column = (heads // group * group).unique(return_inverse=True)
        return torch.tensor(numbers), column, first, group

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
class Span:
    """Of one example: where the metric is read, and where senders are replaced (ascending)."""

    read: int
    targets: list[int]


@dataclass(frozen=True)
class Block:
    """The paths of one input of one layer's receivers, in order of (sender, edit): U senders, C edits, K receivers."""

    layer: int
    input: int
    senders: Tensor  # [U] rank in the group
    heads: Tensor  # [C] first query head of each edit
    group: int
    receivers: Tensor  # [K] number of the receiver
    column: Tensor  # [K] its edit


@dataclass(frozen=True)
class Group:
    """Senders that go up together, ascending by layer, and the paths from them behind `n_self_patches` self-patches."""

    senders: Variants
    head: Tensor  # [U]
    number: Tensor  # [U] of the sender as it was asked for; -1 for a self-patch
    blocks: list[Block]
    paths: Variants  # [N], self-patches first
    path_head: Tensor  # [N]
    n_self_patches: int

    def lengths(self, read: Tensor) -> Tensor:
        """Rows of each path [N]."""
        return read[self.paths.base] - self.paths.first + 1

    def of_blocks(self, value) -> Tensor:
        """One number for each path [N], 0 for self-patches: value(block) broadcasts to [U, C]."""
        parts = [torch.zeros(self.n_self_patches, dtype=torch.long)]
        for b in self.blocks:
            parts.append(torch.as_tensor(value(b)).expand(len(b.senders), len(b.heads)).flatten())
        return torch.cat(parts)


@dataclass
class PathOutcome:
    """raw [B, inputs, senders, receivers] or [B, senders] float64; self-patches [B, n]; the metric of both runs [B]."""

    raw: Tensor
    self_patches: list[Tensor]
    clean: list[float]
    corrupted: list[float]
    plan: planner.Plan


@dataclass
class PathJob:
    """All paths of all examples: cut into chunks of examples, each into groups of senders, each into pieces of paths."""

    family: Family
    prefixes: Prefixes | None  # None: nothing will be run
    paths: Paths
    spans: list[Span]
    seed: int
    evaluator: Evaluator

    # ---- what there is to do -----------------------------------------------------------------------------------------

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """What the base run keeps."""
        return (
            *SELF_PATCH_SITES,
            "attn_out",
            *(["q"] if self.paths.layers else []),
            *(["mlp_out"] if self.paths.freeze_mlps else []),
        )

    @cached_property
    def sizes(self) -> list[int]:
        """Bytes of each example's base run."""
        return [self.evaluator.base_bytes(s.read + 1, s.read + 1 - s.targets[0], (*self.sites, "z")) for s in self.spans]

    @cached_property
    def chunks(self) -> list[tuple[int, int]]:
        return planner.cut(self.sizes, max(1, self.evaluator.budget // 3))

    @cached_property
    def groups(self) -> list[list[Group]]:
        """Of each chunk."""
        return [self._groups(a, b) for a, b in self.chunks]

    def _groups(self, a: int, b: int) -> list[Group]:
        spans, paths, n_layers = self.spans[a:b], self.paths, self.family.cfg.n_layers
        top = max(paths.layers, default=n_layers)
        found = []  # layer, head, base, first, number
        for e, span in enumerate(spans):
            asked = [(l, h, e, span.targets[0], i) for i, (l, h) in enumerate(paths.senders) if l < top]
            found.append(torch.tensor(asked))
        if paths.receivers is None:
            own = self._self_patches(a, spans)
            found.append(torch.cat((own, torch.full((len(own), 1), -1)), 1))
        found = torch.cat(found)
        layer, head, base, first, number = found[torch.argsort(found[:, 0], stable=True)].T
        senders = Variants(base, layer, torch.full_like(layer, int(Stage.MID)), first)
        limit = max(1, self.evaluator.budget // 6)
        cuts = planner.cut(self._sender_bytes(senders, spans).tolist(), limit)
        reach = [paths.reach(self.family.cfg, span) for span in spans]
        return [self._group(a, spans, reach, senders, head, number, c, d) for c, d in cuts]

    def _self_patches(self, a: int, spans: Sequence[Span]) -> Tensor:
        """(layer, head, base, first position) of those of a chunk of examples that begins with a: [n, 4]."""
        found = []
        for e, span in enumerate(spans):
            heads = self_patches(self.family.cfg, self.seed, a + e)
            found.append(torch.cat((heads, torch.tensor([e, span.targets[0]]).expand(len(heads), 2)), 1))
        return torch.cat(found)

    def _sender_bytes(self, senders: Variants, spans: Sequence[Span]) -> Tensor:
        """What each sender keeps on its way up: its residual rows, and z of all heads in the receivers' layers above."""
        cfg = self.family.cfg
        rows = torch.tensor([s.read + 1 for s in spans])[senders.base] - senders.first
        above = (torch.tensor(self.paths.layers).long() > senders.layer[:, None]).sum(1)
        each = len(self.paths.inputs) * cfg.n_heads * cfg.d_head * self.family.dtype.itemsize
        return rows * (planner.row_bytes(self.family) + above * each)

    def _group(
        self,
        a: int,
        spans: Sequence[Span],
        reach: list[Tensor],
        senders: Variants,
        head: Tensor,
        number: Tensor,
        c: int,
        d: int,
    ) -> Group:
        """The senders ranked c..d - 1 of a chunk that begins with example a."""
        which = torch.arange(c, d)
        senders, head, number = senders[which], head[which], number[which]
        at = [self._self_patches(a, spans) if self.paths.layers and c == 0 else torch.zeros(0, 4, dtype=torch.long)]
        blocks = []
        for l in self.paths.layers:
            below = torch.arange(int(torch.searchsorted(senders.layer, l)))
            for i, input in enumerate(self.paths.inputs):
                receivers, column, heads, group = self.paths.columns(self.family.cfg, l, input)
                reached = torch.tensor([bool(r[i][:, receivers].any()) for r in reach])
                u = below[reached[senders.base[below]]]
                if len(u):
                    blocks.append(Block(l, i, u, heads, group, receivers, column))
                    part = (torch.full((), l), heads, senders.base[u, None], senders.first[u, None])
                    at.append(torch.stack([t.expand(len(u), len(heads)).flatten() for t in part], 1))
        layer, path_head, base, first = torch.cat(at).T
        paths = Variants(base, layer, torch.full_like(layer, int(Stage.MID)), first)
        return Group(senders, head, number, blocks, paths, path_head, len(at[0]))

    # ---- what it costs -----------------------------------------------------------------------------------------------

    def plan(self, logits_read: int) -> planner.Plan:
        """logits_read: how many logits the metric needs of each path. The runs of the prompts are not counted."""
        cfg, evaluator = self.family.cfg, self.evaluator
        row = planner.layer_flop(cfg)
        top = max(self.paths.layers, default=cfg.n_layers)
        flop = climbing = finals = hooked = 0.0
        in_flight = 0
        for (a, b), groups in zip(self.chunks, self.groups, strict=True):
            read = torch.tensor([s.read for s in self.spans[a:b]])
            for g in groups:
                rows = read[g.senders.base] - g.senders.first + 1
                climbing += float((rows * (top - g.senders.layer)).sum())
                above = torch.tensor(self.paths.layers).long() > g.senders.layer[:, None]
                keys = (read[g.senders.base] + 1).double()
                attend = row.qkv + len(self.paths.inputs) * row.per_key * keys
                flop += float((rows * (row.attn_out + above.sum(1) * attend)).sum())
                if not self.paths.freeze_mlps:
                    flop += row.mlp * float((rows * (top - g.senders.layer)).sum())
                finals += 0 if self.paths.layers else len(g.senders)  # what joins at receivers is in the staircase's plan
                hooked += float((read[g.senders.base] + 1).sum())  # the run that captures what arrives
                in_flight = max(in_flight, int(self._sender_bytes(g.senders, self.spans[a:b]).sum()))
        flop += finals * planner.logits_flop(cfg, logits_read)
        base = max(sum(self.sizes[a:b]) for a, b in self.chunks)
        if self.paths.layers:
            tables, pieces = [], []
            for (a, b), groups in zip(self.chunks, self.groups, strict=True):
                read = torch.tensor([s.read for s in self.spans[a:b]])
                tables += [(g.paths, g.lengths(read)) for g in groups]
                pieces += [evaluator.pieces(g.lengths(read)) for g in groups]
            tables, pieces = zip(*((t, p) for t, p in zip(tables, pieces, strict=True) if p), strict=True)
            columns = None if logits_read == cfg.d_vocab else logits_read
            plan = evaluator.plan(tables, pieces, base, len(self.spans), columns=columns)
        else:
            count = sum(len(g.senders) for groups in self.groups for g in groups)
            plan = planner.Plan(
                examples=len(self.spans), variants=count, chunks=sum(map(len, self.groups)), rows=count, token_forwards=0.0,
                hooked_token_forwards=0.0, flop=0.0, bytes_in_flight=base + planner.block_bytes(self.family),
                budget_bytes=evaluator.budget,
            )  # fmt: skip
        evaluator.done, evaluator.total = 0, max(1, int(plan.token_forwards * cfg.n_layers + climbing))
        return dataclasses.replace(
            plan,
            flop=plan.flop + flop,
            token_forwards=plan.token_forwards + climbing / cfg.n_layers,
            hooked_token_forwards=plan.hooked_token_forwards + hooked,
            bytes_in_flight=plan.bytes_in_flight + in_flight,
        )

    # ---- doing it ----------------------------------------------------------------------------------------------------

    def run(self, pairs: list[Pair], direction: str, metric: Metric) -> PathOutcome:
        read = 2 if metric == "logit_diff" else self.family.cfg.d_vocab
        prompts = [t[: p.read + 1] for p in pairs for t in (p.clean, p.corrupted)]
        shape = [len(self.paths.senders)]
        if self.paths.receivers is not None:
            shape = [len(self.paths.inputs), *shape, len(self.paths.receivers)]
        out = PathOutcome(torch.empty(len(pairs), *shape, dtype=torch.float64), [], [], [], self.plan(read))
        assert self.prefixes is not None
        past = self.prefixes.key_values(prompts[0][: common_prefix(prompts)], self.evaluator.budget)
        for (a, b), groups in zip(self.chunks, self.groups, strict=True):
            first = [s.targets[0] for s in self.spans[a:b]]
            runs = run_hosts(
                self.family, pairs[a:b], each_alone(b - a), direction, past, first, self.sites, ("z",)
            )  # fmt: skip
            metrics, both = example_metrics(self.evaluator, metric, pairs[a:b], direction, runs)
            out.clean += [clean for clean, _ in both]
            out.corrupted += [corrupted for _, corrupted in both]
            for e, (clean, corrupted) in enumerate(both):  # where no path leads to what is read, the run is the base
                out.raw[a + e] = corrupted if direction == "denoise" else clean
            controls: list[tuple[Tensor, Tensor]] = []
            for group in groups:
                controls.append(self._run_group(a, b, runs, group, metrics, out.raw[a:b]))
            base, values = (torch.cat(t) for t in zip(*controls, strict=True))
            out.self_patches += [values[base == e] for e in range(b - a)]
        return out

    def _run_group(self, a: int, b: int, runs: PairRuns, group: Group, metrics, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Writes the paths of one group to raw [examples, ...]; returns base and metric of its self-patches."""
        bases, paths, evaluator = runs.bases, self.paths, self.evaluator
        signs = self_patch_signs(bases, self.seed, a)
        senders = self._head_joins(bases, a, b, group.head, group.number < 0, signs)
        climbed = climb(
            self.family, bases, group.senders, senders.of(0, len(group.senders)), layers=paths.layers, inputs=paths.inputs,
            editable=senders.editable, freeze_mlps=paths.freeze_mlps, tick=evaluator.tick,
        )  # fmt: skip
        if paths.receivers is None:
            values = torch.empty(len(group.senders), dtype=torch.float64)
            evaluator.measure(climbed.final, group.senders.base, metrics, values)
            asked, own = group.number >= 0, group.number < 0
            raw[group.senders.base[asked], group.number[asked]] = values[asked]
            return group.senders.base[own], values[own]
        n = group.n_self_patches
        controls = self._head_joins(bases, a, b, group.path_head[:n], torch.ones(n, dtype=torch.bool), signs)
        joins = self._path_joins(bases, climbed, group, controls)
        pieces = evaluator.pieces(group.lengths(bases.read))
        values, _ = evaluator.run(group.paths, pieces, joins, RowEdits(self.family, bases), metrics)
        at = n
        for block in group.blocks:
            size = len(block.senders) * len(block.heads)
            found = values[at : at + size].view(len(block.senders), len(block.heads))[:, block.column]
            example, number = group.senders.base[block.senders, None], group.number[block.senders, None]
            raw[example, block.input, number, block.receivers] = found
            at += size
        return group.paths.base[:n], values[:n]

    def _head_joins(self, bases, a: int, b: int, head: Tensor, control: Tensor, signs: Tensor) -> HeadJoins:
        """z of one head moves, at the positions asked for."""
        editable = [torch.isin(torch.arange(s.targets[0], s.read + 1), torch.tensor(s.targets)) for s in self.spans[a:b]]
        return HeadJoins.on_device_of(
            self.family, bases, control=control, moves=torch.ones_like(control), head=head,
            position=torch.full_like(head, -1), editable=torch.cat(editable), signs=signs,
        )  # fmt: skip

    def _path_joins(self, bases, climbed: Climbed, group: Group, controls: HeadJoins) -> PathJoins:
        each = (
            group.of_blocks(lambda b: b.senders[:, None]),
            group.of_blocks(lambda b: b.input),
            group.path_head,
            group.paths.first,
        )
        moved = group.of_blocks(lambda b: b.group).numpy()
        return PathJoins(self.family, bases, climbed, controls, moved, *(t.to(self.family.device) for t in each))
