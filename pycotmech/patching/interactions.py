"""Measures exactly what two heads, or sets of heads, do together beyond the sum of their effects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from operator import index
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycotmech._words import plural
from pycotmech.display import Arrays, Displayed, View
from pycotmech.engine.metrics import ExampleMetric
from pycotmech.engine.planner import Plan, memory_budget
from pycotmech.figures.words import METRIC_UNITS
from pycotmech.model.arguments import check_model, check_progress
from pycotmech.model.prompts import Tokens
from pycotmech.model.run import forward_packed
from pycotmech.patching.edits import Edit, Variant, check_heads
from pycotmech.patching.pairs import Pair, targets_of
from pycotmech.patching.question import Direction, Progress, ask
from pycotmech.patching.sweep import prepare_variants

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

    from pycotmech.model import Model

Head = tuple[int, int]
Unit = tuple[Head, ...]
N_PARTS = 3
"""Number of effects in an interaction: its noise floor is that many times that of an effect."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadInteractions(Displayed):
    """Effects of U units, alone and in pairs, on B pairs of prompts. A unit is a head or a set of heads.

    units: the heads of each unit.
    single: float64 [B, U], change of the metric from the base run if a unit alone takes its values from the source run.
    joint: float64 [B, U, U], the change if two units do; symmetric, NaN on the diagonal and for pairs that were not asked for.
    clean_metric, corrupted_metric: float64 [B], the metric of the two runs.
    normalized: whether `effect`, `interaction` and `given` are shares of the difference of the two runs, positive towards the
        source run (ratios of means over pairs of prompts); otherwise they are changes of the metric.
    noise_floor: bound on what rounding does to an interaction, on the same scale: three times that of an effect.
    """

    units: tuple[Unit, ...]
    single: NDArray[np.float64] = field(repr=False)
    joint: NDArray[np.float64] = field(repr=False)
    clean_metric: NDArray[np.float64] = field(repr=False)
    corrupted_metric: NDArray[np.float64] = field(repr=False)
    noise_floor: float
    metric: str
    direction: Direction
    normalized: bool
    model_name: str
    plans: tuple[Plan, ...] = field(repr=False)

    @property
    def names(self) -> list[str]:
        """Names of the units: L3H4, or L3H4+L3H5 for a set, or "layer 3 (8 heads)" for many heads of one layer."""
        return [unit_name(unit) for unit in self.units]

    @property
    def effect(self) -> NDArray[np.float64]:
        """Effect of each unit [U]: 0 if the unit does nothing."""
        return self._scaled(self.single)

    @property
    def interaction(self) -> NDArray[np.float64]:
        """effect(a and b) - effect(a) - effect(b), [U, U]: 0 if two units add up; opposite in sign to their effects if either
        is enough, or one acts through the other."""
        return self._scaled(self.interactions)

    @property
    def given(self) -> NDArray[np.float64]:
        """effect(a and b) - effect(b), [a, b]: what a does once b has its values from the source run."""
        return self._scaled(self.joint - self.single[:, None, :])

    @property
    def interactions(self) -> NDArray[np.float64]:
        """Interactions on each pair of prompts, in units of the metric: [B, U, U]."""
        return self.joint - self.single[:, :, None] - self.single[:, None, :]

    def _scaled(self, values: NDArray) -> NDArray[np.float64]:
        return values.mean(0) / self._span

    @property
    def _span(self) -> float:
        """From the base run to the source run."""
        change = float(self.clean_metric.mean() - self.corrupted_metric.mean())
        return 1.0 if not self.normalized else change if self.direction == "denoise" else -change

    def top(self, k: int = 10) -> list[tuple[str, str, float]]:
        """The k pairs with the largest |interaction|: (name, name, interaction)."""
        upper = np.triu(np.nan_to_num(self.interaction), 1)
        order = np.argsort(-np.abs(upper).ravel(), kind="stable")[:k]
        places = [divmod(int(i), len(self.units)) for i in order]
        return [(self.names[a], self.names[b], float(upper[a, b])) for a, b in places if upper[a, b]]

    def view(self) -> View:
        """The interactions, each pair once, and beside them the effects of both units."""
        found = np.where(np.triu(np.ones_like(self.interaction), 1) > 0, self.interaction, np.nan)
        what = "share of the difference of the runs" if self.normalized else f"change of {self.metric}"
        effect = np.broadcast_to(self.effect, found.shape)
        return View(
            title="What pairs of heads do beyond the sum of their effects",
            values=found,
            axes=("unit", "other"),
            labels={"unit": self.names, "other": self.names},
            label=f"interaction ({what})",
            floor=self.noise_floor,
            beside={"effect of the first": effect.T, "effect of the second": effect},
            facts=(f"{self.model_name}: {len(self.units)} units, {self.direction}, metric {self.metric}",),
            go_on=(("result.given", "what a unit does once the other has its values from the source run"),),
        )

    def to_xarray(self) -> xr.Dataset:
        """effect [unit]; interaction, joint, given [unit, other], all on one scale; single [example, unit], interactions
        [example, unit, other], clean_metric and corrupted_metric [example], in units of the metric."""
        pair, share = ("unit", "other"), "share of clean - corrupted"
        data = {
            "effect": (("unit",), self.effect),
            "interaction": (pair, self.interaction),
            "joint": (pair, self._scaled(self.joint)),
            "given": (pair, self.given),
            "single": (("example", "unit"), self.single),
            "interactions": (("example", *pair), self.interactions),
            "clean_metric": (("example",), self.clean_metric),
            "corrupted_metric": (("example",), self.corrupted_metric),
        }
        unit = METRIC_UNITS.get(self.metric, self.metric)
        scaled = {name: share if self.normalized else unit for name in ("effect", "interaction", "joint", "given")}
        return Arrays(
            data=data,
            coords={"unit": self.names, "other": self.names},
            units={name: unit for name in data} | scaled,
            attrs={
                "title": self.view().title, "model": self.model_name, "metric": self.metric, "direction": self.direction,
                "normalized": int(self.normalized), "noise_floor": self.noise_floor, "source": "docs/protocol.md, E13",
            },
        ).dataset()  # fmt: skip

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each pair that was measured: a, b, effect_a, effect_b, joint, interaction."""
        import pandas as pd

        effect, joint, found = self.effect, self._scaled(self.joint), self.interaction
        rows = [
            {
                "a": self.names[a], "b": self.names[b], "effect_a": effect[a], "effect_b": effect[b], "joint": joint[a, b],
                "interaction": found[a, b],
            }
            for a, b in combinations(range(len(self.units)), 2)
            if np.isfinite(joint[a, b])
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=None if rows else ["a", "b", "effect_a", "effect_b", "joint", "interaction"])

    def plot(self, *, title: str | None = None, path: str | PathLike | None = None) -> Figure:
        """Heat map of the interactions, the effects of the single units on the diagonal; saved to `path` if given."""
        from pycotmech.figures.heatmap import interaction_figure

        grid = self.interaction.copy()
        np.fill_diagonal(grid, self.effect)
        what = "share of the difference of the runs" if self.normalized else f"change of {self.metric}"
        return interaction_figure(
            [grid],
            [self.names],
            [""],
            title=title or f"{self.model_name}: what pairs of heads do beyond the sum of their effects",
            lines=[
                f"{self.direction}, {self.metric}; diagonal: the head alone; {plural(len(self.single), 'pair')}; "
                f"rounding is below {self.noise_floor:.2g}"
            ],
            label=f"interaction ({what})",
            path=path,
        )

    def __str__(self) -> str:
        what = f"{len(self.units)} units, {self.direction}, {self.metric}, {self.model_name}"
        return "\n".join(
            [f"interactions of {what}; noise floor {self.noise_floor:.2g}"]
            + [f"  {a} and {b}: {value:+.4f}" for a, b, value in self.top()]
        )


def unit_name(unit: Unit) -> str:
    layers = {l for l, _ in unit}
    if len(unit) > 3:
        return f"layer {unit[0][0]} ({len(unit)} heads)" if len(layers) == 1 else f"{len(unit)} heads"
    return "+".join(f"L{l}H{h}" for l, h in unit)


def head_interactions(
    model: Model,
    clean: Tokens | Sequence[Tokens],
    corrupted: Tokens | Sequence[Tokens],
    heads: Sequence[Head] | Sequence[Head | Sequence[Head]],
    *,
    pairs: Sequence[tuple[int, int]] | None = None,
    direction: Direction = "noise",
    metric: Literal["kl", "logit_diff", "prob"] = "logit_diff",
    answer: int | str | Sequence[int | str] | None = None,
    wrong: int | str | Sequence[int | str] | None = None,
    positions: Sequence[int] | None = None,
    normalize: bool = True,
    read: int | Sequence[int] = -1,
    memory_gb: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> HeadInteractions:
    """Patches heads alone and in pairs, all as variants of one sweep for each pair of prompts, exactly.

    clean, corrupted: token ids [T] or strings, aligned token for token; or two lists of them.
    heads: the units: (layer, head), or a list of such, which are patched together.
    pairs: which two units are patched together, by their numbers in `heads`; None: all pairs.
    direction: "noise": corrupted z into the clean run: what breaks the answer; "denoise": the reverse.
    positions: where z is replaced (negative from the end); None: everywhere.
    metric, answer, wrong, normalize, read, memory_gb, seed: as in `patch_heads`. progress: called with (prompts done, in all).

    Returns `HeadInteractions`: .effect [U], .interaction and .given [U, U].
    Raises ValueError naming the argument, before anything is run.
    Cost: both runs of each pair of prompts; for each unit and pair of units the positions from the first one that differs on,
        in the layers from its lowest head on. 12 heads make 66 pairs. Exact: one hooked forward per variant gives the same.
    """
    check_model(model)
    check_progress(progress)
    units = _units(heads, model.cfg.n_layers, model.cfg.n_heads)
    asked = _pairs(pairs, units)
    question = ask(
        model, clean, corrupted, direction=direction, metric=metric, answer=answer, wrong=wrong, normalize=normalize, read=read,
        memory_gb=memory_gb, seed=seed,
    )  # fmt: skip
    targets = [targets_of(pair, positions) for pair in question.pairs]
    U, B = len(units), len(question.pairs)
    single, joint = np.full((B, U), np.nan), np.full((B, U, U), np.nan)
    ends, floors, plans = np.empty((B, 2)), np.empty(B), []
    for i, (pair, where) in enumerate(zip(question.pairs, targets, strict=True)):
        base, source = (pair.clean, pair.corrupted) if direction == "noise" else (pair.corrupted, pair.clean)
        z, logits = _ends(model, pair, base, source, memory_gb)
        clean_logits = logits[0 if direction == "noise" else 1]
        measure = ExampleMetric(metric, clean_logits, pair.answer, pair.wrong)
        at = measure(logits).numpy()  # base, source
        of_sets = [*units, *((*units[a], *units[b]) for a, b in asked)]
        variants = [Variant(_edits(model, heads_of, z, pair, where)) for heads_of in of_sets]
        options: dict[str, Any] = {"clean": clean_logits} if metric == "kl" else {}
        found, effect = prepare_variants(
            model, base, variants, metric=metric, answer=pair.answer, wrong=pair.wrong, read=pair.read, memory_gb=memory_gb,
            seed=seed, **options,
        ).measured()  # fmt: skip
        single[i] = effect[:U]
        for (a, b), value in zip(asked, effect[U:], strict=True):
            joint[i, a, b] = joint[i, b, a] = value
        ends[i] = at if direction == "noise" else at[::-1]
        floors[i] = float(np.max(found.noise_floor))
        plans.append(found.plan)
        if progress is not None:
            progress(i + 1, B)
    span = abs(float(ends[:, 0].mean() - ends[:, 1].mean())) if normalize else 1.0
    if span == 0:
        raise ValueError("normalize: both runs have the same metric, so there is no scale; expected False")
    return HeadInteractions(
        units=tuple(units), single=single, joint=joint, clean_metric=ends[:, 0], corrupted_metric=ends[:, 1],
        noise_floor=N_PARTS * float(floors.mean()) / span, metric=question.metric_name, direction=direction,
        normalized=normalize, model_name=model.name, plans=tuple(plans),
    )  # fmt: skip


def _units(heads: Any, n_layers: int, n_heads: int) -> list[Unit]:
    if isinstance(heads, str) or not isinstance(heads, Iterable):
        raise TypeError(f"heads: got {heads!r}; expected (layer, head) pairs, or lists of them")
    given = list(heads)
    for i, unit in enumerate(given):
        if isinstance(unit, str) or not isinstance(unit, Sequence):
            raise TypeError(f"heads[{i}]: got {unit!r}; expected (layer, head), or a list of such")
    sets = [[h] if len(h) and not isinstance(h[0], Sequence) else list(h) for h in given]
    units = [tuple(check_heads(s, n_layers, n_heads, argument=f"heads[{i}]")) for i, s in enumerate(sets)]
    if len(units) < 2:
        raise ValueError(f"heads: got {len(units)}; expected at least two heads or sets of heads")
    return units


def _pairs(pairs: Sequence[tuple[int, int]] | None, units: Sequence[Unit]) -> list[tuple[int, int]]:
    n = len(units)
    try:
        asked = list(combinations(range(n), 2)) if pairs is None else [(index(a), index(b)) for a, b in pairs]
    except (TypeError, ValueError):
        raise TypeError(f"pairs: got {pairs!r}; expected pairs of numbers in 0..{n - 1}, or None for all") from None
    for a, b in asked:
        if not (0 <= a < n and 0 <= b < n) or a == b:
            raise ValueError(f"pairs: got ({a}, {b}); expected two different numbers in 0..{n - 1}")
        if shared := set(units[a]) & set(units[b]):
            raise ValueError("heads: {} and {} share L{}H{}; expected disjoint units".format(a, b, *min(shared)))
    return asked


@torch.no_grad()
def _ends(model: Model, pair: Pair, base: Tensor, source: Tensor, memory_gb: float | None) -> tuple[Tensor, Tensor]:
    """z of the source run from the first position that differs to the one read, [L, S, H, D]; logits [2, V] of base and source
    where they are read."""
    past = model.prefixes.key_values(base[: pair.first], memory_budget(memory_gb, *model.family.devices))
    n = pair.read + 1 - pair.first
    suffixes = [t[pair.first : pair.read + 1] for t in (source, base)]
    packed = forward_packed(
        model.family, suffixes, past, sites=("z",), keep=torch.arange(n), read=torch.tensor([2 * n - 1, n - 1])
    )
    return packed.sites["z"], model.family.logits(packed.resid_final).cpu()


def _edits(model: Model, heads: Unit, z: Tensor, pair: Pair, where: Sequence[int]) -> tuple[Edit, ...]:
    """z of these heads from the source run. In the last layer only the row that is read matters."""
    edits = []
    for l, h in heads:
        last = l == model.cfg.n_layers - 1
        at = [p for p in where if p == pair.read] if last else list(where)
        if at:
            rows = torch.tensor(at, device=z.device) - pair.first
            edits.append(Edit("z", l, h, at, z[l, rows, h]))
    return tuple(edits)
