"""A sweep over aligned pairs: one place of the model at a time takes its value from the other run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NotRequired, TypedDict, Unpack

import torch
from torch import Tensor

from pycotmech._warnings import warn
from pycotmech.engine import planner
from pycotmech.engine.bases import PairRuns, Readings, Stage, common_prefix, sequences_run
from pycotmech.engine.evaluate import SELF_PATCH_SITES, Evaluator, HeadJoins, read_counts, self_patch_signs, self_patches
from pycotmech.engine.metrics import ExampleMetric, Metric, check_metric, normalise
from pycotmech.engine.row_edits import PER_QUERY, Entries, RowEdits, SourceValues
from pycotmech.engine.rows import Variants
from pycotmech.model.arguments import check_seed
from pycotmech.model.families.base import Family
from pycotmech.model.model import Tokens
from pycotmech.model.prefixes import Prefixes
from pycotmech.model.run import KeyValues
from pycotmech.model.sites import RESIDUAL_SITES
from pycotmech.patching.edits import JOINS_AT, heads_of, reaches
from pycotmech.patching.groups import Groups, each_labels
from pycotmech.patching.pairs import Pair, make_pairs, targets_of
from pycotmech.patching.results import Sweep
from pycotmech.patching.shared_runs import SharedRun, each_alone, example_metrics, prompts_of, run_hosts, shared_runs

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
    check_seed(given["seed"])
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


@dataclass
class Outcome:
    """By number of the example: raw float64 [L, T or 1, columns], NaN where not asked for; self-patches [N_SELF_PATCHES]."""

    raw: dict[int, Tensor]
    self_patches: dict[int, Tensor]
    clean: dict[int, float]
    corrupted: dict[int, float]
    logits: dict[int, Tensor]  # [L, T or 1, columns, V]
    plan: planner.Plan


@dataclass(frozen=True)
class _Table:
    """The variants of some runs: for each run its places (at each position), then its self-patches."""

    variants: Variants
    lengths: Tensor  # [N]
    head: Tensor  # [N]; -1 where the site has none
    group: Tensor  # [N] which positions, as `PatchJob.labels` numbers them; -1: all targets
    control: Tensor  # [N] bool
    tables: dict[tuple[str, int], Entries]


@dataclass(frozen=True)
class Cuts:
    """Ranges of runs (`PatchJob.runs`) that are made together; of each the variants, and the ranges of these that are."""

    chunks: list[tuple[int, int]]
    tables: list[_Table]
    pieces: list[list[tuple[int, int]]]
    plan: planner.Plan


@dataclass
class PatchJob:
    """One sweep over checked pairs: cut into chunks of examples that fit the budget, each chunk a few staircases.

    site: as `RowEdits` names it. places: (layer, head) of what is patched, head 0 where the site has none.
    targets: for each pair the positions that are patched, ascending.
    """

    family: Family
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
            warn(
                f"positions: in layer(s) {idle} {self.site} at these positions reaches nothing that is read in any example; "
                "the values there are those of the untouched run"
            )
        reached = set()
        for i, labels in enumerate(self.labels if self.groups else []):
            reached |= set(labels[self.reach(i)[layers].any(0)].tolist())
        for g, name in enumerate(self.groups or ()):
            if g not in reached:
                warn(
                    f"groups: {name!r} reaches nothing that is read in any example, for the prompts do not differ there or the "
                    "metric is read in front of it; its values are those of the untouched run"
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
        hosts = [(run.host, self.pairs[run.host]) for run in self.runs]
        sizes = [evaluator.base_bytes(p.read + 1, 2 * (p.read + 1 - self.kept_from(i)), needed) for i, p in hosts]
        chunks = planner.cut(sizes, max(1, evaluator.budget // 3))
        shared = 2 * evaluator.base_bytes(self.shared, 0, ())  # once for the call, once kept for calls to come
        tables = [self._table(self.runs[a:b]) for a, b in chunks]
        held = [shared + sum(sizes[a:b]) for a, b in chunks]
        reads = [[[self.pairs[i].read for i in run.readers] for run in self.runs[a:b]] for a, b in chunks]
        count = [int(read_counts(t.variants.base, at).sum()) for t, at in zip(tables, reads, strict=True)]
        pieces = [evaluator.pieces(t.lengths, h, columns, n) for t, h, n in zip(tables, held, count, strict=True)]
        prompts, passing = planner.prefix_work(family, self.shared), 0
        for (a, b), h in zip(chunks, held, strict=True):
            _, passes = sequences_run(*prompts_of([p for _, p in hosts[a:b]], self.direction), self.shared)
            for sequences in passes:
                prompts += planner.prompt_work(family, sequences)
                passing = max(passing, h + planner.pass_bytes(family, sum(end - start for start, end in sequences)))
        plan = evaluator.plan(
            [(t.variants, t.lengths) for t in tables], pieces, max(held), len(self.pairs),
            moves=[self._moves(t) for t in tables], reads=reads, columns=columns, prompts=prompts,
        )  # fmt: skip
        plan = replace(plan, bytes_in_flight=max(plan.bytes_in_flight, passing))
        return Cuts(chunks, tables, pieces, plan)

    def run(self) -> Outcome:
        cuts = self.cuts
        past = self.prefixes.key_values(self.pairs[0].clean[: self.shared], self.evaluator.budget)
        out = Outcome({}, {}, {}, {}, {}, cuts.plan)
        for (a, b), table, pieces in zip(cuts.chunks, cuts.tables, cuts.pieces, strict=True):
            some = self.runs[a:b]
            runs = self._run_bases(some, past)
            readers = [i for run in some for i in run.readers]
            metrics = self._metrics(readers, runs, out)
            joins = self._joins(some, a, runs, table)
            source = SourceValues(self.family, runs.bases)
            edits = RowEdits(self.family, runs.bases, table.tables, source)
            values, logits = self.evaluator.run(table.variants, pieces, joins, edits, metrics)
            self._collect(readers, runs.bases.readings(table.variants.base), table, values, logits, out)
        return out

    @cached_property
    def runs(self) -> list[SharedRun]:
        """What is run: pairs that begin another one are read off it where one position after another is not asked for."""
        if self.site != "z" or self.by_position or self.groups:
            return each_alone(len(self.pairs))
        return shared_runs(self.pairs, self.targets)

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

    def _table(self, runs: Sequence[SharedRun]) -> _Table:
        places = torch.tensor(self.places)
        found: list[tuple[Tensor, ...]] = []  # base, layer, stage, first, head, group, control
        entries: list[tuple[Tensor, ...]] = []  # variant, layer, position, head, ref
        count = rows = 0
        for b, run in enumerate(runs):
            i = run.host
            reach = self.reach(i)
            for reader in run.readers[:-1]:  # in the last layer an edit reaches the position itself alone
                reach = reach | torch.nn.functional.pad(self.reach(reader), (0, reach.shape[1] - len(self.pairs[reader].clean)))
            place, where = reach[places[:, 0]].nonzero().T  # ascending in both: place after place
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
        read = torch.tensor([self.pairs[run.host].read for run in runs])
        tables = {}
        if entries:
            variant, at, where, heads, ref = map(torch.cat, zip(*entries, strict=True))
            for l in at.unique().tolist():
                mine = (at == l).nonzero().flatten()
                tables[self.site, l] = Entries(variant[mine], where[mine], heads[mine], ref[mine])
        variants = Variants(base, layer, stage, first)
        return _Table(variants, read[base] - first + 1, head, group, control, tables)

    @cached_property
    def _has_heads(self) -> bool:
        return heads_of(self.family.cfg, self.site) > 0

    # ---- runs and measurements ---------------------------------------------------------------------------------------

    def _run_bases(self, some: Sequence[SharedRun], past: KeyValues | None) -> PairRuns:
        first = [self.kept_from(run.host) for run in some]
        return run_hosts(
            self.family, self.pairs, some, self.direction, past, first, self.base_sites, self.source_sites
        )  # fmt: skip

    def _metrics(self, readers: Sequence[int], runs: PairRuns, out: Outcome) -> list[ExampleMetric]:
        """Each example's metric; its value in the clean and in the corrupted run goes to `out`."""
        pairs = [self.pairs[i] for i in readers]
        metrics, both = example_metrics(self.evaluator, self.metric, pairs, self.direction, runs)
        out.clean |= {i: clean for i, (clean, _) in zip(readers, both, strict=True)}
        out.corrupted |= {i: corrupted for i, (_, corrupted) in zip(readers, both, strict=True)}
        return metrics

    def _joins(self, some: Sequence[SharedRun], a: int, runs: PairRuns, table: _Table) -> HeadJoins:
        """a: the number of the first of these runs."""
        editable, labels = [], []
        for i in (run.host for run in some):
            kept = torch.arange(self.kept_from(i), self.pairs[i].read + 1)
            editable.append(torch.isin(kept, torch.tensor(self.targets[i])))
            labels.append(self.labels[i][kept])
        return HeadJoins.on_device_of(
            self.family, runs.bases, control=table.control, moves=self._moves(table), head=table.head, position=table.group,
            editable=torch.cat(editable), signs=self_patch_signs(runs.bases, self.seed, a), labels=torch.cat(labels),
        )  # fmt: skip

    def _moves(self, table: _Table) -> Tensor:
        """Which variants join by a difference in z."""
        return table.control if self.site != "z" else torch.ones_like(table.control)

    def _collect(
        self, readers: Sequence[int], read: Readings, table: _Table, values: Tensor, logits: Tensor | None, out: Outcome
    ) -> None:
        """To each of these examples, in the order in which the runs are read, its values."""
        cfg, places = self.family.cfg, torch.tensor(self.places)
        control = table.control[read.variant]
        for number, i in enumerate(readers):
            columns = heads_of(cfg, self.site) or 1
            parts = len(self.groups) if self.groups else len(self.pairs[i].clean) if self.by_position else 1
            shape = (cfg.n_layers, parts, columns)
            grid = torch.full(shape, float("nan"), dtype=torch.float64)
            # Where no edit can reach what is read, the run is the base.
            grid[places[:, 0], :, places[:, 1]] = out.corrupted[i] if self.direction == "denoise" else out.clean[i]
            mine = ((read.number == number) & ~control).nonzero().flatten()
            variant = read.variant[mine]
            where = (table.variants.layer[variant], table.group[variant], table.head[variant])
            grid[where] = values[mine]
            out.raw[i] = grid
            out.self_patches[i] = values[(read.number == number) & control]
            if logits is not None:
                kept = torch.full((*shape, logits.shape[-1]), float("nan"))
                kept[where] = logits[mine]
                out.logits[i] = kept


def _by_group(job: PatchJob, reach: Tensor, labels: Tensor) -> Tensor:
    """bool [L, T] -> whether any position of each group is among them [L, groups]."""
    n = len(job.groups) if job.groups else len(labels) if job.by_position else 1
    return torch.stack([reach[:, labels == g].any(1) for g in range(n)], 1)


def finish_job(model: Model, job: PatchJob, normalize: bool, single: bool) -> Sweep:
    """Runs a job and puts its numbers on the scale of a `Sweep`."""
    return _scaled(model, job, job.run(), range(len(job.pairs)), normalize, single)


def finish_each(model: Model, job: PatchJob, normalize: bool) -> list[Sweep]:
    """Runs a job and gives each of its pairs a `Sweep` of its own."""
    out = job.run()
    return [_scaled(model, job, out, [i], normalize, True) for i in range(len(job.pairs))]


def _scaled(model: Model, job: PatchJob, out: Outcome, which: Sequence[int], normalize: bool, single: bool) -> Sweep:
    """What was found for these pairs, on the scale of a `Sweep`."""
    name = check_metric(job.metric, 0, 0)
    clean, corrupted = (torch.tensor([of[i] for i in which]).double() for of in (out.clean, out.corrupted))
    raw, controls = (torch.stack([of[i] for i in which]) for of in (out.raw, out.self_patches))  # controls [B, n]
    to_scale = (lambda m: normalise(name, m, clean.mean(), corrupted.mean())) if normalize else (lambda m: m)
    values = to_scale(raw.mean(0))
    control = to_scale(controls.mean(0))
    sign = 1.0 if job.direction == "denoise" or not normalize else -1.0
    effect = sign * (values - control.mean())
    # An edit that reaches nothing has no effect, not that of rounding.
    reach = torch.stack([_by_group(job, job.reach(i), job.labels[i]) for i in which]).any(0)
    effect[~reach[..., None] & ~effect.isnan()] = 0.0

    logits = None
    if out.logits:
        logits = job.shaped(out.logits[which[0]], 1) if single else job.shaped(torch.stack([out.logits[i] for i in which]), 2)
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
