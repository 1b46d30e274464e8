"""Finds the heads of inductive reasoning: what each restores however a step is broken (docs/protocol.md, E2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import combinations
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, get_args

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pycotmech.cot.analyses.patch_steps import PatchSteps, induction_score, patch_steps
from pycotmech.cot.analyses.patch_steps import cost as sweeps_cost
from pycotmech.cot.task.corruptions import Corruption, require_consistent
from pycotmech.cot.task.examples import Examples
from pycotmech.cot.task.steps import Graded
from pycotmech.cot.tools.by_head import HeadAnalysis
from pycotmech.cot.tools.cells import Cells, choose, grade
from pycotmech.cot.tools.cost import Cost, Workload, forwards_cost, metered
from pycotmech.cot.tools.registry import Description, Given
from pycotmech.cot.tools.result import Progress
from pycotmech.model.arguments import check_common
from pycotmech.model.config import ModelConfig
from pycotmech.stats import bootstrap

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.model import Model

KINDS: tuple[Corruption, ...] = get_args(Corruption)
_WORDS = {"answer": "answer replaced", "premise": "premise broken", "rule": "rule broken"}
_PARTS = ("effect", "kl", "kl_corrupted", "noise_floor", "changed")
_DRAWS = 1000
_LARGE = 0.5
"""Share of the divergence that rounding alone may make: a floor beyond it is explained."""


class RankAgreement(NamedTuple):
    """How alike two corruptions rank a step's heads: Spearman's rank correlation over heads, its interval over examples."""

    step: int
    kinds: tuple[str, str]
    mean: float
    low: float
    high: float
    n: int


class _Pooled(NamedTuple):
    """Restoration of all corruptions together, and under each of them."""

    together: NDArray
    apart: NDArray


class InductionHeads(HeadAnalysis):
    """Restoration by head under each corruption, and of all together.

    data, over corruption ("answer", "premise", "rule") and example, step: `effect` [.., layer, head], the share of the KL
    divergence that the head restores by itself; `kl` [.., layer, head] with that head patched and `kl_corrupted`;
    `noise_floor`; `changed`, whether the corruption changes the model's first choice. `score` [example, step, layer, head]
    is the share of the divergence of all corruptions together that the head restores (`induction_score`).
    """

    name, title = "induction_heads", "What each head restores at inductive steps, however they are broken"
    source = "E2"
    main, label = "score", "share of KL divergence restored"
    ranges: ClassVar = {**dict.fromkeys(("kl", "kl_corrupted", "noise_floor"), bootstrap.COUNT), "changed": bootstrap.SHARE}

    @property
    def kinds(self) -> list[str]:
        return [str(k) for k in self.data["corruption"].values]

    @cached_property
    def _ratios(self) -> tuple[_Pooled, _Pooled, NDArray]:
        """Ratios of sums over examples, of all corruptions together [S, L, H] and of each [C, S, L, H]; the same of each
        resample [draws, ...]; examples [S]."""
        order = ("corruption", "example", "step", "layer", "head")
        effect = self.data["effect"].transpose(*order).values  # against self-patches, whose rounding the raw KL still holds
        broken = self.data["kl_corrupted"].transpose(*order[:3]).values[..., None, None]
        moved = np.where(np.isfinite(broken), broken, 0.0)
        restored = np.where(moved > 0, np.nan_to_num(effect) * moved, 0.0)
        weights = bootstrap.resampled(effect.shape[1], draws=_DRAWS)
        top, below = (np.einsum("dn,cn...->dc...", weights, x) for x in (restored, moved))
        found = _Pooled(_ratio(restored.sum((0, 1)), moved.sum((0, 1))), _ratio(restored.sum(1), moved.sum(1)))
        drawn = _Pooled(_ratio(top.sum(1), below.sum(1)), _ratio(top, below))
        return found, drawn, np.isfinite(broken[0, :, :, 0, 0]).sum(0)

    def restoration(self) -> xr.Dataset:
        """The ratio of means over examples under each corruption, with its interval: mean, low, high, n [corruption, step,
        layer, head]."""
        found, drawn, n = self._ratios
        return self._interval(found.apart, drawn.apart, n, ("corruption", "step", "layer", "head"))

    def scores(self, variable: str | None = None) -> xr.Dataset:
        """The share of the divergence that a head restores, sums over corruptions and examples: a corruption that breaks next
        to nothing weighs next to nothing. For a variable its plain mean over examples."""
        if variable is not None:
            return super().scores(variable)
        found, drawn, n = self._ratios
        return self._interval(found.together, drawn.together, n, ("step", "layer", "head"))

    def _interval(self, found: NDArray, drawn: NDArray, n: NDArray, dims: tuple[str, ...]) -> xr.Dataset:
        number = np.broadcast_to(n[:, None, None], found.shape)
        low, high = bootstrap.widened(found, *bootstrap.percentiles(drawn), number)
        values = {"mean": found, "low": low, "high": high, "n": number}
        coords = {d: self.data[d] for d in dims} | {"kind": self.data["kind"]}
        return xr.Dataset({k: (dims, v) for k, v in values.items()}, coords=coords)

    def floors(self) -> xr.DataArray:
        """The noise floor of the share of the divergence of all corruptions together, of the example where it is largest:
        [step]. The corruptions weigh as they do in `scores`, so that it is small where one of them breaks next to nothing."""
        moved = self.data["kl_corrupted"].where(self.data["kl_corrupted"] > 0)
        return ((self.data["noise_floor"] * moved).sum("corruption") / moved.sum("corruption")).max("example")

    def clear(self) -> xr.DataArray:
        """1 where the interval of a head lies above the noise floor, -1 where it lies below its negative, else 0:
        [corruption, step, layer, head]."""
        found, floor = self.restoration(), self.data["noise_floor"].max("example")
        above, below = found["low"] > floor, found["high"] < -floor
        return (above.astype(int) - below.astype(int)).transpose("corruption", "step", "layer", "head")

    def common(self, step: int) -> list[tuple[int, int, float]]:
        """The heads beyond the noise floor under every corruption, to the same side, the strongest first: [(layer, head,
        score), ...]."""
        clear, score = self.clear().sel(step=step), self.scores()["mean"].sel(step=step)
        same = (np.abs(clear.sum("corruption")) == len(self.kinds)).transpose("layer", "head").values
        heads = [(int(l), int(h), float(score[l, h])) for l, h in np.argwhere(same)]
        return sorted(heads, key=lambda head: -abs(head[2]))

    def by_chance(self, step: int) -> float:
        """How many heads would be in `common` if those that are clear under each corruption were drawn at random."""
        clear = self.clear().sel(step=step)
        n = clear.sizes["layer"] * clear.sizes["head"]
        shares = [(clear == sign).mean(("layer", "head")).values for sign in (1, -1)]
        return float(sum(n * s.prod() for s in shares))

    def agreement(self) -> list[RankAgreement]:
        """Of every two corruptions at every step. NaN where a corruption moves nothing."""
        found, drawn, n = self._ratios
        ranks, again = (_ranks(x.reshape(*x.shape[:-2], -1)) for x in (found.apart, drawn.apart))
        out = []
        for s, step in enumerate(self.data["step"].values.tolist()):
            for a, b in combinations(range(len(self.kinds)), 2):
                mean = float(_correlation(ranks[a, s], ranks[b, s]))
                drawn = bootstrap.percentiles(_correlation(again[:, a, s], again[:, b, s])[:, None])
                low, high = bootstrap.widened([mean], *drawn, [n[s]], within=bootstrap.SHARES_APART)
                out.append(RankAgreement(step, (self.kinds[a], self.kinds[b]), mean, float(low[0]), float(high[0]), int(n[s])))
        return out

    def table(self, k: int = 5, *, held_out: bool = True) -> pd.DataFrame:
        """The k strongest heads of each step as in `HeadAnalysis.table`, with what each restores under every corruption, and
        common, whether it is clear under all, to the same side; on the examples that the means are of."""
        return super().table(k, held_out=held_out)

    def _beside(self, step: int, heads: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        restored_by, common = self.restoration()["mean"].sel(step=step), {head[:2] for head in self.common(step)}
        rows = []
        for l, h in heads:
            restored = {kind: float(restored_by.sel(corruption=kind, layer=l, head=h)) for kind in self.kinds}
            rows.append({**restored, "common": (l, h) in common})
        return rows

    def plot(self, *, path: str | PathLike | None = None) -> Figure:
        """Heat maps of each step: all corruptions together, and each corruption; layers upward."""
        from pycotmech.figures.heatmap import maps_figure

        mean, by_kind = self.scores()["mean"], self.restoration()["mean"]
        grids, titles = [], []
        for i, step in enumerate(self.data["step"].values):
            n = int(self._ratios[2][i])
            if n == 0:
                continue
            grids.append(mean.isel(step=i).values)
            titles.append(f"step {step}, n = {n}\nall {len(self.kinds)} together")
            for kind in self.kinds:
                grids.append(by_kind.sel(corruption=kind).isel(step=i).values)
                titles.append(f"step {step}\n{_WORDS[kind]}")
        return maps_figure(
            grids,
            titles,
            title=f"{self.about['model']}: heads at inductive steps, by corruption",
            lines=[
                self._largest(self.scores()),
                "scale: that of all corruptions together; under one alone values may lie beyond it",
                *self.small_print(self.main),
                *self._floors_in_words(explained=False),
            ],
            label=self.label,
            scaled_by=range(0, len(grids), 1 + len(self.kinds)),
            columns=1 + len(self.kinds),
            path=path,
        )

    def findings(self) -> list[str]:
        """For each step the strongest head; what the corruptions change; how far they agree; heads clear under all."""
        lines = self._strongest()
        changed, moved = (self.data[name].mean("step") for name in ("changed", "kl_corrupted"))
        words = []
        for kind in self.kinds:
            one, kl = (
                bootstrap.mean_interval(x.sel(corruption=kind).values, within=within)
                for x, within in ((changed, bootstrap.SHARE), (moved, bootstrap.COUNT))
            )
            words.append(f"{_WORDS[kind]} {one.words()} (KL divergence {kl.words('{:.2g}')})")
        n = int(np.isfinite(changed.values).all(0).sum())
        lines.append(f"the model's first choice changes with the {', with the '.join(words)}; n = {n} examples")
        for step in self.data["step"].values.tolist():
            pairs = [
                f"{a} and {b} {mean:.2f}{bootstrap.ends(low, high, '{:.2f}')}"
                for at, (a, b), mean, low, high, _ in self.agreement()
                if at == step
            ]
            number = int(self._ratios[2][self.data["step"].values.tolist().index(step)])
            lines.append(f"step {step}: rank correlation over heads (n = {number}): {', '.join(pairs)}")
            if number < 2:
                lines.append(f"step {step}: one example has no interval, so no head can be called clear of the noise")
                continue
            size = self.data.sizes["layer"] * self.data.sizes["head"]
            lines.append(
                f"step {step}: {len(self.common(step))} of {size} heads lie beyond the noise floor to the same side under all "
                f"{len(self.kinds)} corruptions (by chance {self.by_chance(step):.1f}, n = {number}){self._common(step)}"
            )
        return [*lines, *self._floors_in_words()]

    def _floors_in_words(self, *, explained: bool = True) -> list[str]:
        """How large the noise floor is at each step under each corruption, and (explained) why where it is large."""
        lines, together = [], self.floors()
        for i, step in enumerate(self.data["step"].values.tolist()):
            if not (n := int(self._ratios[2][i])):
                continue
            here = self.data[["noise_floor", "kl_corrupted"]].isel(step=i)
            floors = {kind: here["noise_floor"].sel(corruption=kind).values for kind in self.kinds}
            largest = [f"{np.fmax.reduce(floors[kind]):.0%} with the {_WORDS[kind]}" for kind in self.kinds]
            lines.append(
                f"step {step}: noise floor, of the example where it is largest: {float(together.isel(step=i)):.0%} with all "
                f"corruptions together; {', '.join(largest)}"
            )
            weak = [
                f"{count} of {n} examples with the {_WORDS[kind]} (median KL divergence "
                f"{float(here['kl_corrupted'].sel(corruption=kind).median()):.2g})"
                for kind in self.kinds
                if (count := int((floors[kind] > _LARGE).sum()))
            ]
            if weak and explained:
                lines.append(
                    f"step {step}: the floor exceeds {_LARGE:.0%} in {' and '.join(weak)}: this corruption hardly changes what "
                    "the model says there, so that rounding is divided by little. Nothing follows from an effect that is not "
                    "beyond the floor"
                )
        return lines

    def _common(self, step: int, k: int = 5) -> str:
        """The k strongest heads that are `common` on one half of the examples, with their scores on the other, in words."""
        parts = self.at_step(self.main, step)
        heads = [] if parts is None else parts.choosing.common(step)[:k]
        if parts is None or not heads:
            return ""
        score = parts.reporting.scores()["mean"].sel(step=step)
        named = ", ".join(f"L{l}H{h} {float(score.sel(layer=l, head=h)):+.2f}" for l, h, _ in heads)
        return f"; the strongest{' of one half' if parts.held_out else ''} ({parts.words}): {named}"


def _ratio(restored: NDArray, broken: NDArray) -> NDArray:
    """NaN where nothing was broken, so that there is nothing to restore."""
    return restored / np.where(broken > 0, broken, np.nan)


def _ranks(x: NDArray) -> NDArray:
    from scipy.stats import rankdata

    return rankdata(x, axis=-1, nan_policy="propagate")


def _correlation(a: NDArray, b: NDArray) -> NDArray:
    """Of the last axes; NaN where one of them does not vary."""
    a, b = (x - x.mean(-1, keepdims=True) for x in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def combined(parts: Mapping[str, PatchSteps]) -> xr.Dataset:
    """The data of `InductionHeads` from a result of `patch_steps` for each corruption, on the same examples and steps."""
    kinds = xr.DataArray(list(parts), dims="corruption", name="corruption")
    datasets = [xr.Dataset({k: r.data[k] for k in _PARTS}) for r in parts.values()]
    data = xr.concat(datasets, kinds, join="exact", combine_attrs="drop")
    return data.assign(score=induction_score(list(parts.values())))


def induction_heads(
    model: Model,
    examples: Examples,
    *,
    steps: Sequence[int] | None = None,
    right: Graded | Tensor | None = None,
    answer: PatchSteps | None = None,
    seed: int = 0,
    memory_gb: float | None = None,
    progress: Progress | None = None,
) -> InductionHeads:
    """Patches every head at every inductive step under three corruptions: the answer replaced, the premise broken, the rule
    broken. A head that serves the inference, and not one of its words, restores the step under each of them.

    examples: of definition="exact". steps, right: as `cells.choose`; steps None: all inductive ones, and no others are taken.
    answer: a result of `patch_steps` on these examples that holds these steps, of clean z at all positions, by which the
        first of the three need not be run again.
    Returns `InductionHeads`. Raises TypeError or ValueError naming the argument, before the first sweep.
    Cost: as `patch_steps` on these steps, for each corruption that is run.
    Source: docs/protocol.md, E2. The authors' prompts have one hop and other words; the normalised KL is theirs, read at the
        last position, as logit differences are here too (F11). A step counts if the model is right on its clean prompt;
        `changed` says whether the corruption then leads it elsewhere (the authors keep those examples only).
    """
    check_common(model, seed=seed, memory_gb=memory_gb)
    if isinstance(examples, Examples):
        require_consistent(examples, "a broken premise or rule")
        inductive = [i for i, kind in enumerate(examples.kinds) if kind == "induction"]
        steps = inductive if steps is None else list(steps)
        if not steps or not set(steps) <= set(inductive):
            raise ValueError(f"steps: got {list(steps)}; expected some of the inductive steps {inductive}")
        right = grade(model, examples) if right is None else right
    cells = choose(model, examples, steps=steps, right=right)
    given = {} if answer is None else {"answer": _answer(answer, model, cells)}
    todo = [kind for kind in KINDS if kind not in given]
    parts: dict[str, PatchSteps] = {}
    with metered(model) as meter:
        for kind in KINDS:
            if kind in given:
                parts[kind] = given[kind]
                continue
            part = None if progress is None else _part(progress, todo.index(kind), len(todo))
            parts[kind] = patch_steps(
                model,
                examples,
                steps=cells.steps,
                right=right,
                corruption=kind,
                controls=False,
                seed=seed,
                memory_gb=memory_gb,
                progress=part,
            )
    words = "z of one head at a time, clean values into the corrupted run, at all positions; "
    words += "the divergence restored under the corruptions (answer, premise, rule) over their divergence, sums over "
    words += "corruptions and examples"
    settings = {"corruptions": list(KINDS), "run": todo, "seed": seed}
    return InductionHeads.made(model, cells, combined(parts), None, words, settings, meter)


def _answer(given: PatchSteps, model: Model, cells: Cells) -> PatchSteps:
    """The part of a result that holds these cells, after it was checked that it is of the same kind."""
    if not isinstance(given, PatchSteps):
        raise TypeError(f"answer: got {type(given).__name__}; expected a result of patch_steps")
    s = given.about["settings"]
    asked = {"corruption": "answer", "direction": "denoise", "site": "z", "positions": None}
    for name, value in asked.items():
        if s[name] != value:
            raise ValueError(f"answer: a result with {name}={s[name]!r}; expected {value!r}")
    if given.about["model"] != model.name:
        raise ValueError(f"answer: a result of {given.about['model']}; expected one of {model.name}")
    numbers, steps = list(cells.coords["example"]), list(cells.steps)  # type: ignore[call-overload]
    have = {k: given.data[k].values.tolist() for k in ("example", "step")}
    if have["example"] != numbers or not set(steps) <= set(have["step"]):
        raise ValueError(
            f"answer: a result of examples {have['example']} and steps {have['step']}; expected examples {numbers} and steps "
            f"{steps} among them"
        )
    data = given.data.sel(step=steps)
    if not np.array_equal(np.isfinite(data["kl_corrupted"].values), cells.right.numpy()):
        raise ValueError("answer: a result in which other steps of the examples count; expected one made with the same right=")
    return PatchSteps(data, given.about)


def _part(progress: Progress, number: int, of: int) -> Progress:
    return lambda done, total: progress(number + done / max(total, 1), of)


def cost(cfg: ModelConfig, workload: Workload, *, answer: bool = False) -> Cost:
    """Predicted: a sweep for each inductive cell and corruption. answer: whether a result for the first of them is there."""
    sweeps = replace(workload, cells=workload.inductive, swept=0.0, sweeps=0, together=1)
    return (2 if answer else 3) * sweeps_cost(cfg, sweeps, controls=False)


def authors_cost(cfg: ModelConfig, workload: Workload) -> Cost:
    """Theirs: for each corruption one full forward per head, the two runs, and two to filter (docs/protocol.md, Cost, E2).
    Assumed: no row is filtered out; each would add two."""
    return forwards_cost(cfg, workload, 3.0 * workload.inductive * (cfg.n_layers * cfg.n_heads + 4))


def _broken(examples: int) -> int:
    """How many of the examples the whole paper's run breaks: half of them, if that has halves of its own. Each break is a sweep
    of its own, and those of premise and rule weigh little (KL divergences of hundredths against ten)."""
    return min(examples, max(bootstrap.HALVED, examples // 2))


def _of_paper(given: Given, progress: Progress | None) -> InductionHeads:
    """The inductive steps of the first half of the examples that have any, with what `patch_steps` made of the first
    corruption."""
    kinds = given.examples.kinds
    steps = [i for i in given.steps if kinds[i] == "induction"]
    if not steps:
        raise ValueError(f"steps: none of {list(given.steps)} is a step of induction, which is what E2 looks at")
    right = given.right.right if isinstance(given.right, Graded) else given.right
    counted = right[:, steps].any(1).nonzero()[:, 0].tolist()
    places = counted[: _broken(len(counted))] or range(len(given.examples))
    answer = given.done["patch_steps"]
    answer = PatchSteps(answer.data.isel(example=list(places)), answer.about)
    return given.of(places).call(induction_heads, progress, steps=steps, answer=answer)


def _cost_of_paper(cfg: ModelConfig, workload: Workload) -> Cost:
    share = _broken(workload.examples) / max(workload.examples, 1)
    return cost(cfg, replace(workload, inductive=round(share * workload.inductive)), answer=True)


ANALYSIS = Description(
    InductionHeads,
    induction_heads,
    cost=_cost_of_paper,
    authors=authors_cost,
    needs=("patch_steps",),
    how=_of_paper,
)
