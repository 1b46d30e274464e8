"""A sweep over paths: what it costs, the two halves of each path, and the results."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from pycotmech._words import plural
from pycotmech.engine import planner
from pycotmech.engine.bases import Bases
from pycotmech.engine.budget import Batch, Budget, Pieces
from pycotmech.engine.evaluate import Evaluator
from pycotmech.engine.jitter import Jitter
from pycotmech.engine.joins import N_SELF_PATCHES, HeadJoins, self_patch_signs
from pycotmech.engine.memory import hint_at_budget
from pycotmech.engine.metrics import ExampleMetric
from pycotmech.engine.planner import Plan
from pycotmech.engine.row_edits import RowEdits
from pycotmech.engine.senders import Climbed, PathJoins, run_senders
from pycotmech.patching.chunks import Chunk, PairValues, run_chunks
from pycotmech.patching.path_layout import PathLayout, SenderBatch
from pycotmech.patching.path_results import PathSweep
from pycotmech.patching.question import PairQuestion
from pycotmech.patching.shared_runs import each_alone


@dataclass(frozen=True)
class SenderChunk(Chunk):
    """With its senders, batch after batch, and the pieces in which the paths of each batch are evaluated (none for the
    logits, which are read at the end of the senders' own rows)."""

    batches: list[tuple[SenderBatch, Pieces]]


def cut_paths(layout: PathLayout, budget: Budget) -> tuple[list[SenderChunk], Plan]:
    """How the paths are cut, and what they cost. The runs of the prompts are not counted."""
    cfg, paths, spans = budget.family.cfg, layout.paths, layout.spans
    sites, runs = (*layout.base_sites, *layout.source_sites), each_alone(len(spans))
    family, shared = budget.family, layout.shared
    prefix = 2 * budget.base_bytes(shared, 0, ())  # once for the call, once kept for calls to come
    sizes = [budget.base_bytes(span.read + 1, span.read + 1 - span.targets[0], sites) for span in spans]
    chunks, cut, climbed = [], [], planner.Work()
    in_flight = n_senders = hooked = 0

    def passing(a: int, b: int) -> int:
        """Bytes while the prompts of pairs a..b - 1 are run."""
        return prefix + sum(sizes[a:b]) + planner.pass_bytes(family, 2 * sum(span.read + 1 - shared for span in spans[a:b]))

    def rising(kept: int, rows: int) -> int:
        """Bytes of senders on their way up, or where they are read."""
        block = planner.senders_bytes(family, min(rows, family.sizes.row_block), len(paths.inputs))
        return kept + max(block, 0 if paths.layers else budget.logits_bytes(rows))

    for a, b in planner.cut_where(
        len(spans), lambda a, b: sum(sizes[a:b]) <= budget.room // 3 and passing(a, b) <= budget.room
    ):
        held, batches = prefix + sum(sizes[a:b]), []
        left = budget.room - held
        for senders in layout.batches(a, b, lambda kept, rows, left=left: kept <= left // 2 and rising(kept, rows) <= left):
            lengths, kept = layout.rows(a, senders.senders), int(layout.sender_bytes(a, senders.senders).sum())
            needed = max(passing(a, b), held + rising(kept, int(lengths.sum())))
            if needed > budget.room:
                raise budget.too_small(f"one sender of {int(lengths.max())} rows", needed, held)
            in_flight = max(in_flight, needed)
            batch = _batch(layout, a, b, senders, held + kept)
            pieces = budget.pieces(batch) if paths.layers and len(senders.paths) else []
            batches.append((senders, pieces))
            cut += [(batch, pieces)] if pieces else []
            climbed += _climbing(layout, a, senders, budget)
            n_senders += len(lengths)
            hooked += int((lengths + senders.senders.first).sum())  # the run that captures what arrives
        chunks.append(SenderChunk(a, runs[a:b], batches))
    if paths.layers:
        plan = budget.plan(cut, examples=len(spans))
    else:
        plan = Plan(
            examples=len(spans), variants=n_senders, chunks=sum(len(chunk.batches) for chunk in chunks), rows=n_senders,
            token_forwards=0.0, hooked_token_forwards=0.0, flop=0.0, bytes_in_flight=0, budget_bytes=budget.room,
        )  # fmt: skip
    plan = replace(
        plan,
        flop=plan.flop + climbed.flop,
        token_forwards=plan.token_forwards + climbed.layer_rows / cfg.n_layers,
        hooked_token_forwards=plan.hooked_token_forwards + hooked,
        bytes_in_flight=max(plan.bytes_in_flight, in_flight),
    )
    return chunks, plan


def _batch(layout: PathLayout, a: int, b: int, senders: SenderBatch, held: int) -> Batch:
    """The paths of senders, for the planner."""
    moves = torch.ones(len(senders.paths), dtype=torch.bool)
    return Batch(senders.paths, layout.rows(a, senders.paths), moves, [[span.read] for span in layout.spans[a:b]], held)


def _climbing(layout: PathLayout, a: int, batch: SenderBatch, budget: Budget) -> planner.Work:
    """The work of the first halves: senders on their way up."""
    cfg, paths, senders = budget.family.cfg, layout.paths, batch.senders
    row, rows = planner.layer_flop(cfg), layout.rows(a, senders)
    layers = max(paths.layers, default=cfg.n_layers) - senders.layer
    with_receivers = (torch.tensor(paths.layers).long() > senders.layer[:, None]).sum(1)
    attend = row.qkv + len(paths.inputs) * row.per_key * (senders.first + rows).double()
    flop = float((rows * (row.attn_out + with_receivers * attend)).sum())
    if not paths.freeze_mlps:
        flop += row.mlp * float((rows * layers).sum())
    if not paths.layers:  # what joins at receivers is counted there
        flop += len(senders) * planner.logits_flop(cfg, budget.columns)
    return planner.Work(float((rows * layers).sum()), flop)


def run_paths(question: PairQuestion, layout: PathLayout) -> PathSweep:
    """Runs all paths of all pairs."""
    chunks, plan = cut_paths(layout, question.budget)
    evaluator = question.evaluator(plan)
    found = run_chunks(
        question, layout, chunks, evaluator, lambda chunk, _, *held: _HeldChunk(layout, evaluator, chunk, *held).evaluate()
    )  # fmt: skip
    scaled = question.scale(found.clean, found.corrupted).measured(found.raw, found.self_patches, found.rounding)
    paths, cfg = layout.paths, question.family.cfg
    result = PathSweep(
        values=scaled.values.float().numpy(),
        raw=(found.raw[0] if question.single else found.raw).numpy(),
        effect=scaled.effect.masked_fill(~layout.reached, 0.0).float().numpy(),
        senders=tuple(paths.senders),
        receivers="logits" if paths.receivers is None else tuple(paths.receivers),
        inputs=paths.inputs,
        **question.facts(found.clean, found.corrupted),
        noise_floor=scaled.noise_floor,
        frozen_mlps=paths.freeze_mlps,
        per_query_head=paths.by_query,
        n_layers=cfg.n_layers,
        n_heads=cfg.n_heads,
        plan=plan,
    )
    result.warn_of_nan()
    return result


@dataclass(frozen=True)
class _HeldChunk:
    """Evaluates the paths of a chunk whose runs are held, and writes what is found to `out`."""

    layout: PathLayout
    evaluator: Evaluator
    chunk: SenderChunk
    bases: Bases
    metrics: list[ExampleMetric]
    out: PairValues

    @cached_property
    def signs(self) -> Tensor:
        return self_patch_signs(self.bases, self.layout.seed, self.chunk.number)

    def evaluate(self) -> Tensor:
        """Returns the final rows of the controls."""
        controls = [self._evaluate(batch, pieces) for batch, pieces in self.chunk.batches]
        base, streams, values, rows = (torch.cat(parts) for parts in zip(*controls, strict=True))
        found = []
        for e, i in enumerate(self.chunk.readers):
            of_pair = (base == e).nonzero().flatten()
            of_pair = of_pair[streams[of_pair].argsort(stable=True)]  # self-patches first
            self.out.self_patches[i] = values[of_pair[:N_SELF_PATCHES]]
            found.append(rows[of_pair.to(rows.device)])
        return torch.stack(found)

    def _evaluate(self, batch: SenderBatch, pieces: Pieces) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Writes the paths from these senders; returns base, stream of noise, metric, and final rows of the controls among
        them."""
        paths, evaluator, first, senders = self.layout.paths, self.evaluator, self.chunk.number, batch.senders
        joins = self._head_joins(batch.head, batch.number < 0, batch.streams)
        with hint_at_budget(f"{plural(len(senders), 'sender')} went through the layers"):
            climbed = run_senders(
                evaluator.family, self.bases, senders, joins.of(0, len(senders)), layers=paths.layers, inputs=paths.inputs,
                editable=joins.editable, freeze_mlps=paths.freeze_mlps, tick=evaluator.count,
                jitter=self._jitter(batch.streams),
            )  # fmt: skip
        if paths.receivers is None:
            values = torch.empty(len(senders), dtype=torch.float64)
            evaluator.measure(climbed.final, senders.base, self.metrics, values)
            asked, own = batch.number >= 0, batch.number < 0
            self.out.raw[first + senders.base[asked], batch.number[asked]] = values[asked]
            return senders.base[own], batch.streams[own], values[own], climbed.final[own.to(climbed.final.device)]
        n = batch.n_controls
        control = torch.arange(len(batch.paths)) < n
        controls = self._head_joins(batch.path_head[:n], control[:n], batch.control_streams)
        path_joins, edits = self._path_joins(climbed, batch, controls), RowEdits(evaluator.family, self.bases)
        jitter = self._jitter(torch.cat((batch.control_streams, torch.full((len(batch.paths) - n,), -1))))
        values, _, rows = evaluator.run(batch.paths, pieces, path_joins, edits, self.metrics, jitter, control)
        at = n
        for block in batch.blocks:
            size = len(block.senders) * len(block.heads)
            found = values[at : at + size].view(len(block.senders), len(block.heads))[:, block.column]  # [U, K]
            example, number = first + senders.base[block.senders, None], batch.number[block.senders, None]
            self.out.raw[example, block.input, number, block.receivers] = found
            at += size
        return batch.paths.base[:n], batch.control_streams, values[:n], rows

    def _jitter(self, streams: Tensor) -> Jitter:
        return Jitter.of_streams(self.evaluator.family, streams, self.layout.seed)

    def _head_joins(self, head: Tensor, control: Tensor, streams: Tensor) -> HeadJoins:
        """z of one head moves, at the positions asked for."""
        spans = [self.layout.spans[i] for i in self.chunk.readers]
        editable = [torch.isin(torch.arange(s.targets[0], s.read + 1), torch.tensor(s.targets)) for s in spans]
        return HeadJoins.on_device_of(
            self.layout.family, self.bases, control=control, moves=streams < 0, head=head,
            position=torch.full_like(head, -1), editable=torch.cat(editable), signs=self.signs,
        )  # fmt: skip

    def _path_joins(self, climbed: Climbed, batch: SenderBatch, controls: HeadJoins) -> PathJoins:
        moved = batch.of_blocks(lambda block: block.moved).numpy()
        sender, input = batch.of_blocks(lambda block: block.senders[:, None]), batch.of_blocks(lambda block: block.input)
        tensors = (t.to(self.layout.family.device) for t in (sender, input, batch.path_head, batch.paths.first))
        return PathJoins(self.layout.family, self.bases, climbed, controls, moved, *tensors)
