"""The loop that all sweeps over pairs share: pairs that fit the memory budget are run together, both runs are measured, and
the variants are evaluated while the runs are held."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from pycotmech._words import plural
from pycotmech.engine.bases import Bases, PairRuns, run_pairs
from pycotmech.engine.evaluate import Evaluator
from pycotmech.engine.joins import N_SELF_PATCHES
from pycotmech.engine.memory import hint_at_budget
from pycotmech.engine.metrics import ExampleMetric
from pycotmech.model.run import KeyValues
from pycotmech.patching.pair_layout import PairLayout
from pycotmech.patching.path_layout import PathLayout
from pycotmech.patching.question import PairQuestion
from pycotmech.patching.rounding import N_DELTAS, rounding_of_pair
from pycotmech.patching.shared_runs import SharedRun


@dataclass(frozen=True)
class Chunk:
    """Pairs that are run together.

    number: of the first of these runs among all, by which the directions of self-patches are drawn.
    """

    number: int
    runs: Sequence[SharedRun]

    @property
    def readers(self) -> list[int]:
        """The pairs, in the order in which the runs are read."""
        return [i for run in self.runs for i in run.readers]


@dataclass(frozen=True)
class PairValues:
    """What was measured of B pairs.

    raw [B, ...] float64: the metric of every variant, NaN where none was asked for. self_patches [B, N_SELF_PATCHES].
    rounding [B, N_DELTAS, 3]: what rounding changes in the metric, as `rounding_of_pair` gives it.
    clean, corrupted [B]: the metric of both runs. logits [B, ..., V]: of the variants, if they are kept.
    random [B, ...]: the metric of the random controls, NaN where there is none; sham [B]: what the patch before the first
    difference changes in the metric, NaN where there is none.
    """

    raw: Tensor
    self_patches: Tensor
    rounding: Tensor
    clean: Tensor
    corrupted: Tensor
    logits: Tensor | None
    random: Tensor
    sham: Tensor

    def of(self, i: int) -> PairValues:
        """Those of one pair, as the only one."""
        at = slice(i, i + 1)
        logits = None if self.logits is None else self.logits[at]
        return PairValues(
            raw=self.raw[at],
            self_patches=self.self_patches[at],
            rounding=self.rounding[at],
            clean=self.clean[at],
            corrupted=self.corrupted[at],
            logits=logits,
            random=self.random[at],
            sham=self.sham[at],
        )


AnyChunk = TypeVar("AnyChunk", bound=Chunk)

Evaluate = Callable[[AnyChunk, KeyValues | None, Bases, list[ExampleMetric], PairValues], Tensor]
"""Evaluates the variants of a chunk, whose prompts begin with the past, each reader with its metric, and writes what is found
to the values; returns the final residual rows of each reader's controls [readers, N_CONTROLS, d]."""


def run_chunks(
    question: PairQuestion,
    layout: PairLayout | PathLayout,
    chunks: Iterable[AnyChunk],
    evaluator: Evaluator,
    evaluate: Evaluate[AnyChunk],
) -> PairValues:
    """Runs chunk after chunk. Where no variant can change what is read, the result is the base run's."""
    shape, n, V = layout.measured.shape, len(question.pairs), question.family.cfg.d_vocab
    out = PairValues(
        raw=torch.full((n, *shape), torch.nan, dtype=torch.float64),
        self_patches=torch.empty(n, N_SELF_PATCHES, dtype=torch.float64),
        rounding=torch.empty(n, N_DELTAS, 3, dtype=torch.float64),
        clean=torch.empty(n, dtype=torch.float64),
        corrupted=torch.empty(n, dtype=torch.float64),
        logits=torch.full((n, *shape, V), torch.nan, dtype=question.family.resid_dtype) if evaluator.keep_logits else None,
        random=torch.full((n, *shape), torch.nan, dtype=torch.float64),
        sham=torch.full((n,), torch.nan, dtype=torch.float64),
    )
    past = question.prefixes.key_values(question.shared, question.budget.room, evaluator.replay)
    for chunk in chunks:
        _run_chunk(question, layout, chunk, past, evaluator, evaluate, out)
    return out


def _run_chunk(
    question: PairQuestion,
    layout: PairLayout | PathLayout,
    chunk: AnyChunk,
    past: KeyValues | None,
    evaluator: Evaluator,
    evaluate: Evaluate[AnyChunk],
    out: PairValues,
) -> None:
    """A separate function, so that what a chunk holds is freed before the next one is run."""
    base, source = question.prompts(run.host for run in chunk.runs)
    with hint_at_budget(f"{plural(len(chunk.runs), 'pair')} of prompts ran"):
        runs = run_pairs(
            question.family,
            base,
            source,
            past=past,
            first=[layout.kept_from(run.host) for run in chunk.runs],
            reads=[[question.pairs[i].read for i in run.readers] for run in chunk.runs],
            sites=layout.base_sites,
            source_sites=layout.source_sites,
            replay=evaluator.replay,
        )
    metrics = _measure_runs(question, chunk.readers, runs, evaluator, out)
    for i in chunk.readers:
        out.raw[i][layout.measured] = (out.corrupted if question.direction == "denoise" else out.clean)[i]
    controls, denoise = evaluate(chunk, past, runs.bases, metrics, out), question.direction == "denoise"
    for e, i in enumerate(chunk.readers):
        base, source = runs.base_final[e], runs.source_final[e]
        out.rounding[i] = rounding_of_pair(evaluator, metrics[e], base, source, controls[e], denoise)


def _measure_runs(
    question: PairQuestion, readers: Sequence[int], runs: PairRuns, evaluator: Evaluator, out: PairValues
) -> list[ExampleMetric]:
    """The metric of each reader; its value in both runs goes to `out`."""
    rows = (runs.source_final, runs.base_final)
    clean_rows, corrupted_rows = rows if question.direction == "denoise" else rows[::-1]
    metrics = []
    for e, i in enumerate(readers):
        pair = question.pairs[i]
        tokens = [pair.answer, pair.wrong] if question.metric == "logit_diff" else None
        logits = evaluator.logits(torch.stack((clean_rows[e], corrupted_rows[e])), tokens)
        metric = ExampleMetric(question.metric, logits[0] if question.metric == "kl" else None, pair.answer, pair.wrong)
        clean, corrupted = metric(logits).tolist()
        # KL(P || P) is 0, without the rounding of its sum.
        out.clean[i], out.corrupted[i] = 0.0 if question.metric == "kl" else clean, corrupted
        metrics.append(metric)
    return metrics
