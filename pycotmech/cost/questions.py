"""What each question asks of a machine, from shapes alone. Work of sweeps is that of the planner (`engine.planner`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch

from pycotmech._choices import check_choice
from pycotmech.cost.demand import PROMPT_LAUNCHES, VARIANT_LAUNCHES, Demand, layer_weight_bytes
from pycotmech.engine import planner
from pycotmech.engine.bases import Stage
from pycotmech.engine.joins import N_JITTERED, N_SELF_PATCHES
from pycotmech.engine.metrics import Metric
from pycotmech.engine.planner import Plan, Work
from pycotmech.engine.rows import Variants
from pycotmech.model.config import ModelConfig, layer_flop, logits_flop
from pycotmech.model.families.base import Family
from pycotmech.model.sizes import CPU
from pycotmech.patching.paths import plan_paths

_LENS = 1.7
"""Time of a row of logits whose entropy, ranks and likeliest tokens are wanted, over that of a row and its divergence
(measured)."""


def prompts(cfg: ModelConfig, lengths: Sequence[int], *, after: int = 0, read: float = 0.0) -> Demand:
    """Prompts that are run together as packed rows, each of so many tokens that follow `after` others whose keys are there.
    read: rows that go through the unembedding."""
    L, rows = cfg.n_layers, float(sum(lengths))
    keys = sum(n * (n + 1) / 2 + n * after for n in lengths)
    passes = L * math.ceil(rows / CPU.row_block)
    return Demand(layer_rows=L * rows, passes=passes, keys=L * keys, unembedded=read, launches=PROMPT_LAUNCHES * passes)


def heads(
    family: Family, *, tokens: int, suffix: int, positions: Literal["all", "last"] = "all", pairs: int = 1,
    n_heads: int | None = None, metric: str = "kl",
) -> Demand:  # fmt: skip
    """`patch_heads` with nothing kept: pairs of prompts of so many tokens that differ in the last `suffix` and share the rest;
    their runs, a variant for each head (n_heads: of so many, spread over the layers), and those of the noise floor.

    Raises ValueError naming the argument.
    """
    cfg = family.cfg
    if not 0 < suffix <= tokens:
        raise ValueError(f"suffix: got {suffix}; expected 1..{tokens}, the number of tokens")
    check_choice("positions", positions, ("all", "last"))
    n = cfg.n_layers * cfg.n_heads if n_heads is None else n_heads
    shared, rows, columns = tokens - suffix, suffix if positions == "all" else 1, 2 if metric == "logit_diff" else None
    base = planner.prefix_work(family, shared) + planner.prompt_work(family, [(shared, tokens)] * (2 * pairs))
    spread = lambda count: torch.arange(count) * cfg.n_layers // max(count, 1)  # noqa: E731
    layer = torch.cat((spread(n), spread(N_SELF_PATCHES), torch.zeros(N_JITTERED, dtype=torch.long))).repeat(pairs)
    size, one = len(layer), torch.ones(len(layer), dtype=torch.long)
    variants = Variants(0 * one, layer, int(Stage.MID) * one, (tokens - rows) * one)
    moves = torch.cat((torch.ones(n + N_SELF_PATCHES), torch.zeros(N_JITTERED))).bool().repeat(pairs)
    lengths = torch.where(layer < cfg.n_layers - 1, rows, 1)  # in the last layer only the row that is read joins
    work = planner.variant_work(family, variants, lengths, moves, one, columns)
    unembedded = float(size if columns is None else 0)
    variants_demand = _of_work(
        cfg, work, unembedded, VARIANT_LAUNCHES, logits=size * logits_flop(cfg, columns), columns=columns
    )
    return _of_work(cfg, base, 0.0, PROMPT_LAUNCHES) + variants_demand + Demand(unembedded=2.0 * pairs * (columns is None))


def _of_work(
    cfg: ModelConfig, work: Work, unembedded: float, launches: int, *, logits: float = 0.0, columns: int | None = 0
) -> Demand:
    """The planner's work as a demand. What is not a product with weights or of logits is attention."""
    head = 0.0 if columns == 0 else cfg.d_model * cfg.dtype.itemsize * (cfg.d_vocab if columns is None else columns)
    passes = max(work.weight_bytes - head, 0.0) / layer_weight_bytes(cfg)
    keys = max(work.flop - logits - work.layer_rows * layer_flop(cfg).linear, 0.0) / layer_flop(cfg).per_key
    return Demand(work.layer_rows, passes, keys, unembedded=unembedded, launches=launches * passes)


def of_plan(cfg: ModelConfig, plan: Plan, *, metric: Any = "kl") -> Demand:
    """A plan of `plan_heads` or `plan_paths` as a demand. metric: of the sweep; all but "logit_diff" read the whole
    vocabulary."""
    unembedded = 0.0 if metric == "logit_diff" else float(plan.variants)
    rows = (plan.token_forwards + plan.base_token_forwards) * cfg.n_layers
    passes = plan.weight_bytes / layer_weight_bytes(cfg) or math.ceil(rows / CPU.row_block)
    attended = plan.flop - rows * layer_flop(cfg).linear - unembedded * logits_flop(cfg)
    keys = max(attended, 0.0) / layer_flop(cfg).per_key
    return Demand(rows, passes, keys, unembedded=unembedded, launches=VARIANT_LAUNCHES * passes)


def paths(family: Family, *, tokens: int, suffix: int = 1, metric: Metric = "kl", **options: Any) -> Demand:
    """`path_patch` of one pair of prompts with nothing kept: their runs, and the paths. options: those of `plan_paths`."""
    found = of_plan(family.cfg, plan_paths(_Sizes(family), tokens, n_differ=suffix, metric=metric, **options), metric=metric)
    shared = tokens - suffix
    base = planner.prefix_work(family, shared) + planner.prompt_work(family, [(shared, tokens)] * 2)
    return found + _of_work(family.cfg, base, 0.0, PROMPT_LAUNCHES)


class _Sizes:
    """What `plan_paths` reads of a model."""

    def __init__(self, family: Family) -> None:
        self.family = family


def summary(cfg: ModelConfig, tokens: int, *, n_prompts: int = 1) -> Demand:
    """`attention_summary` of prompts of so many tokens, one after another: all statistics of all rows."""
    L, keys = cfg.n_layers, cfg.n_layers * tokens * (tokens + 1) / 2
    share = (L - 1 + layer_flop(cfg).qkv / layer_flop(cfg).linear) / L  # the last layer ends with its attention
    passes = L * math.ceil(tokens / CPU.row_block)
    rows = share * L * tokens
    launches = (PROMPT_LAUNCHES + 8) * passes
    one = Demand(rows, passes, keys, weighed=keys, summarised=L * tokens, launches=launches)
    return n_prompts * one


def lens(cfg: ModelConfig, tokens: int, *, positions: int | None = None) -> Demand:
    """`logit_lens` of one prompt at so many positions (None: all): the logits of the residual stream after every layer, with
    their entropy, ranks and likeliest tokens."""
    read = tokens if positions is None else positions
    return prompts(cfg, [tokens], read=_LENS * read * cfg.n_layers)


def head_logits(cfg: ModelConfig, tokens: int, *, positions: int = 1) -> Demand:
    """What each head says at so many positions, over the whole vocabulary: a row of logits for each head, MLP and layer."""
    return prompts(cfg, [tokens], read=float(positions * cfg.n_layers * (cfg.n_heads + 2)))


def suppression(cfg: ModelConfig, tokens: int, spans: Sequence[tuple[int, int]], *, controls: int = 0) -> Demand:
    """`pcm.traces.suppress` of a trace of so many tokens whose sentences are at these places: the text once, and for each
    sentence (and control) all that comes after it, each row with its divergence."""
    L, times = cfg.n_layers, 1 + controls
    rows = tokens + times * sum(tokens - b for _, b in spans)
    keys = tokens * (tokens + 1) / 2 + times * sum((tokens * (tokens + 1) - b * (b + 1)) / 2 for _, b in spans)
    passes = L * math.ceil(rows / CPU.row_block)
    return Demand(L * rows, passes, L * keys, unembedded=float(rows), launches=VARIANT_LAUNCHES * passes)
