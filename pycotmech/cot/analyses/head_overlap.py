"""How much sets of heads overlap, and what sets of these sizes share by chance (docs/protocol.md, E6)."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pycotmech._words import plural
from pycotmech.cot.tools.cost import Cost, Workload
from pycotmech.cot.tools.head_sets import HeadSet
from pycotmech.cot.tools.registry import COMPARED, Description
from pycotmech.cot.tools.result import Analysis, in_words
from pycotmech.cot.tools.select_heads import Selection
from pycotmech.cot.tools.set_words import set_words
from pycotmech.figures.words import wrapped
from pycotmech.model.config import ModelConfig
from pycotmech.stats import bootstrap
from pycotmech.stats.random_sets import shared_by_layer
from pycotmech.stats.significance import adjusted, hypergeometric

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_STATISTICS = ("intersection", "union", "iou", "f1")


class HeadOverlap(Analysis):
    """Overlaps of every two of n sets.

    data, over set and other: `intersection`, `union` (heads), `iou` |A & B| / |A | B|, `f1` 2 |A & B| / (|A| + |B|), each with
    `_low` and `_high` where both were selected from scores per example (bootstrap over examples, selected anew each
    time, widened by how few these are); `chance` the intersection expected of random sets of these sizes, |A| |B| / (L H),
    and `f1_chance` from it; `p` the hypergeometric chance of so large an intersection or a larger one, `p_holm` corrected
    for the number of pairs. `chance_by_layer`, `f1_chance_by_layer`, `p_by_layer`, `p_by_layer_holm`: the same for random sets
    that have as many heads in each layer as these (`random_sets.shared_by_layer`). Sets that lie in the same layers share more
    heads than `chance` says, whatever they are. NaN where a set is empty. `size` [set]. Coordinates `type` and `of_step` (-1:
    no step) of each set.
    """

    name, title = "head_overlap", "How much sets of heads overlap"
    source = "E6"
    label, share, by_size = "F1 of two sets", True, False

    def shown(self) -> xr.Dataset:
        return xr.Dataset({"mean": self.data["f1"], "low": self.data["f1_low"], "high": self.data["f1_high"]})

    def table(self) -> pd.DataFrame:
        """One row for each pair: a, b, a_in_words, b_in_words (what they are called), size_a, size_b, intersection, chance,
        chance_by_layer, iou, f1, f1_low, f1_high, f1_chance, f1_chance_by_layer, p, p_holm, p_by_layer, p_by_layer_holm."""
        import pandas as pd

        d = self.data
        names, words, size = d["set"].values, self.names_in_words(), d["size"].values
        keys = ["intersection", "chance", "chance_by_layer", "iou", "f1", "f1_low", "f1_high", "f1_chance"]
        keys += ["f1_chance_by_layer", "p", "p_holm", "p_by_layer", "p_by_layer_holm"]
        rows = []
        for i in range(len(names)):
            for j in range(i + 1, len(names)):
                row = {"a": names[i], "b": names[j], "a_in_words": words[i], "b_in_words": words[j]}
                row |= {"size_a": int(size[i]), "size_b": int(size[j])}
                rows.append(row | {k: float(d[k].values[i, j]) for k in keys})
        return pd.DataFrame(rows, columns=["a", "b", "a_in_words", "b_in_words", "size_a", "size_b", *keys])

    def by_type(self, statistic: str = "f1") -> xr.DataArray:
        """Between types at the same step, mean over steps: [type, other type]. Only for sets that have steps."""
        types = list(dict.fromkeys(self.data["type"].values.tolist()))
        kind, step = self.data["type"].values, self.data["of_step"].values
        grid = self.data[statistic].values
        out = np.full((len(types), len(types)), np.nan)
        for a, one in enumerate(types):
            for b, two in enumerate(types):
                pairs = [
                    grid[i, j]
                    for i in np.flatnonzero(kind == one)
                    for j in np.flatnonzero((kind == two) & (step == step[i]) & (step[i] >= 0))
                ]
                if pairs and np.isfinite(pairs).any():
                    out[a, b] = np.nanmean(pairs)
        return xr.DataArray(out, dims=("type", "other_type"), coords={"type": types, "other_type": types}, name=statistic)

    def plot(self, *, path: str | PathLike | None = None) -> Figure:
        """F1 of every two sets, and F1 above chance."""
        from pycotmech.cot.analyses.head_overlap_figure import overlap_figure

        model = f"{self.about['model']}: " if self.about["model"] else ""
        return overlap_figure(
            self.data["f1"].values,
            self.data["f1_chance_by_layer"].values,
            names=[wrapped(name, 18) for name in self.names_in_words()],
            title=f"{model}{self.title.lower()}",
            lines=[f"of {self.about['settings']['heads']} heads; chance: random sets with as many heads in each layer"],
            path=path,
        )

    def names_in_words(self) -> list[str]:
        """What each set is called in sentences and figures."""
        return set_words(self.data["set"].values.tolist())

    def findings(self) -> list[str]:
        """The pairs that share more heads than chance, and those of which that cannot be said."""
        known = [row for row in self.table().to_dict("records") if np.isfinite(row["p_holm"])]
        beyond, of_any = (sum(row[p] < 0.05 for row in known) for p in ("p_by_layer_holm", "p_holm"))
        lines = [
            f"{beyond} of {len(known)} pairs of sets share more heads than random sets with as many heads in each layer would "
            f"(p < 0.05, Holm); {of_any} more than random sets of any layers"
        ]
        for row in sorted(known, key=lambda row: -row["f1"])[:5]:
            lines.append(
                f"{row['a_in_words']} and {row['b_in_words']}: {row['intersection']:.0f} of {row['size_a']} and "
                f"{row['size_b']} heads shared; by chance {row['chance_by_layer']:.1f} in the same layers "
                f"(p = {row['p_by_layer_holm']:.2g}), {row['chance']:.1f} in any (p = {row['p_holm']:.2g}); "
                f"F1 {in_words(row, 'f1')}, by chance {row['f1_chance_by_layer']:.2f} in the same layers"
            )
        empty = [words for words, k in zip(self.names_in_words(), self.data["size"].values) if k == 0]
        if empty:
            lines.append(f"empty: {', '.join(empty)}")
        if n := self.about["settings"].get("chosen_on"):
            lines.append(
                f"the sets were chosen by scores of {plural(n, 'example')}, anew on each resample for the intervals; what "
                "these examples have of their own may make sets alike, which the chance level does not hold"
            )
        return lines


def head_overlap(
    sets: Mapping[str, Any] | None = None,
    /,
    *,
    shape: tuple[int, int] | None = None,
    model: str = "",
    draws: int = 200,
    seed: int = 0,
    **named: Any,
) -> HeadOverlap:
    """Overlap of every two sets of heads.

    sets (or sets as further keywords): name -> a `HeadSet`, a bool array [L, H], (layer, head) pairs with `shape`; or a
        `Selection` of one set (select_heads(..., k=20)); or a mapping from step to such, for a type whose sets differ by step.
    shape: (L, H), needed if all sets are pairs. model: its name, for the figures.
    draws: of the bootstrap, for sets given as `Selection` from scores per example. Those with equally many examples are
        resampled together; examples without any score, none of whose steps counts, are not drawn.
    Returns a `HeadOverlap`. Raises TypeError or ValueError naming the set.
    Cost: no forward pass; with a bootstrap, `draws` selections of each set.
    Source: docs/protocol.md, E6; the authors report intersections without the chance level.
    """
    given = {**(sets or {}), **named}
    if len(given) < 1:
        raise ValueError("sets: got none; expected a mapping from names to sets of heads")
    flat: list[tuple[str, str, int, Any]] = []
    for name, one in given.items():
        if isinstance(one, Mapping):
            flat += [(f"{name} {step}", str(name), int(step), s) for step, s in one.items()]
        else:
            flat.append((str(name), str(name), -1, one))
    if len(flat) < 2:
        raise ValueError(f"sets: got one set, {flat[0][0]!r}; expected at least two to compare")
    shape = shape or next((_shape(s) for *_, s in flat if _shape(s)), None)
    if shape is None:
        raise ValueError("shape: every set is a list of pairs; expected shape=(layers, heads)")
    found = [_the_set(s, shape, name) for name, _, _, s in flat]
    masks = np.stack([s.mask for s in found]).reshape(len(found), -1)
    data = _overlap(masks)
    n = masks.shape[1]
    sizes = masks.sum(1)
    data |= _by_chance(masks.reshape(-1, *shape), data["intersection"])
    drawn = _drawn([s for *_, s in flat], masks, draws, seed)
    counts = np.array([len(s.scored) if isinstance(s, Selection) and s.examples is not None else 0 for *_, s in flat])
    fewer = np.minimum(counts[:, None], counts[None])  # examples of a pair: those of the set that has fewer
    for k in _STATISTICS:
        ends = np.full((2, *data[k].shape), np.nan)
        if drawn:
            within = bootstrap.SHARE if k in ("iou", "f1") else (0.0, float(n))
            ends = bootstrap.widened(data[k], *bootstrap.percentiles(drawn[k]), fewer, within=within)
        data[f"{k}_low"], data[f"{k}_high"] = ends
    names = [name for name, *_ in flat]
    if len(set(names)) < len(names):
        raise ValueError(f"sets: got two with the name {next(n for n in names if names.count(n) > 1)!r}; expected one each")
    dataset = xr.Dataset(
        {k: (("set", "other"), v) for k, v in data.items()} | {"size": ("set", sizes)},
        coords={
            "set": names,
            "other": names,
            "type": ("set", [kind for _, kind, _, _ in flat]),
            "of_step": ("set", [step for *_, step, _ in flat]),
        },
    )
    chosen_on = {s.examples[i] for *_, s in flat if isinstance(s, Selection) and s.examples is not None for i in s.scored}
    about = dict(
        model=model, notes=[], source="docs/protocol.md, E6",
        definition="intersections of sets of heads, compared with those of random sets",
        settings=dict(heads=n, draws=draws if drawn else 0, chosen_on=len(chosen_on) if drawn else 0, seed=seed),
    )  # fmt: skip
    return HeadOverlap(dataset, about)


def _shape(given: Any) -> tuple[int, int] | None:
    if isinstance(given, Selection):
        return given.scores.shape  # type: ignore[return-value]
    mask = given.mask if isinstance(given, HeadSet) else given
    shape = tuple(getattr(mask, "shape", ()))
    return shape if len(shape) == 2 and "bool" in str(mask.dtype) else None  # type: ignore[return-value]


def _the_set(given: Any, shape: tuple[int, int], name: str) -> HeadSet:
    if isinstance(given, Selection):
        if len(given) != 1:
            raise ValueError(f"sets[{name!r}]: got a selection of {len(given)} sets; expected one of them, or one with one set")
        given = given[0]
    return HeadSet.of(given, shape, argument=f"sets[{name!r}]")


def _overlap(masks: NDArray) -> dict[str, NDArray[np.float64]]:
    """Of sets [n, heads], every two: [n, n]."""
    x = masks.astype(np.float64)
    both, sizes = x @ x.T, x.sum(1)
    total = sizes[:, None] + sizes[None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return {"intersection": both, "union": total - both, "iou": both / (total - both), "f1": 2 * both / total}


def _by_chance(masks: NDArray, shared: NDArray) -> dict[str, NDArray[np.float64]]:
    """What sets [n, L, H] share by chance, of any layers and of these; shared [n, n]: what they do share."""
    sizes, (L, H) = masks.sum((1, 2)), masks.shape[1:]
    pairs = [(i, j) for i in range(len(masks)) for j in range(len(masks))]
    out = {f"{name}{kind}": np.full(shared.shape, np.nan) for name in ("chance", "p") for kind in ("", "_by_layer")}
    for i, j in pairs:
        out["chance"][i, j] = sizes[i] * sizes[j] / (L * H)
        out["chance_by_layer"][i, j], p = shared_by_layer(masks[i], masks[j])
        if sizes[i] and sizes[j]:
            out["p"][i, j] = hypergeometric(int(shared[i, j]), int(sizes[i]), int(sizes[j]), L * H)
            out["p_by_layer"][i, j] = p
    for kind in ("", "_by_layer"):
        with np.errstate(invalid="ignore", divide="ignore"):
            out[f"f1_chance{kind}"] = 2 * out[f"chance{kind}"] / (sizes[:, None] + sizes[None])
        p = out[f"p{kind}"]
        holm = np.full_like(p, np.nan)
        upper = np.triu(np.isfinite(p), 1)
        if upper.any():
            holm[upper] = adjusted(p[upper], "holm")
        out[f"p{kind}_holm"] = np.where(np.isnan(holm), holm.T, holm)
    return out


def _drawn(given: list[Any], masks: NDArray, draws: int, seed: int) -> dict[str, NDArray] | None:
    """Overlaps over resampled examples [draws, n, n]; NaN for pairs of which one cannot be selected anew, in that draw or at
    all. Only examples with a score in one of the sets that are resampled together are drawn."""
    scored = [s.scored if isinstance(s, Selection) else () for s in given]
    again = np.array([len(rows) > 1 for rows in scored])
    if not again.any() or draws < 2:
        return None
    rng = np.random.default_rng(seed)
    pools = {
        n: np.array(sorted({r for s, rows, a in zip(given, scored, again) if a and len(s.examples) == n for r in rows}))
        for n in sorted({len(s.examples) for s, a in zip(given, again) if a})
    }
    found: dict[str, list[NDArray]] = {k: [] for k in _STATISTICS}
    for _ in range(draws):
        drawn = {n: rng.choice(pool, size=len(pool)) for n, pool in pools.items()}
        now, made = masks.copy(), again.copy()
        for i in np.flatnonzero(again):
            rows = drawn[len(given[i].examples)]
            made[i] = np.isin(rows, scored[i]).any()  # of a set whose steps are right elsewhere the draw may hold nothing
            if made[i]:
                now[i] = given[i].again(rows)[0].mask.ravel()
        for k, value in _overlap(now).items():
            found[k].append(np.where(made[:, None] & made[None], value, np.nan))
    return {k: np.stack(values) for k, values in found.items()}


def cost(cfg: ModelConfig, workload: Workload) -> Cost:
    """Predicted: nothing is run."""
    return Cost()


def authors_cost(cfg: ModelConfig, workload: Workload) -> Cost:
    """Theirs: nothing is run either."""
    return Cost()


ANALYSIS = Description(
    HeadOverlap,
    head_overlap,
    cost=cost,
    authors=authors_cost,
    needs=COMPARED,
    how=lambda given, progress: head_overlap(given.sets(), model=given.model.name, seed=given.seed),
)
