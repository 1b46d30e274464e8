"""A sweep over pairs: cut into chunks that fit the budget, run, collected, and put on the scale of its results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor

from pycotmech._words import plural
from pycotmech.engine import planner
from pycotmech.engine.bases import Bases, common_prefix, sequences_run, z_of_prompts
from pycotmech.engine.budget import Batch, Pieces
from pycotmech.engine.evaluate import Evaluator
from pycotmech.engine.jitter import Jitter
from pycotmech.engine.joins import N_SELF_PATCHES, SELF_PATCH_SITES, HeadJoins, self_patch_signs
from pycotmech.engine.memory import hint_at_budget
from pycotmech.engine.metrics import ExampleMetric
from pycotmech.engine.planner import Plan
from pycotmech.engine.row_edits import RowEdits, SourceValues
from pycotmech.model.packed import KeyValues, site_bytes
from pycotmech.model.prompts import Tokens
from pycotmech.patching.chunks import Chunk, PairValues, run_chunks
from pycotmech.patching.control_results import Controls
from pycotmech.patching.controls import ControlChoice, ControlRequest, ControlSource, ask_controls
from pycotmech.patching.pair_layout import PairLayout, VariantTable, lay_out_pairs
from pycotmech.patching.position_groups import PositionGroups
from pycotmech.patching.question import PairOptions, PairQuestion, ask
from pycotmech.patching.results import Sweep
from pycotmech.patching.sham import N_SHAM, SHAM_PIECES, sham_change, sham_variants
from pycotmech.patching.shared_runs import SharedRun

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
        others, begun = layout.others(runs), self.begun_by_others
        left = [0 if other is None else len(other) - begun for other in others]  # rows of the controls' prompts
        z = site_bytes(family, "z") * family.cfg.n_layers
        if any(left):
            sizes = [size + z * (n - layout.kept_from(r.host)) for size, n, r in zip(sizes, lengths, runs, strict=True)]

        def fits(a: int, b: int) -> bool:
            held, rows = sum(sizes[a:b]), 2 * sum(length - shared for length in lengths[a:b])
            passing = planner.pass_bytes(family, max(rows, sum(left[a:b])))
            return held <= budget.room // 3 and prefix + held + passing <= budget.room

        chunks, batches = [], []
        for a, b in planner.cut_where(len(runs), fits):
            held, passing = prefix + sum(sizes[a:b]), in_prefix
            _, passes = sequences_run(*question.prompts(run.host for run in runs[a:b]), shared, family.sizes.pass_rows)
            if any(left[a:b]):
                passes.append([(begun, begun + n) for n in left[a:b] if n])
            sham = [run for run in runs[a:b] if layout.has_sham(run)]
            held += max((self._sham_bytes(run) for run in sham), default=0)
            passes += [[(min(shared, question.pairs[r.host].first - 1), question.pairs[r.host].read + 1)] for r in sham]
            for sequences in passes:
                prompts += planner.prompt_work(family, sequences)
                passing = max(passing, held + planner.pass_bytes(family, sum(end - start for start, end in sequences)))
            table = layout.table(runs[a:b])
            reads = [[question.pairs[i].read for i in run.readers] for run in runs[a:b]]
            batch = Batch(table.variants, table.lengths, layout.moves(table), reads, held, passing)
            pieces = budget.pieces(batch)
            chunks.append(TableChunk(a, runs[a:b], table, pieces))
            batches.append((batch, pieces))
            batches += [(self._sham_batch(run), SHAM_PIECES) for run in sham]
        return chunks, budget.plan(batches, examples=len(question.pairs), prompts=prompts)

    @cached_property
    def begun_by_others(self) -> int:
        """How many tokens the prompts of random controls have in common with the beginning that all prompts share."""
        others = [other for other in self.layout.others(self.layout.runs) if other is not None]
        return common_prefix([self.question.shared, *others]) if others else 0

    def _sham_bytes(self, run: SharedRun) -> int:
        pair = self.question.pairs[run.host]
        return self.question.budget.base_bytes(pair.read + 1, 2 * (pair.read + 2 - pair.first), SELF_PATCH_SITES)

    def _sham_batch(self, run: SharedRun) -> Batch:
        pair = self.question.pairs[run.host]
        lengths = torch.full((N_SHAM,), pair.read + 2 - pair.first)
        reads = [[self.question.pairs[i].read for i in run.readers]]
        return Batch(sham_variants(self.layout.cfg, pair.first), lengths, torch.ones(N_SHAM, dtype=torch.bool), reads, 0)

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
        return run_chunks(self.question, self.layout, chunks, evaluator, partial(_evaluate, self, evaluator)), plan

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
            token_texts=question.token_texts(which) if layout.by_position else None,
            plan=plan,
            logits=None if logits is None else of_examples(logits),
            controls=None if layout.controls is None else self._controls(layout.controls, found, which, of_examples),
        )
        result.warn_of_nan(layout.shaped(layout.measured, 1).numpy())
        return result

    def _controls(
        self, asked: ControlRequest, found: PairValues, which: Sequence[int], of_examples: Callable[[Tensor], Tensor]
    ) -> Controls:
        """What the controls of these pairs found, on the scale of the sweep."""
        scale = self.question.scale(found.clean, found.corrupted)
        hosts = [self.layout.host_of[i] for i in which]
        missing = {n: asked.missing[host] for n, host in enumerate(hosts) if host in asked.missing}
        random = scale.control_effects(found.random, found.self_patches)
        return Controls(
            random=self.layout.shaped(random, 1).float().numpy(),
            random_raw=of_examples(found.random).numpy(),
            sham=scale.pair_effects(found.sham[:, None])[:, 0].abs().numpy(),
            self_patches=scale.pair_effects(found.self_patches - found.self_patches.mean(1, keepdim=True)).numpy(),
            share=asked.share,
            missing=missing,
        )


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
    controls: ControlChoice = None,
    control_source: ControlSource = None,
    control_share: float = 1.0,
    **options: Unpack[PairOptions],
) -> PairSweep:
    """A sweep over places that are already checked. Raises ValueError or TypeError naming the argument that is wrong."""
    question = ask(model, clean, corrupted, **options)
    asked = ask_controls(
        model, question.pairs, question.single, question.direction, site, question.seed,
        controls=controls, source=control_source, share=control_share,
    )  # fmt: skip
    layout = lay_out_pairs(
        model.cfg,
        question.pairs,
        site=site,
        places=places,
        positions=positions,
        by_position=by_position,
        groups=groups,
        seed=question.seed,
        controls=asked,
    )
    return PairSweep(question, layout)


def _evaluate(
    sweep: PairSweep,
    evaluator: Evaluator,
    chunk: TableChunk,
    past: KeyValues | None,
    bases: Bases,
    metrics: list[ExampleMetric],
    out: PairValues,
) -> Tensor:
    """Evaluates the variants of a chunk, and writes what is found to `out`. Returns the final rows of the controls."""
    family, table = evaluator.family, chunk.table
    joins = _joins(sweep, evaluator, chunk, past, bases)
    edits = RowEdits(family, bases, table.edits, SourceValues(family, bases))
    jitter = Jitter.of_streams(family, table.streams, sweep.layout.seed)
    values, logits, rows = evaluator.run(table.variants, chunk.pieces, joins, edits, metrics, jitter, table.control)
    read = bases.readings(table.variants.base)
    control, random = table.control[read.variant], table.random[read.variant]
    for number, i in enumerate(chunk.readers):
        of_pair = read.number == number
        out.self_patches[i] = values[of_pair & control][:N_SELF_PATCHES]
        for measured, chosen in ((out.raw, of_pair & ~control & ~random), (out.random, of_pair & random)):
            chosen = chosen.nonzero().flatten()
            variant = read.variant[chosen]
            where = (table.variants.layer[variant], table.part[variant], table.head[variant])
            measured[i][where] = values[chosen]
            if logits is not None and out.logits is not None and measured is out.raw:
                out.logits[i][where] = logits[chosen]
    _measure_sham(sweep, evaluator, chunk, past, bases, metrics, out)
    of_control = read.number[control]
    return torch.stack([rows[(of_control == e).nonzero().flatten().to(rows.device)] for e in range(len(chunk.readers))])


def _measure_sham(
    sweep: PairSweep,
    evaluator: Evaluator,
    chunk: TableChunk,
    past: KeyValues | None,
    bases: Bases,
    metrics: list[ExampleMetric],
    out: PairValues,
) -> None:
    """Writes to `out` what patches before the first difference change in the metric."""
    question, base = sweep.question, sweep.question.prompts(run.host for run in chunk.runs)[0]
    begins = [*bases.row_offset.tolist(), bases.sites["z"].shape[1]]
    number = 0
    for b, run in enumerate(chunk.runs):
        readers = list(run.readers)
        if sweep.layout.has_sham(run):
            source, reads = bases.source["z"][:, begins[b] : begins[b + 1]], [question.pairs[i].read for i in readers]
            measured = metrics[number : number + len(readers)]
            first = question.pairs[run.host].first
            out.sham[readers] = sham_change(evaluator, base[b], first, reads, source, past, measured, question.seed)
        number += len(readers)


def _joins(sweep: PairSweep, evaluator: Evaluator, chunk: TableChunk, past: KeyValues | None, bases: Bases) -> HeadJoins:
    layout, editable, labels, rows = sweep.layout, [], [], []
    for i in (run.host for run in chunk.runs):
        kept = torch.arange(layout.kept_from(i), layout.pairs[i].read + 1)
        editable.append(torch.isin(kept, torch.tensor(layout.targets[i])))
        labels.append(layout.labels[i][kept])
        rows.append(len(kept))
    table, others = chunk.table, layout.others(chunk.runs)
    other = from_other = None
    if any(prompt is not None for prompt in others):
        n = sweep.begun_by_others
        begun = None if past is None or n == 0 else KeyValues(past.k[:, :n], past.v[:, :n])
        with hint_at_budget(f"{plural(len(others), 'prompt')} of random controls ran"):
            other, from_other = z_of_prompts(evaluator.family, others, rows, begun, evaluator.replay), table.random
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
        other=other,
        from_other=from_other,
    )
