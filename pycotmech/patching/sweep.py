"""Any edits: one run, many variants of it, each with edits wherever it wants them, all evaluated at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pycotmech.engine import planner
from pycotmech.engine.bases import Stage, run_pairs
from pycotmech.engine.evaluate import SELF_PATCH_SITES, Evaluator, HeadJoins, self_patch_signs, self_patches
from pycotmech.engine.metrics import ExampleMetric, Metric, check_metric
from pycotmech.engine.row_edits import GivenValues, RowEdits
from pycotmech.engine.rows import Variants
from pycotmech.model.arguments import check_model, check_seed
from pycotmech.model.config import ModelConfig
from pycotmech.model.model import Tokens, resolve_positions
from pycotmech.patching.edits import Layout, Variant, lay_out
from pycotmech.patching.pairs import answer_token
from pycotmech.patching.results import VariantSweep

if TYPE_CHECKING:
    from pycotmech.model import Model


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
    progress: Callable[[int, int], None] | None = None,
) -> VariantSweep:
    """Runs every variant of one prompt, exactly, and reads a metric.

    base: token ids [T] or a string. variants: each a `Variant` with one or more `Edit`s, in any layers, at any sites.
    metric: "kl", "logit_diff", "prob", or a callable on logits [N, V] -> [N]; answer, wrong: token id or string.
    clean: of metric "kl", what the variants are compared with: another prompt (read at the same position, or from its
        end for a negative `read`), or logits [V]; None: the base run itself.
    read: the position where the metric is read. memory_gb, seed, progress: as in `patch_heads`.

    Returns a `VariantSweep`: .raw [N], .effect [N], .base_metric.
    Raises ValueError naming the argument, before anything is run; also for a variant whose edits reach nothing that is
    read, for instance a query edited behind the position read, or z in the last layer in front of it.
    Cost: the base once; for each variant its positions from the first edited one on, in the layers from the first edited
    one on. Exact: one hooked forward per variant gives the same numbers.
    """
    check_model(model)
    if not isinstance(variants, Iterable):
        raise TypeError(f"variants: got {type(variants).__name__}; expected a list of pycotmech.Variant")
    variants = list(variants)
    job = prepare(
        model, base, variants, metric=metric, answer=answer, wrong=wrong, clean=clean, read=read, memory_gb=memory_gb,
        return_logits=return_logits, seed=seed,
    )  # fmt: skip
    tokens, where, ids, layout, reference = job.tokens, job.read, job.token_ids, job.layout, job.reference
    evaluator, table = job.evaluator, job.table
    evaluator.progress = progress

    first = int(layout.first.min())
    sites = _kept_sites(layout)
    past = model.prefixes.key_values(tokens[:first], evaluator.budget)
    runs = run_pairs(
        model.family, [tokens], [], past=past, first=[first], reads=[[where]], sites=sites, source_sites=()
    )  # fmt: skip
    editable = torch.ones(len(runs.bases.sites["z"][0]), dtype=torch.bool)
    joins = HeadJoins.on_device_of(
        model.family, runs.bases, control=job.control, moves=job.control, head=job.head,
        position=torch.full_like(job.head, -1), editable=editable, signs=self_patch_signs(runs.bases, seed, 0),
    )  # fmt: skip
    base_logits = evaluator.logits(runs.base_final, None if metric != "logit_diff" else ids)
    if metric == "kl" and reference is None:
        reference = base_logits[0]
    elif reference is not None and not reference.is_floating_point():
        reference = model.run(reference, positions=[read]).logits[0]  # type: ignore[union-attr]
    measure = ExampleMetric(metric, None if reference is None else reference.to(model.device), *ids)
    wide = model.family.resid_dtype
    stored = {key: v.to(model.device, wide if v.is_floating_point() else v.dtype) for key, v in layout.values.items()}
    edits = RowEdits(model.family, runs.bases, layout.tables, GivenValues(stored))
    values, logits = evaluator.run(table, job.pieces, joins, edits, [measure])

    n = len(job.names)
    control = values[n:].mean()
    return VariantSweep(
        raw=values[:n].numpy(),
        effect=(values[:n] - control).float().numpy(),
        base_metric=float(measure(base_logits)),
        noise_floor=float((values[n:] - control).abs().max()),
        metric=job.metric,
        names=job.names,
        plan=job.plan,
        model_name=model.name,
        logits=None if logits is None else logits[:n],
    )


@dataclass(frozen=True)
class _Sweep:
    """The arguments of a sweep, checked; nothing has been run."""

    tokens: Tensor
    read: int
    token_ids: list[int | None]
    layout: Layout
    names: tuple[str | None, ...]
    reference: Tensor | None  # what KL is taken from: logits [V], or token ids that are still to be run
    metric: str
    evaluator: Evaluator
    table: Variants  # the variants, with the self-patches behind them
    control: Tensor  # [N] bool: which are self-patches
    head: Tensor  # [N] of those; -1 for the others
    pieces: list[tuple[int, int]]
    plan: planner.Plan


def prepare(
    model: Model,
    base: Tokens,
    variants: Sequence[Variant],
    *,
    metric: Metric,
    answer: int | str | None,
    wrong: int | str | None,
    clean: Tokens | None,
    read: int,
    memory_gb: float | None,
    return_logits: bool,
    seed: int,
) -> _Sweep:
    """Checks the arguments of `sweep`. Raises ValueError or TypeError naming the one that is wrong."""
    check_seed(seed)
    name = check_metric(metric, answer, wrong)
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
    budget = planner.memory_budget(memory_gb, model.device)
    model.family.refuse_unsupported()
    evaluator = Evaluator(model.family, budget, return_logits, None)
    table, control, head = _with_self_patches(model.cfg, layout, seed)
    lengths, first = where - table.first + 1, int(layout.first.min())
    columns = 2 if metric == "logit_diff" else None
    held = 2 * evaluator.base_bytes(first, 0, ()) + sum(v.numel() * 4 for v in layout.values.values())
    held += evaluator.base_bytes(where + 1, where + 1 - first, _kept_sites(layout))
    pieces = evaluator.pieces(lengths, held, columns)
    prompt = planner.prefix_work(model.family, first) + planner.prompt_work(model.family, [(first, where + 1)])
    plan = evaluator.plan(
        [(table, lengths)], [pieces], held, 1, moves=[control], columns=columns, prompts=prompt
    )  # fmt: skip
    names = tuple(v.name for v in variants)
    return _Sweep(tokens, where, ids, layout, names, reference, name, evaluator, table, control, head, pieces, plan)


def _check_clean(model: Model, clean: Tokens | None, metric: Metric, read: int) -> Tensor | None:
    """What KL is taken from: logits [V], or token ids that are still to be run."""
    if clean is None:
        return None
    if metric != "kl":
        raise ValueError(f"clean: only metric 'kl' compares with it, got metric {metric!r}; expected None")
    if isinstance(clean, Tensor) and clean.is_floating_point():
        if clean.shape != (model.cfg.d_vocab,):
            raise ValueError(f"clean: got logits of shape {list(clean.shape)}; expected [{model.cfg.d_vocab}]")
        return clean
    tokens = model.to_tokens(clean, argument="clean")
    resolve_positions(read, len(tokens), argument="read (in clean)")
    return tokens


def _kept_sites(layout: Layout) -> tuple[str, ...]:
    """What the base run keeps: where variants join, and what an edited part is added to."""
    joins = [Stage(s).site for s in layout.stage.unique().tolist()]
    parts = {"attn_out": "resid_pre", "mlp_out": "resid_mid"}
    added_to = [parts[site] for site, _ in layout.tables if site in parts]
    return tuple(dict.fromkeys((*SELF_PATCH_SITES, *joins, *added_to)))


def _with_self_patches(cfg: ModelConfig, layout: Layout, seed: int) -> tuple[Variants, Tensor, Tensor]:
    """The variants with the self-patches behind them; which are self-patches; the heads of those, -1 for the others."""
    controls = self_patches(cfg, seed, 0)
    n, c = len(layout.layer), len(controls)
    table = Variants(
        base=torch.zeros(n + c, dtype=torch.long),
        layer=torch.cat((layout.layer, controls[:, 0])),
        stage=torch.cat((layout.stage, torch.full((c,), int(Stage.MID)))),
        first=torch.cat((layout.first, torch.full((c,), int(layout.first.min())))),
    )
    return table, torch.arange(n + c) >= n, torch.cat((torch.full((n,), -1), controls[:, 1]))
