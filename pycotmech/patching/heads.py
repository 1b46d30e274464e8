"""Patch every head of every layer, one at a time, exactly (PAPER: E1, E2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from pycotmech.model.families import LlamaFamily
from pycotmech.model.model import Tokens, resolve_positions
from pycotmech.model.sites import parse_site
from pycotmech.patching import planner
from pycotmech.patching.bases import Bases, PairRuns, common_prefix, run_pairs, run_prefix
from pycotmech.patching.metrics import ExampleMetric, Metric, check_metric, normalise
from pycotmech.patching.pairs import Pair, make_pairs
from pycotmech.patching.results import Sweep
from pycotmech.patching.staircase import Joining, Stage, Staircase, Variants

if TYPE_CHECKING:
    from pycotmech.model import Model

Direction = Literal["denoise", "noise"]

N_SELF_PATCHES = 8
"""Self-patches per example from which the noise floor is read, spread over the layers."""

_LOGIT_ROWS = 256
"""Rows of the unembedding's output that exist at once."""


def patch_heads(
    model: Model,
    clean: Tokens | Sequence[Tokens],
    corrupted: Tokens | Sequence[Tokens],
    *,
    direction: Direction = "denoise",
    site: str = "z",
    positions: Sequence[int] | None = None,
    by_position: bool = False,
    metric: Metric = "kl",
    answer: int | str | Sequence[int | str] | None = None,
    wrong: int | str | Sequence[int | str] | None = None,
    normalize: bool = True,
    read: int | Sequence[int] = -1,
    heads: Sequence[tuple[int, int]] | None = None,
    memory_gb: float | None = None,
    return_logits: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Sweep:
    """Replaces the output z of one head at a time by its value in the other run, for all heads, and reads a metric.

    clean, corrupted: token ids [T] or strings, aligned token for token; or two lists of them. Prompts of a list share the
        computation of their common prefix.
    direction: "denoise" puts clean activations into the corrupted run, "noise" the reverse.
    positions: where z is replaced (negative from the end); None: everywhere. by_position: each position on its own.
    metric: "kl" (KL(P_clean || P)), "logit_diff", "prob", or a callable on logits [N, V] of one example -> [N].
    answer, wrong: token id, string, or one per example. read: the position where the metric is read, or one per example.
    heads: (layer, head) to patch; None: all. memory_gb: what the sweep may use; None: half of what is free.
    seed: of the self-patches' directions. progress: called with (token-forwards done, in all).

    Returns a `Sweep`: .values [L, H] ([L, T, H] by position; 0 where nothing can change), corrupted 0 and clean 1.
    Raises ValueError naming the argument, before anything is run.
    Cost: the shared prefix once, the rest of both prompts, and about (L - 1) / 2 of L layers for each variant's positions
    behind the first difference; memory within `memory_gb`. Exact: one hooked forward per head gives the same numbers.
    """
    if direction not in ("denoise", "noise"):
        raise ValueError(f"direction: got {direction!r}; expected 'denoise' or 'noise'")
    if parse_site(site)[0] != "z":
        raise ValueError(f"site: got {site!r}; heads are patched at 'z', each head's output before W_O")
    check_metric(metric, answer, wrong)
    model.family.refuse_unsupported()
    chosen = _check_heads(heads, model.cfg.n_layers, model.cfg.n_heads)
    pairs, single = make_pairs(model, clean, corrupted, answer=answer, wrong=wrong, read=read)
    budget = planner.memory_budget(memory_gb, model.device)
    targets = [_targets(pair, positions) for pair in pairs]
    if by_position and len({len(p.clean) for p in pairs}) > 1:
        raise ValueError(
            "by_position: the prompts have different lengths, so positions do not correspond; expected equal lengths"
        )
    job = _Job(model.family, pairs, targets, direction, metric, chosen, by_position, budget, return_logits, seed, progress)
    outcome = job.run()
    return _result(model, outcome, pairs, direction, metric, normalize, by_position, single)


def _check_heads(heads: Sequence[tuple[int, int]] | None, n_layers: int, n_heads: int) -> list[tuple[int, int]]:
    if heads is None:
        return [(l, h) for l in range(n_layers) for h in range(n_heads)]
    out = list(dict.fromkeys((int(l), int(h)) for l, h in heads))
    if not out:
        raise ValueError("heads: the list is empty; expected (layer, head) pairs, or None for all")
    for l, h in out:
        if not (0 <= l < n_layers and 0 <= h < n_heads):
            raise ValueError(f"heads: ({l}, {h}) is out of range; expected layers 0..{n_layers - 1}, heads 0..{n_heads - 1}")
    return out


def _targets(pair: Pair, positions: Sequence[int] | None) -> list[int]:
    """The positions at which an edit can change what is read: from the first difference to where the metric is read."""
    if positions is None:
        return list(range(pair.first, pair.read + 1))
    wanted = sorted(set(resolve_positions(positions, len(pair.clean))))
    useful = [p for p in wanted if pair.first <= p <= pair.read]
    if not useful:
        raise ValueError(
            f"positions: {list(positions)} reach nothing that is read; the prompts first differ at position {pair.first} "
            f"and the metric is read at {pair.read}"
        )
    return useful


@dataclass
class _Outcome:
    raw: list[Tensor]  # per example: float64 [L, H] or [L, T, H], NaN where not asked for
    self_patches: list[Tensor]  # per example: float64 [N_SELF_PATCHES]
    clean: list[float]
    corrupted: list[float]
    logits: list[Tensor]
    plan: planner.Plan


@dataclass
class _Job:
    """One sweep over checked pairs: cut into chunks that fit the budget, each chunk one staircase."""

    family: LlamaFamily
    pairs: list[Pair]
    targets: list[list[int]]
    direction: str
    metric: Metric
    heads: list[tuple[int, int]]
    by_position: bool
    budget: int
    keep_logits: bool
    seed: int
    progress: Callable[[int, int], None] | None

    def run(self) -> _Outcome:
        cfg = self.family.cfg
        prompts = [t[: p.read + 1] for p in self.pairs for t in (p.clean, p.corrupted)]
        past = run_prefix(self.family, prompts[0][: common_prefix(prompts)])
        sizes = [self._base_size(i) for i in range(len(self.pairs))]
        chunks = planner.cut(sizes, max(1, self.budget // 3))
        tables = [self._variants(range(a, b)) for a, b in chunks]
        pieces = [planner.cut((lengths * planner.row_bytes(self.family)).tolist(), self._flight()) for _, lengths, _ in tables]
        plan = self._plan(tables, pieces, max(sizes[a] if b == a + 1 else sum(sizes[a:b]) for a, b in chunks))
        shape = (cfg.n_layers, cfg.n_heads)
        out = _Outcome([], [], [], [], [], plan)
        self._done, self._total = 0, max(1, int(plan.token_forwards * cfg.n_layers))
        for (a, b), (variants, _, offset), cuts in zip(chunks, tables, pieces, strict=True):
            runs = self._run_bases(a, b, past)
            metrics, measured = self._metrics(a, b, runs)
            out.clean += measured[0]
            out.corrupted += measured[1]
            values = torch.empty(len(variants), dtype=torch.float64)
            logits = torch.empty(len(variants), cfg.d_vocab) if self.keep_logits else None
            join = _HeadJoin(self.family, runs.bases, offset, self._editable(a, b), self._signs(a, runs.bases))
            for c, d in cuts:
                which = torch.arange(c, d)
                final = Staircase(self.family, runs.bases, variants[which], join.of(which), self._tick).run()
                self._measure(final, variants.base[which], metrics, values, logits, c)
            self._collect(range(a, b), offset, values, logits, shape, out)
        return out

    # ---- what there is to do -----------------------------------------------------------------------------------------

    def _variants(self, examples: range) -> tuple[Variants, Tensor, _Numbering]:
        """All variants of these examples: for each its heads (at each position), then its self-patches."""
        heads = torch.tensor(self.heads)
        base, layer, first, head, position, lengths = [], [], [], [], [], []
        for b, i in enumerate(examples):
            target = torch.tensor(self.targets[i])
            controls = self._controls(i)
            if self.by_position:
                here = heads.repeat_interleave(len(target), 0)
                where = target.repeat(len(heads))
            else:
                here, where = heads, torch.full((len(heads),), -1)
            all_heads = torch.cat((here, controls))
            starts = torch.cat((torch.where(where < 0, target[0], where), target[:1].repeat(len(controls))))
            base.append(torch.full((len(all_heads),), b))
            layer.append(all_heads[:, 0])
            head.append(all_heads[:, 1])
            first.append(starts)
            position.append(torch.cat((where, torch.full((len(controls),), -1))))
            lengths.append(self.pairs[i].read - starts + 1)
        counts = torch.tensor([len(x) for x in base])
        numbering = _Numbering(torch.cat(head), torch.cat(position), counts.cumsum(0) - counts, counts - N_SELF_PATCHES)
        stage = torch.full((int(counts.sum()),), int(Stage.MID))
        return Variants(torch.cat(base), torch.cat(layer), stage, torch.cat(first)), torch.cat(lengths), numbering

    def _controls(self, example: int) -> Tensor:
        """(layer, head) of the self-patches [N_SELF_PATCHES, 2]: layers evenly spread, heads drawn by the seed."""
        cfg = self.family.cfg
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + example)
        layers = torch.linspace(0, cfg.n_layers - 1, N_SELF_PATCHES).round().long()
        return torch.stack((layers, torch.randint(cfg.n_heads, (N_SELF_PATCHES,), generator=generator)), 1)

    def _base_size(self, i: int) -> int:
        pair, cfg = self.pairs[i], self.family.cfg
        kept = cfg.d_model + 2 * cfg.n_heads * cfg.d_head
        return planner.base_bytes(self.family, pair.read + 1, pair.read + 1 - pair.first, kept)

    def _flight(self) -> int:
        return max(1, self.budget // 2 - planner.block_bytes(self.family))

    def _plan(self, tables, pieces, base_bytes: int) -> planner.Plan:
        cfg = self.family.cfg
        layer_rows = flop = rows = hooked = variants = 0.0
        for v, lengths, _ in tables:
            above = cfg.n_layers - 1 - v.layer
            layer_rows += float((lengths * above).sum()) + len(v)  # in the last layer one row of each variant
            keys = (v.first + lengths / 2).double()
            flop += float((lengths * above * planner.layer_flop(cfg, 0) + 4 * cfg.d_model * keys * lengths * above).sum())
            rows += float(lengths.sum())
            variants += len(v)
            hooked += float((v.first + lengths).sum())
        flight = max(int(lengths[c:d].sum()) for (_, lengths, _), cuts in zip(tables, pieces, strict=True) for c, d in cuts)
        in_flight = flight * planner.row_bytes(self.family) + planner.block_bytes(self.family) + base_bytes
        return planner.Plan(
            examples=len(self.pairs),
            variants=int(variants),
            chunks=sum(map(len, pieces)),
            rows=int(rows),
            token_forwards=layer_rows / cfg.n_layers,
            hooked_token_forwards=hooked,
            flop=flop,
            bytes_in_flight=in_flight,
            budget_bytes=self.budget,
        )

    def _tick(self, layer_rows: int) -> None:
        self._done += layer_rows
        if self.progress is not None:
            n_layers = self.family.cfg.n_layers
            self.progress(min(self._done, self._total) // n_layers, self._total // n_layers)

    # ---- runs and measurements ---------------------------------------------------------------------------------------

    def _run_bases(self, a: int, b: int, past) -> PairRuns:
        pairs = self.pairs[a:b]
        clean, corrupted = [p.clean for p in pairs], [p.corrupted for p in pairs]
        base, source = (corrupted, clean) if self.direction == "denoise" else (clean, corrupted)
        return run_pairs(
            self.family, base, source, past=past, first=[p.first for p in pairs], read=[p.read for p in pairs],
            sites=("resid_mid", "z"), source_sites=("z",),
        )  # fmt: skip

    def _metrics(self, a: int, b: int, runs: PairRuns) -> tuple[list[ExampleMetric], tuple[list[float], list[float]]]:
        """Each example's metric, and its value in the clean and in the corrupted run."""
        clean_rows, corrupted_rows = runs.source_final, runs.base_final
        if self.direction == "noise":
            clean_rows, corrupted_rows = corrupted_rows, clean_rows
        metrics, clean, corrupted = [], [], []
        for e, pair in enumerate(self.pairs[a:b]):
            ids = None if self.metric != "logit_diff" else [pair.answer, pair.wrong]
            logits = self._logits(torch.stack((clean_rows[e], corrupted_rows[e])), ids)
            metric = ExampleMetric(self.metric, logits[0] if self.metric == "kl" else None, pair.answer, pair.wrong)
            both = metric(logits).tolist()
            clean.append(both[0])
            corrupted.append(both[1])
            metrics.append(metric)
        return metrics, (clean, corrupted)

    def _logits(self, rows: Tensor, ids: Iterable[int | None] | None) -> Tensor:
        tokens = None if ids is None else torch.tensor(list(ids), device=rows.device)
        with torch.no_grad():
            return self.family.logits(rows, tokens)

    def _measure(
        self, final: Tensor, base: Tensor, metrics: list[ExampleMetric], values: Tensor, logits: Tensor | None, at: int
    ) -> None:
        for e in base.unique().tolist():
            mine = (base == e).nonzero().flatten()
            for a in range(0, len(mine), _LOGIT_ROWS):
                rows = mine[a : a + _LOGIT_ROWS]
                out = self._logits(final[rows.to(final.device)], None if logits is not None else metrics[e].token_ids)
                values[at + rows] = metrics[e](out).cpu()
                if logits is not None:
                    logits[at + rows] = out.float().cpu()

    def _editable(self, a: int, b: int) -> Tensor:
        """Which kept rows of these examples' bases are positions that edits reach: [sum of rows] bool."""
        parts = []
        for pair, target in zip(self.pairs[a:b], self.targets[a:b], strict=True):
            parts.append(torch.isin(torch.arange(pair.first, pair.read + 1), torch.tensor(target)))
        return torch.cat(parts)

    def _signs(self, a: int, bases: Bases) -> Tensor:
        """Random directions of the self-patches' steps, +1 or -1, for each row, head and channel: [sum of rows, H, D]."""
        generator = torch.Generator().manual_seed(self.seed * 7_919 + a)
        return torch.randint(2, bases.sites["z"].shape[1:], generator=generator) * 2 - 1

    def _collect(self, examples: range, numbering: _Numbering, values: Tensor, logits, shape, out: _Outcome) -> None:
        for e, i in enumerate(examples):
            a, n = int(numbering.begin[e]), int(numbering.count[e])
            heads = torch.tensor(self.heads)
            mine, controls = values[a : a + n], values[a + n : a + n + N_SELF_PATCHES]
            if self.by_position:
                base = out.corrupted[i] if self.direction == "denoise" else out.clean[i]
                grid = torch.full((shape[0], len(self.pairs[i].clean), shape[1]), float("nan"), dtype=torch.float64)
                grid[heads[:, 0], :, heads[:, 1]] = base  # where no edit can reach what is read, the run is the base
                target = torch.tensor(self.targets[i])
                grid[
                    heads[:, 0].repeat_interleave(len(target)),
                    target.repeat(len(heads)),
                    heads[:, 1].repeat_interleave(len(target)),
                ] = mine
            else:
                grid = torch.full(shape, float("nan"), dtype=torch.float64)
                grid[heads[:, 0], heads[:, 1]] = mine
            out.raw.append(grid)
            out.self_patches.append(controls)
            if logits is not None:
                kept = torch.full((*shape, logits.shape[-1]), float("nan"))
                kept[heads[:, 0], heads[:, 1]] = logits[a : a + n]
                out.logits.append(kept)


@dataclass(frozen=True)
class _Numbering:
    """What variant number v is: its head, its position (-1: all), and where an example's variants begin."""

    head: Tensor  # [N]
    position: Tensor  # [N]
    begin: Tensor  # [B]
    count: Tensor  # [B] without the self-patches, which follow


class _HeadJoin:
    """Rows of variants in which one head's z was replaced: the base's resid_mid plus the difference through W_O."""

    def __init__(self, family: LlamaFamily, bases: Bases, numbering: _Numbering, editable: Tensor, signs: Tensor) -> None:
        device = family.device
        self.family, self.bases = family, bases
        self.editable, self.signs = editable.to(device), signs.to(device)
        self.head, self.position = numbering.head.to(device), numbering.position.to(device)
        behind = torch.arange(len(numbering.head)) - numbering.begin.repeat_interleave(numbering.count + N_SELF_PATCHES)
        self.control = (behind >= numbering.count.repeat_interleave(numbering.count + N_SELF_PATCHES)).to(device)

    def of(self, which: Tensor) -> Callable[[Joining], Tensor]:
        which = which.to(self.head.device)
        return lambda joining: self.rows(joining, which[joining.variant])

    def rows(self, joining: Joining, variant: Tensor) -> Tensor:
        l, index, head = joining.layer, joining.index, self.head[variant]
        z = self.bases.sites["z"][l][index]
        r = torch.arange(len(index), device=index.device)
        wide = self.family.resid_dtype
        before = z[r, head].to(wide)
        source = self.bases.source["z"][l][index, head].to(wide)
        step = self.signs[index, head] * ulp(before, z.dtype)
        only = self.position[variant]
        dz = torch.where(self.control[variant][:, None], step, source - before)
        dz = dz * (self.editable[index] & ((only < 0) | (only == joining.position)))[:, None]
        return self.family.join(l, self.bases.sites["resid_mid"][l][index], z, dz, head)


def ulp(x: Tensor, dtype: torch.dtype) -> Tensor:
    """One unit in the last place of x as a number of `dtype` (0 for 0)."""
    exponent = torch.floor(torch.log2(x.abs().clamp_min(torch.finfo(dtype).tiny)))
    return torch.where(x == 0, 0.0, torch.exp2(exponent) * torch.finfo(dtype).eps)


def _result(model, out: _Outcome, pairs, direction, metric, normalize, by_position, single) -> Sweep:
    name = check_metric(metric, 0, 0)
    raw, clean, corrupted = torch.stack(out.raw), torch.tensor(out.clean).double(), torch.tensor(out.corrupted).double()
    controls = torch.stack(out.self_patches)  # [B, n]
    mean = raw.mean(0)
    to_scale = (lambda m: normalise(name, m, clean.mean(), corrupted.mean())) if normalize else (lambda m: m)
    values = to_scale(mean)
    control = to_scale(controls.mean(0))
    sign = 1.0 if direction == "denoise" or not normalize else -1.0
    effect = sign * (values - control.mean())
    if by_position:  # an edit that reaches nothing has no effect at all, not that of rounding
        reach = torch.zeros(raw.shape[2], dtype=torch.bool)
        for pair in pairs:
            reach[pair.first : pair.read + 1] = True
        effect[:, ~reach] = 0.0
    return Sweep(
        values=values.float().numpy(),
        raw=(raw[0] if single else raw).numpy(),
        effect=effect.float().numpy(),
        clean_metric=clean.numpy(),
        corrupted_metric=corrupted.numpy(),
        noise_floor=float((control - control.mean()).abs().max()),
        metric=name,
        direction=direction,
        site="z",
        normalized=normalize,
        by_position=by_position,
        plan=out.plan,
        model_name=model.name,
        logits=(out.logits[0] if single else torch.stack(out.logits)) if out.logits else None,
    )
