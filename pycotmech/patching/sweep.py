"""Any edits: one run, many variants of it, each with edits wherever it wants them, all evaluated at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycotmech.engine import planner
from pycotmech.engine.bases import Stage, run_pairs
from pycotmech.engine.budget import Batch, Budget, Pieces
from pycotmech.engine.evaluate import Evaluator, Ticker
from pycotmech.engine.jitter import Jitter
from pycotmech.engine.joins import N_SELF_PATCHES, HeadJoins, controls_of, self_patch_signs, with_controls
from pycotmech.engine.memory import hint_at_budget
from pycotmech.engine.metrics import ExampleMetric, Metric, check_metric
from pycotmech.engine.planner import Plan
from pycotmech.engine.row_edits import GivenValues, RowEdits
from pycotmech.engine.rows import Variants
from pycotmech.model.arguments import check_model, check_progress, check_seed
from pycotmech.model.config import ModelConfig
from pycotmech.model.prompts import Tokens, resolve_positions
from pycotmech.model.run import Activations
from pycotmech.patching.edits import Variant, VariantLayout, base_sites, lay_out
from pycotmech.patching.pairs import answer_token
from pycotmech.patching.question import Progress, budget_of
from pycotmech.patching.rounding import rounding_of_variants
from pycotmech.patching.scale import unscaled
from pycotmech.patching.variant_results import VariantSweep

if TYPE_CHECKING:
    from pycotmech.model import Model


_SAMPLE = 8
"""Variants at which it is measured how far rounding moves the metric."""


def sweep(
    model: Model,
    base: Tokens,
    variants: Sequence[Variant],
    *,
    metric: Metric = "kl",
    answer: int | str | None = None,
    wrong: int | str | None = None,
    clean: Tokens | None = None,
    read: int = -1,
    memory_gb: float | None = None,
    return_logits: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> VariantSweep:
    """Runs every variant of one prompt, exactly, and reads a metric.

    base: token ids [T] or a string. variants: each a `Variant` with one or more `Edit`s, in any layers, at any sites.
    metric: "kl", "logit_diff", "prob", or a callable on logits [N, V] -> [N]; answer, wrong: token id or string.
    clean: of metric "kl", what the variants are compared with: another prompt (read at the same position, or from its
        end for a negative `read`), or logits [V]; None: the base run itself.
    read: the position where the metric is read. memory_gb, seed, progress: as in `patch_heads`.

    Returns a `VariantSweep`: .raw [N], .effect [N], .base_metric.
    Raises ValueError naming the argument, before anything is run; also for a variant whose edits reach nothing that is
    read, for instance a query edited after the position read, or z in the last layer before it.
    Cost: the base once; for each variant its positions from the first edited one on, in the layers from the first edited
    one on. Exact: one hooked forward per variant gives the same numbers.
    """
    return prepare_variants(
        model, base, variants, metric=metric, answer=answer, wrong=wrong, clean=clean, read=read, memory_gb=memory_gb,
        return_logits=return_logits, seed=seed, progress=progress,
    ).run()  # fmt: skip


class SweepOptions(TypedDict, total=False):
    """The options that all sweeps over variants of one run have in common, as `sweep` describes them."""

    metric: Metric
    answer: int | str | None
    wrong: int | str | None
    clean: Tokens | None
    read: int
    memory_gb: float | None
    return_logits: bool
    seed: int
    progress: Progress | None


@dataclass(frozen=True)
class PreparedSweep:
    """The arguments of a sweep, checked; nothing has been run.

    token_ids: answer and wrong. reference: what KL is taken from, logits [V] or token ids that are still to be run (and read
    at `read_reference`); None: the base run. batch: the variants, then the controls, as `controls_of` gives them in `controls`.
    """

    model: Model
    tokens: Tensor
    metric: Metric
    token_ids: list[int | None]
    layout: VariantLayout
    names: tuple[str | None, ...]
    reference: Tensor | None
    read_reference: int
    budget: Budget
    controls: Tensor
    batch: Batch
    pieces: Pieces
    plan: Plan
    seed: int
    progress: Progress | None

    def run(self) -> VariantSweep:
        return self.measured()[0]

    def measured(self) -> tuple[VariantSweep, NDArray[np.float64]]:
        """The result, and its effects [N] as they were before they became float32: differences of effects need all digits."""
        model, layout, variants = self.model, self.layout, self.batch.variants
        family, first, n = model.family, int(layout.first.min()), len(self.names)
        evaluator = Evaluator(
            family, self.budget.room, self.budget.keep_logits, Ticker(self.progress, self.plan, model.cfg.n_layers)
        )
        past = model.prefixes.key_values(self.tokens[:first], self.budget.room)
        with hint_at_budget("the prompt was run"):
            runs = run_pairs(
                family, [self.tokens], [], past=past, first=[first], reads=self.batch.reads,
                sites=_kept_sites(family.cfg, layout), source_sites=(),
            )  # fmt: skip
        control = torch.arange(len(variants)) >= n
        streams = torch.cat((torch.full((n,), -1), self.controls[:, 2]))
        everywhere = torch.full((len(variants),), -1)
        joins = HeadJoins.on_device_of(
            family,
            runs.bases,
            control=control,
            moves=control & (streams < 0),
            head=torch.cat((everywhere[:n], self.controls[:, 1])),
            position=everywhere,
            editable=torch.ones(len(runs.bases.sites["z"][0]), dtype=torch.bool),
            signs=self_patch_signs(runs.bases, self.seed, 0),
        )
        base_logits = evaluator.logits(runs.base_final, self.token_ids if self.metric == "logit_diff" else None)
        measure = ExampleMetric(self.metric, self._reference(base_logits), *self.token_ids)
        stored = {
            key: v.to(model.device, family.resid_dtype if v.is_floating_point() else v.dtype)
            for key, v in layout.values.items()
        }
        edits = RowEdits(family, runs.bases, layout.tables, GivenValues(stored))
        sample = torch.linspace(0, n - 1, min(n, _SAMPLE)).round().long()
        kept = control.index_fill(0, sample, True)
        jitter = Jitter.of_streams(family, streams, self.seed)
        values, logits, rows = evaluator.run(variants, self.pieces, joins, edits, [measure], jitter, kept)
        name = check_metric(self.metric, 0, 0)
        rounding = rounding_of_variants(evaluator, measure, rows[: len(sample)], rows[len(sample) :])
        scaled = unscaled(name, values[:n], values[n : n + N_SELF_PATCHES], *rounding)
        result = VariantSweep(
            raw=scaled.values.numpy(),
            effect=scaled.effect.float().numpy(),
            base_metric=float(measure(base_logits)),
            noise_floor=scaled.noise_floor,
            metric=name,
            names=self.names,
            plan=self.plan,
            model_name=model.name,
            logits=None if logits is None else logits[:n],
        )
        result.warn_of_nan()
        return result, scaled.effect.numpy()

    def _reference(self, base_logits: Tensor) -> Tensor | None:
        """The logits [V] that KL is taken from."""
        if self.metric != "kl":
            return None
        if self.reference is None:
            return base_logits[0]
        if self.reference.is_floating_point():
            return self.reference.to(self.model.device)
        found = self.model.run(self.reference, positions=[self.read_reference])
        assert isinstance(found, Activations)  # of one prompt
        return found.logits[0].to(self.model.device)


def prepare_variants(
    model: Model,
    base: Tokens,
    variants: Sequence[Variant],
    *,
    metric: Metric = "kl",
    answer: int | str | None = None,
    wrong: int | str | None = None,
    clean: Tokens | None = None,
    read: int = -1,
    memory_gb: float | None = None,
    return_logits: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> PreparedSweep:
    """Checks the arguments of `sweep`. Raises ValueError or TypeError naming the one that is wrong."""
    check_model(model)
    check_seed(seed)
    check_progress(progress)
    check_metric(metric, answer, wrong)
    if not isinstance(variants, Iterable):
        raise TypeError(f"variants: got {type(variants).__name__}; expected a list of pycotmech.Variant")
    variants = list(variants)
    tokens = model.to_tokens(base, argument="base")
    where = resolve_positions(read, len(tokens), argument="read")[0]
    ids = [
        None if given is None else answer_token(model, base, given, where, tokens, name)
        for given, name in ((answer, "answer"), (wrong, "wrong"))
    ]
    if ids[0] is not None and ids[0] == ids[1]:
        raise ValueError(f"answer, wrong: {answer!r} and {wrong!r} begin with the same token {ids[0]}; expected two words")
    if len(variants) == 0:
        raise ValueError("variants: the list is empty; expected at least one")
    layout = lay_out(variants, model.cfg, len(tokens), where)
    reference = _check_clean(model, clean, metric, read)
    budget = budget_of(model, metric, memory_gb, return_logits)
    model.family.refuse_unsupported()
    controls = controls_of(model.cfg, seed, 0)
    batch = _batch(layout, controls, where, budget)
    pieces, first = budget.pieces(batch), int(layout.first.min())
    prompt = planner.prefix_work(model.family, first) + planner.prompt_work(model.family, [(first, where + 1)])
    plan = budget.plan([(batch, pieces)], examples=1, prompts=prompt)
    names = tuple(v.name for v in variants)
    return PreparedSweep(
        model, tokens, metric, ids, layout, names, reference, read, budget, controls, batch, pieces, plan, seed, progress
    )


def _check_clean(model: Model, clean: Tokens | None, metric: Metric, read: int) -> Tensor | None:
    """What KL is taken from: logits [V], or token ids that are still to be run."""
    if clean is None:
        return None
    if metric != "kl":
        raise ValueError(f"clean: only metric 'kl' compares with it, got metric {metric!r}; expected None")
    if isinstance(clean, Tensor) and clean.is_floating_point():
        if clean.shape != (model.cfg.d_vocab,):
            raise ValueError(f"clean: got logits of shape {list(clean.shape)}; expected [{model.cfg.d_vocab}]")
        if not bool(clean.isfinite().all()):
            n = int((~clean.isfinite()).sum())
            raise ValueError(f"clean: {n} of {len(clean)} logits are not finite; expected finite numbers")
        return clean
    tokens = model.to_tokens(clean, argument="clean")
    resolve_positions(read, len(tokens), argument="read (in clean)")
    return tokens


def _kept_sites(cfg: ModelConfig, layout: VariantLayout) -> tuple[str, ...]:
    return base_sites(cfg, [Stage(s) for s in layout.stage.unique().tolist()], [site for site, _ in layout.tables])


def _batch(layout: VariantLayout, controls: Tensor, read: int, budget: Budget) -> Batch:
    """The variants, then the controls [n, 3]."""
    n, first = len(layout.layer), int(layout.first.min())
    plain = Variants(torch.zeros(n, dtype=torch.long), layout.layer, layout.stage, layout.first)
    variants = with_controls(plain, controls, 0, first)
    held = 2 * budget.base_bytes(first, 0, ()) + sum(v.numel() * 4 for v in layout.values.values())
    held += budget.base_bytes(read + 1, read + 1 - first, _kept_sites(budget.family.cfg, layout))
    passing = held + planner.pass_bytes(budget.family, max(min(first, budget.family.sizes.segment), read + 1 - first))
    moves = torch.cat((torch.zeros(n, dtype=torch.bool), controls[:, 2] < 0))
    return Batch(variants, read - variants.first + 1, moves, [[read]], held, passing)
