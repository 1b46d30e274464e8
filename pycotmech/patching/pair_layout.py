"""Which variants a sweep over pairs consists of: one place of the model at a time takes its value from the other run, at all
positions, at each position on its own, or at each group of positions on its own; and the same from a control's prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from pycotmech._warnings import warn
from pycotmech._words import listed
from pycotmech.engine.bases import Stage
from pycotmech.engine.joins import controls_of, with_controls
from pycotmech.engine.row_edits import PER_QUERY, Entries
from pycotmech.engine.rows import Variants
from pycotmech.model.config import ModelConfig
from pycotmech.model.sites import RESIDUAL_SITES
from pycotmech.patching.controls import ControlRequest
from pycotmech.patching.distinct import distinct
from pycotmech.patching.edits import JOINS_AT, base_sites, heads_of, reaches
from pycotmech.patching.pairs import Pair, targets_of
from pycotmech.patching.position_groups import PositionGroups, labels_of_prompts
from pycotmech.patching.shared_runs import SharedRun, each_alone, shared_runs


@dataclass(frozen=True)
class VariantTable:
    """N variants of some runs, as arrays: for each run its places, part by part, some of them again with the values of an
    unrelated prompt, then its self-patches and jittered copies."""

    variants: Variants
    lengths: Tensor  # [N] rows
    head: Tensor  # [N]; -1 where the site has none
    part: Tensor  # [N] which positions, as `PairLayout.labels` numbers them; -1: all targets
    control: Tensor  # [N] bool: the self-patches and the jittered copies
    random: Tensor  # [N] bool: those with the values of an unrelated prompt
    streams: Tensor  # [N] of the noise of the jittered copies; -1: none
    edits: dict[tuple[str, int], Entries]


@dataclass(frozen=True)
class PairLayout:
    """The variants of B pairs.

    site: as `RowEdits` names it. places: (layer, head) of what is patched, head 0 where the site has none.
    targets: for each pair the positions that are patched, ascending. labels: for each pair [T] the part of the results that
    each position belongs to: the position itself, the group of positions (named in `group_names`), or 0; -1 for none.
    controls: those that were asked for, of site z.
    """

    cfg: ModelConfig
    pairs: list[Pair]
    site: str
    places: list[tuple[int, int]]
    by_position: bool
    group_names: tuple[str, ...] | None
    targets: list[list[int]]
    labels: list[Tensor]
    seed: int
    controls: ControlRequest | None = None

    # ---- the shape of the results ------------------------------------------------------------------------------------

    @property
    def n_parts(self) -> int:
        return len(self.group_names) if self.group_names else len(self.pairs[0].clean) if self.by_position else 1

    @cached_property
    def measured(self) -> Tensor:
        """Which results were asked for: bool [L, parts, heads]."""
        places = torch.tensor(self.places)
        out = torch.zeros(self.cfg.n_layers, self.n_parts, heads_of(self.cfg, self.site) or 1, dtype=torch.bool)
        out[places[:, 0], :, places[:, 1]] = True
        return out

    def shaped(self, x: Tensor, axis: int) -> Tensor:
        """Without the axes that the results do not have: parts at `axis`, heads after it."""
        if self.site in RESIDUAL_SITES:
            x = x.squeeze(axis + 1)
        return x if self.by_position or self.group_names else x.squeeze(axis)

    # ---- what has to be kept of the runs -----------------------------------------------------------------------------

    @property
    def stage(self) -> Stage:
        return Stage.MID if self.site == "z" else JOINS_AT.get(self.site, Stage.PRE)

    @property
    def source_sites(self) -> tuple[str, ...]:
        if self.site == "pattern":
            return ("q", "k")
        return (self.site[0],) if self.site in PER_QUERY.values() else (self.site,)

    @property
    def base_sites(self) -> tuple[str, ...]:
        return base_sites(self.cfg, [self.stage], [self.site])

    def kept_from(self, i: int) -> int:
        """The first position of pair i whose activations are needed: a pattern of the source run is made from its keys."""
        return self.pairs[i].first if self.site == "pattern" else self.targets[i][0]

    @cached_property
    def runs(self) -> list[SharedRun]:
        """What is run: for z at all positions, a pair that begins another one is read off its run."""
        if self.site != "z" or self.by_position or self.group_names:
            return each_alone(len(self.pairs))
        return shared_runs(self.pairs, self.targets)

    @cached_property
    def host_of(self) -> dict[int, int]:
        """Of each pair the one off whose run it is read."""
        return {i: run.host for run in self.runs for i in run.readers}

    # ---- what can change ---------------------------------------------------------------------------------------------

    def reach(self, i: int) -> Tensor:
        """Where an edit of pair i can change what is read: bool [L, T]."""
        pair, n = self.pairs[i], self.cfg.n_layers
        positions = torch.arange(len(pair.clean))
        target = torch.isin(positions, torch.tensor(self.targets[i]))
        return torch.stack([target & reaches(self.site, l == n - 1, positions, pair.read) for l in range(n)])

    def reached_parts(self, i: int) -> Tensor:
        """Whether any position of each part can: bool [L, parts]."""
        reach = self.reach(i)
        return torch.stack([reach[:, self.labels[i] == part].any(1) for part in range(self.n_parts)], 1)

    def check(self) -> None:
        """Warns of layers and groups in which nothing can change in any pair. Raises ValueError for a pair in which nothing
        can change at all."""
        layers = sorted({l for l, _ in self.places})
        reached = [self.reach(i)[layers] for i in range(len(self.pairs))]
        idle = [l for n, l in enumerate(layers) if not any(r[n].any() for r in reached)]
        if idle and len(idle) < len(layers):
            of = f"{'layer' if len(idle) == 1 else 'layers'} {listed([str(l) for l in idle])}"
            warn(
                f"positions: {self.site} of {of} at these positions reaches nothing that is read in any example; "
                "the values there are those of the untouched run"
            )
        parts = {part for r, labels in zip(reached, self.labels, strict=True) for part in labels[r.any(0)].tolist()}
        for part, name in enumerate(self.group_names or ()):
            if part not in parts:
                warn(
                    f"groups: {name!r} reaches nothing that is read in any example, for the prompts do not differ there or the "
                    "metric is read before it; its values are those of the untouched run"
                )
        for pair, targets, r in zip(self.pairs, self.targets, reached, strict=True):
            if not bool(r.any()):
                raise ValueError(
                    f"positions: {self.site} at {targets} in layers {layers} reaches nothing that is read; "
                    f"the metric is read at position {pair.read}, after the last layer"
                )

    # ---- the variants ------------------------------------------------------------------------------------------------

    def table(self, runs: Sequence[SharedRun]) -> VariantTable:
        """The variants of these runs."""
        places = torch.tensor(self.places)
        found: list[tuple[Tensor, ...]] = []  # base, layer, stage, first; head, part, control, random, stream
        edits: list[tuple[Tensor, ...]] = []  # layer, variant, position, head, ref
        n_variants = n_rows = 0
        for b, run in enumerate(runs):
            i = run.host
            reach = self.reach(i)
            for reader in run.readers[:-1]:  # in the last layer an edit reaches the position itself alone
                reach = reach | pad(self.reach(reader), (0, reach.shape[1] - len(self.pairs[reader].clean)))
            place, position = reach[places[:, 0]].nonzero().T  # ascending in both: place after place
            kept, variant, _ = distinct(place, self.labels[i][position])
            (layers, heads), part = places[kept[:, 0]].T, kept[:, 1]
            first = torch.full((len(kept),), len(self.pairs[i].clean)).scatter_reduce(0, variant, position, "amin")
            if self.site != "z":
                head = places[place, 1] if heads_of(self.cfg, self.site) else torch.full_like(place, -1)
                order = torch.argsort(variant, stable=True)
                ref = n_rows + position - self.kept_from(i)
                edit = (places[place, 0], n_variants + variant, position, head, ref)
                edits.append(tuple(t[order] for t in edit))
            again = self._drawn(places, i)[kept[:, 0]].nonzero().flatten()
            which = torch.cat((torch.arange(len(kept)), again))
            layers, heads, part, first = layers[which], heads[which], part[which], first[which]
            controls = controls_of(self.cfg, self.seed, i)
            n, c = len(which), len(controls)
            plain = Variants(torch.full((n,), b), layers, torch.full((n,), int(self.stage)), first)
            v = with_controls(plain, controls, b, self.targets[i][0])
            heads, part = torch.cat((heads, controls[:, 1])), torch.cat((part, torch.full((c,), -1)))
            streams = torch.cat((torch.full((n,), -1), controls[:, 2]))
            at = torch.arange(n + c)
            random = (at >= len(kept)) & (at < n)
            found.append((v.base, v.layer, v.stage, v.first, heads, part, at >= n, random, streams))
            n_variants += n + c
            n_rows += self.pairs[i].read + 1 - self.kept_from(i)
        base, layer, stage, first, head, part, control, random, streams = map(torch.cat, zip(*found, strict=True))
        read = torch.tensor([self.pairs[run.host].read for run in runs])
        variants = Variants(base, layer, stage, first)
        lengths = read[base] - first + 1
        return VariantTable(variants, lengths, head, part, control, random, streams, self._by_layer(edits))

    def _drawn(self, places: Tensor, i: int) -> Tensor:
        """Of places [n, 2] those whose random control is measured of pair i: bool [n]."""
        if self.controls is None:
            return torch.zeros(len(places), dtype=torch.bool)
        return self.controls.drawn(places, i)

    def others(self, runs: Sequence[SharedRun]) -> list[Tensor | None]:
        """The prompts from which the random controls of these runs take activations."""
        return [None if self.controls is None else self.controls.others[run.host] for run in runs]

    def has_sham(self, run: SharedRun) -> bool:
        """Whether a patch before the first difference is evaluated of this run."""
        return self.controls is not None and self.controls.sham[run.host]

    def _by_layer(self, edits: list[tuple[Tensor, ...]]) -> dict[tuple[str, int], Entries]:
        if not edits:
            return {}
        layer, *columns = map(torch.cat, zip(*edits, strict=True))
        chosen = {l: (layer == l).nonzero().flatten() for l in layer.unique().tolist()}
        return {(self.site, l): Entries(*(column[entries] for column in columns)) for l, entries in chosen.items()}

    def moves(self, table: VariantTable) -> Tensor:
        """Which variants join by a difference in z: bool [N]."""
        plain = table.streams < 0
        return plain if self.site == "z" else table.control & plain


def lay_out_pairs(
    cfg: ModelConfig,
    pairs: list[Pair],
    *,
    site: str,
    places: list[tuple[int, int]],
    positions: Sequence[int] | None,
    by_position: bool,
    groups: PositionGroups | Sequence[PositionGroups] | None,
    seed: int,
    controls: ControlRequest | None = None,
) -> PairLayout:
    """The variants that these arguments of `patch_heads` ask for. Raises ValueError naming the argument that is wrong."""
    lengths, names = [len(pair.clean) for pair in pairs], None
    if groups is not None:
        if by_position:
            raise ValueError("groups: got groups and by_position=True; expected one of them")
        if positions is not None:
            raise ValueError("positions: the groups say which; expected None with groups=")
        names, labels = labels_of_prompts(groups, lengths)
        targets = [_targets_of_groups(pair, label) for pair, label in zip(pairs, labels, strict=True)]
    else:
        labels = [torch.arange(n) if by_position else torch.zeros(n, dtype=torch.long) for n in lengths]
        targets = [targets_of(pair, positions) for pair in pairs]
    if by_position and len(set(lengths)) > 1:
        raise ValueError(
            "by_position: the prompts have different lengths, so positions do not correspond; expected equal lengths"
        )
    layout = PairLayout(cfg, pairs, site, places, by_position, names, targets, labels, seed, controls)
    layout.check()
    return layout


def _targets_of_groups(pair: Pair, labels: Tensor) -> list[int]:
    found = (labels >= 0).nonzero().flatten()
    useful = found[(found >= pair.first) & (found <= pair.read)].tolist()
    if not useful:
        raise ValueError(
            f"groups: none of them reaches what is read; the prompts first differ at position {pair.first} and the metric is "
            f"read at {pair.read}"
        )
    return useful
