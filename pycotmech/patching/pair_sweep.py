"""A sweep over pairs: cut into chunks that fit the budget, run, collected, and put on the scale of its results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor

from pycotmech.engine import planner
from pycotmech.engine.bases import Bases, sequences_run
from pycotmech.engine.budget import Batch, Pieces
from pycotmech.engine.evaluate import Evaluator
from pycotmech.engine.jitter import Jitter
from pycotmech.engine.joins import N_SELF_PATCHES, HeadJoins, self_patch_signs
from pycotmech.engine.metrics import ExampleMetric
from pycotmech.engine.planner import Plan
from pycotmech.engine.row_edits import RowEdits, SourceValues
from pycotmech.model.prompts import Tokens
from pycotmech.patching.chunks import Chunk, PairValues, run_chunks
from pycotmech.patching.pair_layout import PairLayout, VariantTable, lay_out_pairs
from pycotmech.patching.position_groups import PositionGroups
from pycotmech.patching.question import PairOptions, PairQuestion, ask
from pycotmech.patching.results import Sweep

if TYPE_CHECKING:
    from pycotmech.model import Model


@dataclass(frozen=True)
class TableChunk(Chunk):
    """With the variants of its runs, and the pieces in which these are evaluated."""

    table: VariantTable
    pieces: Pieces


@dataclass(frozen=True)
class PairSweep:
    """What is asked and the variants that answer it; nothing has been run."""

    question: PairQuestion
    layout: PairLayout

    def cut(self) -> tuple[list[TableChunk], Plan]:
        """How the sweep is cut, and what it will do. Raises ValueError if one pair with one variant does not fit."""
        question, layout, budget = self.question, self.layout, self.question.budget
        family, runs, shared = question.family, layout.runs, len(question.shared)
        sites = dict.fromkeys((*layout.base_sites, *layout.source_sites))  # a pass keeps them of both runs
        prefix = 2 * budget.base_bytes(shared, 0, ())  # once for the call, once kept for calls to come
        prompts, in_prefix = (
            planner.prefix_work(family, shared),
            prefix + planner.pass_bytes(family, min(shared, family.sizes.segment)),
        )
        lengths = [question.pairs[run.host].read + 1 for run in runs]
        sizes = [
            budget.base_bytes(length, 2 * (length - layout.kept_from(run.host)), sites)
            for run, length in zip(runs, lengths, strict=True)
        ]

        def fits(a: int, b: int) -> bool:
            held, rows = sum(sizes[a:b]), 2 * sum(length - shared for length in lengths[a:b])
            return held <= budget.room // 3 and prefix + held + planner.pass_bytes(family, rows) <= budget.room

        chunks, batches = [], []
        for a, b in planner.cut_where(len(runs), fits):
            held, passing = prefix + sum(sizes[a:b]), in_prefix
            _, passes = sequences_run(*question.prompts(run.host for run in runs[a:b]), shared, family.sizes.pass_rows)
            for sequences in passes:
                prompts += planner.prompt_work(family, sequences)
                passing = max(passing, held + planner.pass_bytes(family, sum(end - start for start, end in sequences)))
            table = layout.table(runs[a:b])
            reads = [[question.pairs[i].read for i in run.readers] for run in runs[a:b]]
            batch = Batch(table.variants, table.lengths, layout.moves(table), reads, held, passing)
            pieces = budget.pieces(batch)
            chunks.append(TableChunk(a, runs[a:b], table, pieces))
            batches.append((batch, pieces))
        return chunks, budget.plan(batches, examples=len(question.pairs), prompts=prompts)

    def run(self) -> Sweep:
        """One result over all pairs."""
        values, plan = self._run()
        return self._result(values, range(len(self.question.pairs)), plan, self.question.single)

    def run_each(self) -> list[Sweep]:
        """A result for each pair."""
        values, plan = self._run()
        return [self._result(values.of(i), [i], plan, True) for i in range(len(self.question.pairs))]

    def _run(self) -> tuple[PairValues, Plan]:
        chunks, plan = self.cut()
        evaluator = self.question.evaluator(plan)
        return run_chunks(self.question, self.layout, chunks, evaluator, partial(_evaluate, self.layout, evaluator)), plan

    def _result(self, found: PairValues, which: Sequence[int], plan: Plan, single: bool) -> Sweep:
        """found: of the pairs numbered `which` alone."""
        question, layout = self.question, self.layout
        scaled = question.scale(found.clean, found.corrupted).measured(found.raw, found.self_patches, found.rounding)
        # An edit that reaches nothing has no effect, not that of rounding.
        reached = torch.stack([layout.reached_parts(i) for i in which]).any(0)
        effect = scaled.effect.masked_fill(~reached[..., None] & layout.measured, 0.0)
        logits = found.logits

        def of_examples(x: Tensor) -> Tensor:
            return layout.shaped(x[0], 1) if single else layout.shaped(x, 2)

        result = Sweep(
            values=layout.shaped(scaled.values, 1).float().numpy(),
            raw=of_examples(found.raw).numpy(),
            effect=layout.shaped(effect, 1).float().numpy(),
            **question.facts(found.clean, found.corrupted),
            noise_floor=scaled.noise_floor,
            site=layout.site,
            by_position=layout.by_position,
            groups=layout.group_names,
            plan=plan,
            logits=None if logits is None else of_examples(logits),
        )
        result.warn_of_nan(layout.shaped(layout.measured, 1).numpy())
        return result


def prepare_sweep(
    model: Model,
    clean: Tokens | Sequence[Tokens],
    corrupted: Tokens | Sequence[Tokens],
    *,
    site: str,
    places: list[tuple[int, int]],
    positions: Sequence[int] | None = None,
    by_position: bool = False,
    groups: PositionGroups | Sequence[PositionGroups] | None = None,
    **options: Unpack[PairOptions],
) -> PairSweep:
    """A sweep over places that are already checked. Raises ValueError or TypeError naming the argument that is wrong."""
    question = ask(model, clean, corrupted, **options)
    layout = lay_out_pairs(
        model.cfg,
        question.pairs,
        site=site,
        places=places,
        positions=positions,
        by_position=by_position,
        groups=groups,
        seed=question.seed,
    )
    return PairSweep(question, layout)


def _evaluate(
    layout: PairLayout,
    evaluator: Evaluator,
    chunk: TableChunk,
    bases: Bases,
    metrics: list[ExampleMetric],
    out: PairValues,
) -> Tensor:
    """Evaluates the variants of a chunk, and writes what is found to `out`. Returns the final rows of the controls."""
    family, table = evaluator.family, chunk.table
    joins = _joins(layout, evaluator, chunk, bases)
    edits = RowEdits(family, bases, table.edits, SourceValues(family, bases))
    jitter = Jitter.of_streams(family, table.streams, layout.seed)
    values, logits, rows = evaluator.run(table.variants, chunk.pieces, joins, edits, metrics, jitter, table.control)
    read = bases.readings(table.variants.base)
    control = table.control[read.variant]
    for number, i in enumerate(chunk.readers):
        of_pair = read.number == number
        out.self_patches[i] = values[of_pair & control][:N_SELF_PATCHES]
        chosen = (of_pair & ~control).nonzero().flatten()
        variant = read.variant[chosen]
        where = (table.variants.layer[variant], table.part[variant], table.head[variant])
        out.raw[i][where] = values[chosen]
        if logits is not None and out.logits is not None:
            out.logits[i][where] = logits[chosen]
    of_control = read.number[control]
    return torch.stack([rows[(of_control == e).nonzero().flatten().to(rows.device)] for e in range(len(chunk.readers))])


def _joins(layout: PairLayout, evaluator: Evaluator, chunk: TableChunk, bases: Bases) -> HeadJoins:
    editable, labels = [], []
    for i in (run.host for run in chunk.runs):
        kept = torch.arange(layout.kept_from(i), layout.pairs[i].read + 1)
        editable.append(torch.isin(kept, torch.tensor(layout.targets[i])))
        labels.append(layout.labels[i][kept])
    table = chunk.table
    return HeadJoins.on_device_of(
        evaluator.family,
        bases,
        control=table.control,
        moves=layout.moves(table),
        head=table.head,
        position=table.part,
        editable=torch.cat(editable),
        signs=self_patch_signs(bases, layout.seed, chunk.number),
        labels=torch.cat(labels),
    )
