"""A sweep over aligned pairs: one place of the model at a time takes its value from the other run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NotRequired, TypedDict, Unpack

import torch
from torch import Tensor

from pycotmech.model.families import LlamaFamily
from pycotmech.model.model import Tokens, resolve_positions
from pycotmech.model.prefixes import Prefixes
from pycotmech.model.run import KeyValues
from pycotmech.model.sites import RESIDUAL_SITES
from pycotmech.patching import planner
from pycotmech.patching.bases import PairRuns, Stage, common_prefix, run_pairs, sequences_run
from pycotmech.patching.edits import JOINS_AT, heads_of, reaches
from pycotmech.patching.evaluate import SELF_PATCH_SITES, Evaluator, HeadJoins, self_patch_signs, self_patches
from pycotmech.patching.groups import Groups, each_labels
from pycotmech.patching.late import PER_QUERY, Entries, LateEdits, SourceValues
from pycotmech.patching.metrics import ExampleMetric, Metric, check_metric, normalise
from pycotmech.patching.pairs import Pair, make_pairs
from pycotmech.patching.results import Sweep
from pycotmech.patching.staircase import Variants

if TYPE_CHECKING:
    from pycotmech.model import Model


def patch_pairs(
    model: Model,
    clean: Tokens | Sequence[Tokens],
    corrupted: Tokens | Sequence[Tokens],
    *,
    normalize: bool,
    **arguments: Unpack[JobArguments],
) -> Sweep:
    """`patch_heads` and `patch_residual`, for places (layer, head) that are already checked."""
    job, single = prepare_job(model, clean, corrupted, **arguments)
    return finish_job(model, job, normalize, single)


class JobArguments(TypedDict):
    """What `PatchJob`s are made from, as the arguments of `patch_heads`; places: as in `PatchJob`."""

    site: str
    places: list[tuple[int, int]]
    direction: str
    positions: Sequence[int] | None
    by_position: bool
    groups: NotRequired[Groups | Sequence[Groups] | None]
    metric: Metric
    answer: int | str | Sequence[int | str] | None
    wrong: int | str | Sequence[int | str] | None
    read: int | Sequence[int]
    memory_gb: float | None
    return_logits: bool
    seed: int
    progress: Callable[[int, int], None] | None


def prepare_job(
    model: Model,
    clean: Tokens | Sequence[Tokens],
    corrupted: Tokens | Sequence[Tokens],
    **arguments: Unpack[JobArguments],
) -> tuple[PatchJob, bool]:
    """The job, checked, before anything is run; and whether one pair was given rather than a list."""
    given = arguments
    direction, metric, positions, by_position = given["direction"], given["metric"], given["positions"], given["by_position"]
    site, places, answer, wrong = given["site"], given["places"], given["answer"], given["wrong"]
    if direction not in ("denoise", "noise"):
        raise ValueError(f"direction: got {direction!r}; expected 'denoise' or 'noise'")
    check_metric(metric, answer, wrong)
    model.family.refuse_unsupported()
    pairs, single = make_pairs(model, clean, corrupted, answer=answer, wrong=wrong, read=given["read"])
    budget = planner.memory_budget(given["memory_gb"], model.device)
    groups = given.get("groups")
    names, labels = _labels(pairs, groups, positions, by_position)
    targets = [
        targets_of(pair, positions) if groups is None else _grouped(pair, l) for pair, l in zip(pairs, labels, strict=True)
    ]
    if by_position and len({len(p.clean) for p in pairs}) > 1:
        raise ValueError(
            "by_position: the prompts have different lengths, so positions do not correspond; expected equal lengths"
        )
    evaluator = Evaluator(model.family, budget, given["return_logits"], given["progress"])
    job = PatchJob(
        model.family, model.prefixes, pairs, targets, direction, metric, site, places, by_position, given["seed"], evaluator,
        names, labels,
    )  # fmt: skip
    job.warn()
    for i in range(len(pairs)):
        if not any(bool(job.reach(i)[l].any()) for l, _ in places):
            raise ValueError(
                f"positions: {site} at {targets[i]} in layers {sorted({l for l, _ in places})} reaches nothing that is read; "
                f"the metric is read at position {pairs[i].read}, after the last layer"
            )
    return job, single


def _labels(
    pairs: list[Pair], groups: Groups | Sequence[Groups] | None, positions: Sequence[int] | None, by_position: bool
) -> tuple[tuple[str, ...] | None, list[Tensor]]:
    """Names of the groups of positions that are patched one at a time, None where the names are the positions or there is
    one for all; and the number of the group of each position, -1 for none."""
    lengths = [len(p.clean) for p in pairs]
    if groups is not None:
        if by_position:
            raise ValueError("groups: got groups and by_position=True; expected one of them")
        if positions is not None:
            raise ValueError("positions: the groups say which; expected None with groups=")
        return each_labels(groups, lengths)
    return None, [torch.arange(n) if by_position else torch.zeros(n, dtype=torch.long) for n in lengths]


def _grouped(pair: Pair, labels: Tensor) -> list[int]:
    found = (labels >= 0).nonzero().flatten()
    useful = found[(found >= pair.first) & (found <= pair.read)].tolist()
    if not useful:
        raise ValueError(
            f"groups: none of them reaches what is read; the prompts first differ at position {pair.first} and the metric is "
            f"read at {pair.read}"
        )
    return useful


def targets_of(pair: Pair, positions: Sequence[int] | None) -> list[int]:
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
class Outcome:
    """Per example: raw float64 [L, T or 1, columns], NaN where not asked for; the self-patches [N_SELF_PATCHES]."""

    raw: list[Tensor]
    self_patches: list[Tensor]
    clean: list[float]
    corrupted: list[float]
    logits: list[Tensor]  # [L, T or 1, columns, V]
    plan: planner.Plan


@dataclass(frozen=True)
class _Table:
    """The variants of some examples: for each example its places (at each position), then its self-patches."""

    variants: Variants
    lengths: Tensor  # [N]
    head: Tensor  # [N]; -1 where the site has none
    group: Tensor  # [N] which positions, as `PatchJob.labels` numbers them; -1: all targets
    control: Tensor  # [N] bool
    example: Tensor  # [N] number among these examples
    tables: dict[tuple[str, int], Entries]


@dataclass(frozen=True)
class Cuts:
    """Ranges of examples that are run together; of each the variants, and the ranges of these that are."""

    chunks: list[tuple[int, int]]
    tables: list[_Table]
    pieces: list[list[tuple[int, int]]]
    plan: planner.Plan


@dataclass
class PatchJob:
    """One sweep over checked pairs: cut into chunks of examples that fit the budget, each chunk a few staircases.

    site: as `LateEdits` names it. places: (layer, head) of what is patched, head 0 where the site has none.
    targets: for each pair the positions that are patched, ascending.
    """

    family: LlamaFamily
    prefixes: Prefixes
    pairs: list[Pair]
    targets: list[list[int]]
    direction: str
    metric: Metric
    site: str
    places: list[tuple[int, int]]
    by_position: bool
    seed: int
    evaluator: Evaluator
    groups: tuple[str, ...] | None
    labels: list[Tensor]

    def warn(self) -> None:
        """Says in which layers nothing can change in any example, and which groups change nothing wherever they are patched."""
        layers = sorted({l for l, _ in self.places})
        reach = [self.reach(i).any(1) for i in range(len(self.pairs))]
        idle = [l for l in layers if not any(r[l] for r in reach)]
        if idle:
            warnings.warn(
                f"positions: in layer(s) {idle} {self.site} at these positions reaches nothing that is read in any example; "
                "the values there are those of the untouched run",
                stacklevel=5,
            )
        reached = set()
        for i, labels in enumerate(self.labels if self.groups else []):
            reached |= set(labels[self.reach(i)[layers].any(0)].tolist())
        for g, name in enumerate(self.groups or ()):
            if g not in reached:
                warnings.warn(
                    f"groups: {name!r} reaches nothing that is read in any example, for the prompts do not differ there or the "
                    "metric is read in front of it; its values are those of the untouched run",
                    stacklevel=5,
                )

    @cached_property
    def stage(self) -> Stage:
        return Stage.MID if self.site == "z" else JOINS_AT.get(self.site, Stage.PRE)

    @cached_property
    def source_sites(self) -> tuple[str, ...]:
        if self.site == "pattern":
            return ("q", "k")
        return (self.site[0],) if self.site in PER_QUERY.values() else (self.site,)

    @cached_property
    def base_sites(self) -> tuple[str, ...]:
        added_to = {"attn_out": "resid_pre", "mlp_out": "resid_mid"}.get(self.site)
        sites = (*SELF_PATCH_SITES, self.stage.site, *([added_to] if added_to else []))
        return tuple(dict.fromkeys(sites))

    @cached_property
    def shared(self) -> int:
        """How many tokens all prompts begin with."""
        return common_prefix([t[: p.read + 1] for p in self.pairs for t in (p.clean, p.corrupted)])

    @cached_property
    def cuts(self) -> Cuts:
        """How the sweep is cut to fit its budget. Raises ValueError if one example with one variant does not."""
        evaluator, family = self.evaluator, self.family
        columns = 2 if self.metric == "logit_diff" else None
        needed = dict.fromkeys((*self.base_sites, *self.source_sites))  # a pass keeps them of both runs
        sizes = [
            evaluator.base_bytes(p.read + 1, 2 * (p.read + 1 - self.kept_from(i)), needed) for i, p in enumerate(self.pairs)
        ]
        chunks = planner.cut(sizes, max(1, evaluator.budget // 3))
        shared = 2 * evaluator.base_bytes(self.shared, 0, ())  # once for the call, once kept for calls to come
        tables = [self._table(range(a, b)) for a, b in chunks]
        held = [shared + sum(sizes[a:b]) for a, b in chunks]
        pieces = [evaluator.pieces(t.lengths, h, columns) for t, h in zip(tables, held, strict=True)]
        prompts, passing = planner.prefix_work(family, self.shared), 0
        for (a, b), h in zip(chunks, held, strict=True):
            _, passes = sequences_run(*prompts_of(self.pairs[a:b], self.direction), self.shared)
            for sequences in passes:
                prompts += planner.prompt_work(family, sequences)
                passing = max(passing, h + planner.pass_bytes(family, sum(end - start for start, end in sequences)))
        plan = evaluator.plan(
            [(t.variants, t.lengths) for t in tables], pieces, max(held), len(self.pairs),
            moves=[self._moves(t) for t in tables], columns=columns, prompts=prompts,
        )  # fmt: skip
        plan = replace(plan, bytes_in_flight=max(plan.bytes_in_flight, passing))
        return Cuts(chunks, tables, pieces, plan)

    def run(self) -> Outcome:
        cuts = self.cuts
        past = self.prefixes.key_values(self.pairs[0].clean[: self.shared], self.evaluator.budget)
        out = Outcome([], [], [], [], [], cuts.plan)
        for (a, b), table, pieces in zip(cuts.chunks, cuts.tables, cuts.pieces, strict=True):
            runs = self._run_bases(a, b, past)
            metrics = self._metrics(a, b, runs, out)
            joins = self._joins(a, b, runs, table)
            source = SourceValues(self.family, runs.bases)
            edits = LateEdits(self.family, runs.bases, table.tables, source)
            values, logits = self.evaluator.run(table.variants, pieces, joins, edits, metrics)
            for e, i in enumerate(range(a, b)):
                self._collect(e, i, table, values, logits, out)
        return out

    def kept_from(self, i: int) -> int:
        """The first position of example i whose activations are needed: a pattern of the source run is made from its keys."""
        return self.pairs[i].first if self.site == "pattern" else self.targets[i][0]

    def reach(self, i: int) -> Tensor:
        """Where an edit of example i can change what is read: bool [L, T]."""
        pair, n = self.pairs[i], self.family.cfg.n_layers
        positions = torch.arange(len(pair.clean))
        target = torch.isin(positions, torch.tensor(self.targets[i]))
        return torch.stack([target & reaches(self.site, l == n - 1, positions, pair.read) for l in range(n)])

    def shaped(self, x: Tensor, at: int) -> Tensor:
        """Without the axes that this job does not have: positions at `at`, heads behind it."""
        if self.site in RESIDUAL_SITES:
            x = x.squeeze(at + 1)
        return x if self.by_position or self.groups else x.squeeze(at)

    # ---- what there is to do -----------------------------------------------------------------------------------------

    def _table(self, examples: range) -> _Table:
        places = torch.tensor(self.places)
        found: list[tuple[Tensor, ...]] = []  # base, layer, stage, first, head, group, control
        entries: list[tuple[Tensor, ...]] = []  # variant, layer, position, head, ref
        count = rows = 0
        for b, i in enumerate(examples):
            place, where = self.reach(i)[places[:, 0]].nonzero().T  # ascending in both: place after place
            kept, variant = torch.stack((place, self.labels[i][where]), 1).unique(dim=0, return_inverse=True)
            heads, group = places[kept[:, 0]], kept[:, 1]
            first = torch.full((len(kept),), len(self.pairs[i].clean)).scatter_reduce(0, variant, where, "amin")
            if self.site != "z":
                head = places[place, 1] if self._has_heads else torch.full_like(place, -1)
                order = torch.argsort(variant, stable=True)
                entry = (count + variant, places[place, 0], where, head, rows + where - self.kept_from(i))
                entries.append(tuple(t[order] for t in entry))
            controls = self_patches(self.family.cfg, self.seed, i)
            n, c = len(heads), len(controls)
            found.append(
                (
                    torch.full((n + c,), b),
                    torch.cat((heads[:, 0], controls[:, 0])),
                    torch.cat((torch.full((n,), int(self.stage)), torch.full((c,), int(Stage.MID)))),
                    torch.cat((first, torch.full((c,), self.targets[i][0]))),
                    torch.cat((heads[:, 1], controls[:, 1])),
                    torch.cat((group, torch.full((c,), -1))),
                    torch.arange(n + c) >= n,
                )
            )
            count += n + c
            rows += self.pairs[i].read + 1 - self.kept_from(i)
        base, layer, stage, first, head, group, control = map(torch.cat, zip(*found, strict=True))
        read = torch.tensor([self.pairs[i].read for i in examples])
        tables = {}
        if entries:
            variant, at, where, heads, ref = map(torch.cat, zip(*entries, strict=True))
            for l in at.unique().tolist():
                mine = (at == l).nonzero().flatten()
                tables[self.site, l] = Entries(variant[mine], where[mine], heads[mine], ref[mine])
        variants = Variants(base, layer, stage, first)
        return _Table(variants, read[base] - first + 1, head, group, control, base, tables)

    @cached_property
    def _has_heads(self) -> bool:
        return heads_of(self.family.cfg, self.site) > 0

    # ---- runs and measurements ---------------------------------------------------------------------------------------

    def _run_bases(self, a: int, b: int, past: KeyValues | None) -> PairRuns:
        first = [self.kept_from(i) for i in range(a, b)]
        return run_examples(self.family, self.pairs[a:b], self.direction, past, first, self.base_sites, self.source_sites)

    def _metrics(self, a: int, b: int, runs: PairRuns, out: Outcome) -> list[ExampleMetric]:
        """Each example's metric; its value in the clean and in the corrupted run goes to `out`."""
        metrics, both = example_metrics(self.evaluator, self.metric, self.pairs[a:b], self.direction, runs)
        out.clean += [clean for clean, _ in both]
        out.corrupted += [corrupted for _, corrupted in both]
        return metrics

    def _joins(self, a: int, b: int, runs: PairRuns, table: _Table) -> HeadJoins:
        editable, labels = [], []
        for i in range(a, b):
            kept = torch.arange(self.kept_from(i), self.pairs[i].read + 1)
            editable.append(torch.isin(kept, torch.tensor(self.targets[i])))
            labels.append(self.labels[i][kept])
        device = self.family.device
        signs = self_patch_signs(runs.bases, self.seed, a)
        each = (table.control, self._moves(table), table.head, table.group, torch.cat(editable), signs, torch.cat(labels))
        return HeadJoins(self.family, runs.bases, *(t.to(device) for t in each))

    def _moves(self, table: _Table) -> Tensor:
        """Which variants join by a difference in z."""
        return table.control if self.site != "z" else torch.ones_like(table.control)

    def _collect(self, e: int, i: int, table: _Table, values: Tensor, logits: Tensor | None, out: Outcome) -> None:
        cfg, pair = self.family.cfg, self.pairs[i]
        columns = heads_of(cfg, self.site) or 1
        parts = len(self.groups) if self.groups else len(pair.clean) if self.by_position else 1
        shape = (cfg.n_layers, parts, columns)
        grid = torch.full(shape, float("nan"), dtype=torch.float64)
        places = torch.tensor(self.places)
        # Where no edit can reach what is read, the run is the base.
        grid[places[:, 0], :, places[:, 1]] = out.corrupted[i] if self.direction == "denoise" else out.clean[i]
        mine = ((table.example == e) & ~table.control).nonzero().flatten()
        where = (table.variants.layer[mine], table.group[mine], table.head[mine])
        grid[where] = values[mine]
        out.raw.append(grid)
        out.self_patches.append(values[(table.example == e) & table.control])
        if logits is not None:
            kept = torch.full((*shape, logits.shape[-1]), float("nan"))
            kept[where] = logits[mine]
            out.logits.append(kept)


def run_examples(
    family: LlamaFamily,
    pairs: Sequence[Pair],
    direction: str,
    past: KeyValues | None,
    first: Sequence[int],
    sites: Sequence[str],
    source_sites: Sequence[str],
) -> PairRuns:
    """Both runs of checked pairs, with what is kept of the base and of the source run in this direction, from `first` on."""
    base, source = prompts_of(pairs, direction)
    return run_pairs(
        family, base, source, past=past, first=first, read=[p.read for p in pairs],
        sites=sites, source_sites=source_sites,
    )  # fmt: skip


def example_metrics(
    evaluator: Evaluator, metric: Metric, pairs: Sequence[Pair], direction: str, runs: PairRuns
) -> tuple[list[ExampleMetric], list[tuple[float, float]]]:
    """Each example's metric, and its value in the (clean, corrupted) run."""
    clean_rows, corrupted_rows = runs.source_final, runs.base_final
    if direction == "noise":
        clean_rows, corrupted_rows = corrupted_rows, clean_rows
    metrics, values = [], []
    for e, pair in enumerate(pairs):
        ids = None if metric != "logit_diff" else [pair.answer, pair.wrong]
        logits = evaluator.logits(torch.stack((clean_rows[e], corrupted_rows[e])), ids)
        measure = ExampleMetric(metric, logits[0] if metric == "kl" else None, pair.answer, pair.wrong)
        clean, corrupted = measure(logits).tolist()
        values.append((0.0 if metric == "kl" else clean, corrupted))  # KL(P || P), without the rounding of its sum
        metrics.append(measure)
    return metrics, values


def prompts_of(pairs: Sequence[Pair], direction: str) -> tuple[list[Tensor], list[Tensor]]:
    """Base and source prompts, up to where they are read."""
    clean, corrupted = [p.clean[: p.read + 1] for p in pairs], [p.corrupted[: p.read + 1] for p in pairs]
    return (corrupted, clean) if direction == "denoise" else (clean, corrupted)


def _by_group(job: PatchJob, reach: Tensor, labels: Tensor) -> Tensor:
    """bool [L, T] -> whether any position of each group is among them [L, groups]."""
    n = len(job.groups) if job.groups else len(labels) if job.by_position else 1
    return torch.stack([reach[:, labels == g].any(1) for g in range(n)], 1)


def finish_job(model: Model, job: PatchJob, normalize: bool, single: bool) -> Sweep:
    """Runs a job and puts its numbers on the scale of a `Sweep`."""
    out = job.run()
    name = check_metric(job.metric, 0, 0)
    raw, clean, corrupted = torch.stack(out.raw), torch.tensor(out.clean).double(), torch.tensor(out.corrupted).double()
    controls = torch.stack(out.self_patches)  # [B, n]
    to_scale = (lambda m: normalise(name, m, clean.mean(), corrupted.mean())) if normalize else (lambda m: m)
    values = to_scale(raw.mean(0))
    control = to_scale(controls.mean(0))
    sign = 1.0 if job.direction == "denoise" or not normalize else -1.0
    effect = sign * (values - control.mean())
    reach = [job.reach(i) for i in range(len(job.pairs))]  # an edit that reaches nothing has no effect, not that of rounding
    reach = torch.stack([_by_group(job, r, labels) for r, labels in zip(reach, job.labels, strict=True)]).any(0)
    effect[~reach[..., None] & ~effect.isnan()] = 0.0

    logits = None
    if out.logits:
        logits = job.shaped(out.logits[0], 1) if single else job.shaped(torch.stack(out.logits), 2)
    return Sweep(
        values=job.shaped(values, 1).float().numpy(),
        raw=(job.shaped(raw[0], 1) if single else job.shaped(raw, 2)).numpy(),
        effect=job.shaped(effect, 1).float().numpy(),
        clean_metric=clean.numpy(),
        corrupted_metric=corrupted.numpy(),
        noise_floor=float((control - control.mean()).abs().max()),
        metric=name,
        direction=job.direction,
        site=job.site,
        normalized=normalize,
        by_position=job.by_position,
        groups=job.groups,
        plan=out.plan,
        model_name=model.name,
        logits=logits,
    )
