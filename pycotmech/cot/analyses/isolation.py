"""What sets of heads do alone, together, and without some of their members (PAPER: E6)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pycotmech.cot.analyses.select_heads import select_heads
from pycotmech.cot.task.examples import Examples
from pycotmech.cot.task.steps import Graded
from pycotmech.cot.tools.ablation import Kind, Mean, Positions, ablated_steps, runs_cost
from pycotmech.cot.tools.cells import Cells, choose
from pycotmech.cot.tools.cost import Cost, Workload, metered, rows_cost
from pycotmech.cot.tools.head_sets import HeadSet, Scores, scores_of
from pycotmech.cot.tools.means import N_PROMPTS
from pycotmech.cot.tools.result import Analysis, Progress, about, columns
from pycotmech.figures.words import plural
from pycotmech.model.arguments import check_common
from pycotmech.model.config import ModelConfig
from pycotmech.stats import bootstrap

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.model import Model

Sets = Mapping[str, Any]
"""Name -> a set of heads (anything `HeadSet.of` takes), or a mapping from step to such sets."""
_VARIABLES = ("right", "agrees", "log_prob")


class Isolation(Analysis):
    """Sets of heads that are kept, everything else ablated.

    data, over set, example and step: `right`, `agrees`, `log_prob` as in `KnockOutCurve`; `random` [set, example, step]: right
    (or agrees) for random sets of the same size, mean of the draws; `kept` [set, step] heads kept; `mask` [set, step, layer,
    head] which.
    """

    name, title = "keep_only", "What sets of heads do alone"
    axis = "set"
    ranges: ClassVar = dict.fromkeys(("right", "agrees", "random"), bootstrap.SHARE)

    @property
    def main(self) -> str:
        return self.about["settings"]["accuracy"]

    def accuracy(self, variable: str | None = None) -> xr.Dataset:
        """Mean over examples with its bootstrap interval: mean, low, high, n [set, step]."""
        return self.interval(variable or self.main)

    def overall(self, variable: str | None = None) -> xr.Dataset:
        """The same over all steps: each example's mean over its steps, then over examples: [set]."""
        return type(self)(self.data[[variable or self.main]].mean("step"), self.about).interval(variable or self.main)

    def table(self) -> pd.DataFrame:
        """Accuracy by set and step, "all" for all steps: set, step, kind, kept, accuracy, low, high, n, random, random_low,
        random_high. All intervals are over examples: one random set is one, and its interval does not hold what others give."""
        import pandas as pd

        by_step, whole = self.accuracy(), self.overall()
        chance = (self.accuracy("random"), self.overall("random")) if "random" in self.data else None
        rows = []
        for i, name in enumerate(self.data[self.axis].values):
            for s, step in enumerate([*self.data["step"].values.tolist(), "all"]):
                one = step != "all"
                at = {self.axis: i, "step": s} if one else {self.axis: i}
                here = by_step.isel(at) if one else whole.isel(at)
                random = here.where(False) if chance is None else chance[0 if one else 1].isel(at)
                kept = self.data["kept"].isel({self.axis: i})
                rows.append(
                    {
                        self.axis: name,
                        "step": step,
                        "kind": str(self.data["kind"].values[s]) if one else "",
                        "kept": int(kept[s] if one else round(float(kept.mean()))),
                        "accuracy": float(here["mean"]),
                        "low": float(here["low"]),
                        "high": float(here["high"]),
                        "n": int(here["n"]),
                        **columns("random", random),
                    }
                )
        return pd.DataFrame(rows)

    def plot(self, *, path: str | PathLike | None = None) -> Figure:
        """Accuracy of each set at each step, and over all steps with its interval."""
        from pycotmech.cot.analyses.isolation_figure import isolation_figure

        overall, kept = self.overall(), self.data["kept"].values
        sizes = [f"{a.min()}" if a.min() == a.max() else f"{a.min()}–{a.max()}" for a in kept]
        if self.axis == "set":
            names = [str(name).replace("_", " ") for name in self.data["set"].values]
            labels = [f"{name}\n({n} {'head' if n == '1' else 'heads'})" for name, n in zip(names, sizes)]
        else:
            labels = [f"{n} taken" for n in self.data["removed"].values]
        accuracy = "agreement with the untouched model" if self.main == "agrees" else "every token of the gold word"
        examples = plural(int(overall["n"].max()), "example")
        return isolation_figure(
            self.accuracy()["mean"].transpose(self.axis, "step").values,
            (overall["mean"].values, overall["low"].values, overall["high"].values),
            self.overall("random")["mean"].values if "random" in self.data else None,
            labels=labels,
            steps=[f"{s}\n{str(k)[0].upper()}" for s, k in zip(self.data["step"].values, self.data["kind"].values)],
            chance_label=self.random_words("set, same size", "sets, same size"),
            title=f"{self.about['model']}: {self.title.lower()}",
            lines=[
                f"{examples}; bars: 95 % bootstrap; accuracy: {accuracy}",
                f"other heads replaced by {self.about['settings']['replaced_by']}",
                *self.about["notes"],
            ],
            path=path,
        )

    def findings(self) -> list[str]:
        """For each set, over all steps: what is left of the accuracy, beside random sets of the same size."""
        n_heads = self.data.sizes["layer"] * self.data.sizes["head"]
        table = self.table()
        lines = []
        for row in table[table["step"] == "all"].itertuples():
            inside, random = bootstrap.ends(row.low, row.high, "{:.2f}"), ""
            if np.isfinite(row.random):
                what = self.random_words("set of that size", "sets of that size")
                random = f"; {what} {row.random:.2f}{bootstrap.ends(row.random_low, row.random_high, '{:.2f}')}"
            kept = self.data["kept"].sel({self.axis: row[1]})
            size = f"{int(kept.min())}" if int(kept.min()) == int(kept.max()) else f"{int(kept.min())} to {int(kept.max())}"
            lines.append(
                f"{row[1]}: {size} of {n_heads} heads kept, accuracy {row.accuracy:.2f}{inside} over all steps of "
                f"{plural(row.n, 'example')}{random}"
            )
        return [*lines, *_closing(self)]

    def random_words(self, one: str, many: str) -> str:
        """What `random` is over: one draw or the mean of several."""
        k = self.about["settings"]["n_random"]
        return f"one random {one}" if k == 1 else f"the mean of {k} random {many}"


class Removal(Isolation):
    """A set of heads from which more and more are taken, those with the best scores of another kind first.

    data as in `Isolation` with the axis size for set: `removed` [size] heads that are taken (definition "paper": members of
    the set or not; `kept` is what stays of it); `random` for as many taken at random.
    """

    name, title = "remove", "What a set of heads does without some of its members"
    axis = "size"

    def findings(self) -> list[str]:
        """Accuracy over all steps at the beginning, and the first size at which it is below that of random removal."""
        whole, removed = self.overall(), self.data["removed"].values
        s = self.about["settings"]
        start = whole.isel(size=0)
        of = plural(int(start["n"]), "example")
        first = self.data["kept"].isel(size=0)
        n = f"{int(first.min())}" if int(first.min()) == int(first.max()) else f"{int(first.min())} to {int(first.max())}"
        lines = [f"{s['within']} ({n} heads) alone: accuracy {_told(start)} over all steps of {of}"]
        chance = self.overall("random") if "random" in self.data else None
        for k in range(1, len(removed)):
            beside = ""
            if chance is not None:
                beside = f"; {self.random_words('draw', 'draws')} of as many: {_told(chance.isel(size=k))}"
            lines.append(f"without the {removed[k]} {s['words']}: {_told(whole.isel(size=k))}{beside}")
        if s["stopped"]:
            lines.append(f"stopped there: the accuracy of every step is below {s['stop']:g}")
        return [*lines, *_closing(self)]


def _told(found: xr.Dataset) -> str:
    return f"{float(found['mean']):.2f}{bootstrap.ends(found['low'], found['high'], '{:.2f}')}"


def _closing(result: Isolation) -> list[str]:
    s = result.about["settings"]
    agreement = s["accuracy"] == "agrees"
    reused, others = plural(s["reused"], "example was", "examples were"), plural(s.get("others", 0), "other example")
    return [
        *([f"{reused} also used to choose the sets: the accuracies are optimistic"] if s["reused"] else []),
        *([f"the sets were chosen on {others}, none of these"] if s.get("others") and not s["reused"] else []),
        f"accuracy is {'agreement with the untouched model' if agreement else 'every token of the gold word'}",
        f"all other heads are replaced by {s['replaced_by']}",
    ]


def set_combinations(main: Any, others: Sequence[Any], *, shape: tuple[int, int]) -> dict[str, HeadSet]:
    """The five sets that the authors keep, from a main set and two or more others (PAPER: E6).

    common: in all of them; only_main: in none of the others; only_other: in one of the others, not in main; other: in one of
    the others; common_only_main: common and only_main together. shape: (L, H).
    """
    m = HeadSet.of(main, shape, argument="main")
    rest = [HeadSet.of(o, shape, argument=f"others[{i}]") for i, o in enumerate(others)]
    if not rest:
        raise ValueError("others: got none; expected at least one other set")
    either, every = rest[0], rest[0]
    for o in rest[1:]:
        either, every = either | o, every & o
    found = {"common": m & every, "only_main": m - either, "only_other": either - m, "other": either}
    found["common_only_main"] = found["common"] | found["only_main"]
    return {name: HeadSet(s.mask, name, s.order, s.chosen_on) for name, s in found.items()}


def union(sets: Sequence[HeadSet]) -> HeadSet:
    """All heads of any of the sets, over the steps of one kind for example."""
    out = sets[0]
    for s in sets[1:]:
        out = out | s
    return out


def intersection(sets: Sequence[HeadSet]) -> HeadSet:
    """The heads that are in all of the sets."""
    out = sets[0]
    for s in sets[1:]:
        out = out & s
    return out


def keep_only(
    model: Model,
    examples: Examples,
    sets: Sets,
    *,
    steps: Sequence[int] | None = None,
    right: Graded | Tensor | None = None,
    n_random: int = 1,
    kind: Kind = "mean",
    mean: Mean = None,
    n_mean: int = N_PROMPTS,
    positions: Positions = "all",
    definition: Literal["exact", "paper"] = "exact",
    seed: int = 0,
    memory_gb: float | None = None,
    progress: Progress | None = None,
) -> Isolation:
    """Keeps sets of heads and ablates all others.

    sets: by name: a `HeadSet`, a bool array [L, H] or (layer, head) pairs; or a mapping from step to such sets, for sets that
        differ by step. `set_combinations` makes the paper's five from three; `union` and `intersection` those over steps.
    n_random: random sets of the same sizes, beside each set.
    Everything else as in `knock_out_curve`; definition "paper": accuracy is agreement with the untouched model.
    Returns an `Isolation`. Raises TypeError or ValueError naming the argument, before anything is run.
    Cost: for each different set one pass of the shared block and of each example's solution.
    Source: PAPER E6.
    """
    check_common(model, seed=seed, memory_gb=memory_gb)
    if not isinstance(sets, Mapping) or not sets:
        raise TypeError(f"sets: got {type(sets).__name__}; expected a mapping from names to sets of heads, at least one")
    _check(definition, n_random)
    shape = (model.cfg.n_layers, model.cfg.n_heads)
    with metered(model) as meter:
        given = {str(name): _by_step(s, shape, f"sets[{name!r}]") for name, s in sets.items()}
        cells = choose(model, examples, steps=steps, right=right)
        kept = np.stack([_stacked(s, cells.steps, f"sets[{name!r}]") for name, s in given.items()])  # [set, step, L, H]
        rng = np.random.default_rng(seed)
        chance = [_random_like(kept, rng) for _ in range(n_random)]
        run = ablated_steps(
            model, cells, kind=kind, mean=mean, n_mean=n_mean, positions=positions, seed=seed, memory_gb=memory_gb
        )
        tell = _Told(progress, len(kept) * (1 + n_random))
        found = _keep(run.answer, kept, cells, tell)
        others = [_keep(run.answer, masks, cells, tell) for masks in chance]
    main = "agrees" if definition == "paper" else "right"
    settings = dict(accuracy=main, n_random=n_random, seed=seed, **_chosen_on(given.values(), cells), **run.settings)
    facts = about(model, cells, source="PAPER E6", definition=definition, settings=settings, meter=meter)
    return Isolation(_dataset("set", list(given), kept, found, [o[main] for o in others], cells, shape), facts)


def remove(
    model: Model,
    examples: Examples,
    within: Any,
    scores: Any,
    *,
    variable: str | None = None,
    sizes: Sequence[int] | None = None,
    order: Literal["most", "least"] = "most",
    stop: float = 0.5,
    steps: Sequence[int] | None = None,
    right: Graded | Tensor | None = None,
    n_random: int = 1,
    kind: Kind = "mean",
    mean: Mean = None,
    n_mean: int = N_PROMPTS,
    positions: Positions = "all",
    definition: Literal["exact", "paper"] = "exact",
    name: str = "the set",
    seed: int = 0,
    memory_gb: float | None = None,
    progress: Progress | None = None,
) -> Removal:
    """Keeps a set of heads, and takes out of it more and more of those that score highest by another measure.

    within: the set that is kept: as in `keep_only`, one for all steps or a mapping from step to sets.
    scores: by what heads are taken: as in `select_heads`, pooled over steps. order: "most": the highest first; "least".
    sizes: how many are taken; None: ten numbers, evenly spread up to half of the (smallest) set.
    stop: no further sizes once the accuracy of every step is below this.
    definition: "exact": n heads of the set are taken, the first n in the order that are in it. "paper": as in the authors'
        code the first n of all heads with a score, so that those outside of the set count among the n and change nothing;
        random removal draws from all heads too. Accuracy as in `keep_only`.
    Everything else as in `keep_only`.
    Returns a `Removal`. Raises TypeError or ValueError naming the argument, before anything is run.
    Source: PAPER E6, removal.
    """
    check_common(model, seed=seed, memory_gb=memory_gb)
    if order not in ("most", "least"):
        raise ValueError(f"order: got {order!r}; expected 'most' or 'least'")
    if not 0 <= stop <= 1:
        raise ValueError(f"stop: got {stop}; expected an accuracy, 0 to 1")
    _check(definition, n_random)
    shape = (model.cfg.n_layers, model.cfg.n_heads)
    table = scores_of(scores, variable)
    if table.shape != shape:
        raise ValueError(f"scores: got heads {list(table.shape)}; the model has {list(shape)}")
    given = _by_step(within, shape, "within")
    with metered(model) as meter:
        cells = choose(model, examples, steps=steps, right=right)
        base = _stacked(given, cells.steps, "within")  # [step, L, H]
        ranked = list(select_heads(table, k=0).ranking)[:: 1 if order == "most" else -1]
        members = definition == "exact"
        taken = _sizes(sizes, int(base.sum((1, 2)).min()), None if members else len(ranked))
        kept = np.stack([_without(base, ranked, n, members) for n in taken])  # [size, step, L, H]
        draws = [_shuffled(shape, seed, i) for i in range(n_random)]
        run = ablated_steps(
            model, cells, kind=kind, mean=mean, n_mean=n_mean, positions=positions, seed=seed, memory_gb=memory_gb
        )
        main = "agrees" if definition == "paper" else "right"
        tell = _Told(progress, len(taken) * (1 + n_random))
        found, others, stopped = [], [], False
        for k, n in enumerate(taken):
            found.append(_keep(run.answer, kept[k : k + 1], cells, tell))
            others.append([_keep(run.answer, _without(base, draw, n, members)[None], cells, tell)[main] for draw in draws])
            if bool((np.nan_to_num(bootstrap.mean_interval(found[-1][main][0]).mean) < stop).all()):
                stopped = True
                break
    n = len(found)
    joined = {v: np.concatenate([f[v] for f in found]) for v in _VARIABLES}
    chance = [np.concatenate([o[i] for o in others]) for i in range(n_random)]
    data = _dataset("size", list(range(n)), kept[:n], joined, chance, cells, shape).assign(removed=("size", taken[:n]))
    words = f"with the {'highest' if order == 'most' else 'lowest'} scores{'' if members else ' of all heads'} ({table.name})"
    settings = dict(
        within=name, scores=table.name, order=order, words=words, stop=stop, stopped=stopped, accuracy=main, n_random=n_random,
        seed=seed, **_chosen_on([given], cells, table), **run.settings,
    )  # fmt: skip
    return Removal(data, about(model, cells, source="PAPER E6", definition=definition, settings=settings, meter=meter))


def _check(definition: str, n_random: int) -> None:
    if definition not in ("exact", "paper"):
        raise ValueError(f"definition: got {definition!r}; expected 'exact' or 'paper'")
    if n_random < 0:
        raise ValueError(f"n_random: got {n_random}; expected 0 or more")


def _by_step(given: Any, shape: tuple[int, int], argument: str) -> HeadSet | dict[int, HeadSet]:
    if isinstance(given, Mapping):
        return {int(step): HeadSet.of(s, shape, argument=f"{argument}[{step}]") for step, s in given.items()}
    return HeadSet.of(given, shape, argument=argument)


def _chosen_on(given: Iterable[HeadSet | dict[int, HeadSet]], cells: Cells, scores: Scores | None = None) -> dict[str, int]:
    """How many of the examples were used to choose the sets, or are behind the scores by which heads are taken out of them,
    and how many others were; as far as is known."""
    chosen = {e for g in given for s in (g.values() if isinstance(g, dict) else [g]) for e in s.chosen_on}
    if scores is not None and scores.labelled and scores.examples is not None:
        chosen |= {scores.examples[i] for i in scores.scored}
    reused = sum(example.index in chosen for example in cells.examples)
    return {"reused": reused, "others": len(chosen) - reused}


def _stacked(given: HeadSet | dict[int, HeadSet], steps: Sequence[int], argument: str) -> NDArray[np.bool_]:
    """[step, L, H]."""
    if isinstance(given, HeadSet):
        return np.stack([given.mask] * len(steps))
    missing = [s for s in steps if s not in given]
    if missing:
        raise ValueError(f"{argument}: has no set for step {missing[0]}; expected one for each of steps {list(steps)}")
    return np.stack([given[s].mask for s in steps])


def _random_like(masks: NDArray, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Random sets of the same sizes: [..., L, H]. Steps that share a set share the random one."""
    n = masks.shape[-1] * masks.shape[-2]
    out = np.zeros_like(masks)
    for i, steps in enumerate(masks):
        drawn: dict[bytes, NDArray] = {}
        for s, mask in enumerate(steps):
            if mask.tobytes() not in drawn:
                flat = np.zeros(n, bool)
                flat[rng.choice(n, int(mask.sum()), replace=False)] = True
                drawn[mask.tobytes()] = flat.reshape(mask.shape)
            out[i, s] = drawn[mask.tobytes()]
    return out


def _sizes(sizes: Sequence[int] | None, least: int, ranked: int | None) -> list[int]:
    """How many heads are taken. least: the size of the (smallest) set; ranked: of all heads with a score, if they count."""
    if sizes is None:
        return sorted({round(least / 2 * i / 10) for i in range(11)})
    out = sorted({0, *(int(s) for s in sizes)})
    most, what = (least, "the size of the set") if ranked is None else (ranked, "the number of heads with a score")
    if out[0] < 0 or out[-1] > most:
        raise ValueError(f"sizes: got {list(sizes)}; expected numbers in 0..{most}, {what}")
    return out


def _without(base: NDArray, ranked: Sequence[tuple[int, int]], n: int, members: bool) -> NDArray[np.bool_]:
    """Each set [step, L, H] without the first n heads in the ranking; unranked heads are never taken.

    members: the first n that are in the set; else the first n, wherever they are.
    """
    out = base.copy()
    for mask in out:
        mine = [head for head in ranked if mask[head] or not members][:n]
        for head in mine:
            mask[head] = False
    return out


def _shuffled(shape: tuple[int, int], seed: int, draw: int) -> list[tuple[int, int]]:
    """All heads in a random order, the same for all steps, so that steps with one set share their runs."""
    order = np.random.default_rng([seed, draw]).permutation(shape[0] * shape[1])
    return [(int(i) // shape[1], int(i) % shape[1]) for i in order]


class _Told:
    """Progress, counted."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def __call__(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)


def _keep(answer, kept: NDArray, cells: Cells, tell: _Told) -> dict[str, NDArray]:
    """Answers [set, example, step] for sets [set, step, L, H] that are kept."""
    out = {v: np.full((len(kept), *cells.shape), np.nan) for v in _VARIABLES}
    for i, masks in enumerate(kept):
        groups: dict[bytes, list[int]] = {}
        for s, mask in enumerate(masks):
            groups.setdefault(mask.tobytes(), []).append(s)
        for steps in groups.values():
            found = answer(~masks[steps[0]], steps)
            for v in _VARIABLES:
                out[v][i][:, steps] = getattr(found, v)[:, steps]
        tell()
    return out


def _dataset(
    axis: str, names: list, kept: NDArray, found: dict, chance: list[NDArray], cells: Cells, shape: tuple[int, int]
) -> xr.Dataset:
    dims = (axis, "example", "step")
    data: dict[str, Any] = {v: (dims, found[v]) for v in _VARIABLES}
    if chance:
        data["random"] = (dims, np.mean(chance, 0))
    data["kept"] = ((axis, "step"), kept.sum((-2, -1)))
    data["mask"] = ((axis, "step", "layer", "head"), kept)
    axes = {**cells.coords, axis: names, "layer": np.arange(shape[0]), "head": np.arange(shape[1])}
    return xr.Dataset(data, coords=axes)


def cost(
    cfg: ModelConfig,
    workload: Workload,
    *,
    sets: int = 5,
    n_random: int = 1,
    kind: Kind = "mean",
    n_mean: int = N_PROMPTS,
    steps: int = 1,
) -> Cost:
    """Predicted, of keep_only, and of remove with its sizes as sets. steps: how many have sets of their own, 1 if shared."""
    n = sets * (1 + n_random)
    if steps == 1:
        return runs_cost(cfg, workload, n, kind=kind, n_mean=n_mean)
    return runs_cost(cfg, workload, 0, kind=kind, n_mean=n_mean, apart=n, parts=steps)


def authors_cost(cfg: ModelConfig, workload: Workload, *, sets: int = 5, mains: int = 3) -> Cost:
    """Theirs: a full forward for each set, main set, step and example, the clean run, and half as many for the mean (E6)."""
    forwards = workload.cells * mains * (sets + 1.5)
    return rows_cost(cfg, forwards * workload.length, forwards=forwards, read=forwards * workload.length)
