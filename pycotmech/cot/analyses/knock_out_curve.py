"""Accuracy against the number of heads that are ablated, step by step (docs/protocol.md, E5)."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pycotmech._choices import check_choice
from pycotmech._words import plural
from pycotmech.cot.task.examples import Examples
from pycotmech.cot.task.steps import Graded
from pycotmech.cot.tools.ablation import Kind, Mean, Positions, ablated_steps, runs_cost
from pycotmech.cot.tools.ablation_results import (
    AblationResult,
    answered,
    check_definition,
    compared,
    random_words,
    result_data,
)
from pycotmech.cot.tools.cells import choose
from pycotmech.cot.tools.cost import Cost, Workload, forwards_cost, metered
from pycotmech.cot.tools.head_sets import scores_of
from pycotmech.cot.tools.held_out import chosen_apart, in_half, named_halves
from pycotmech.cot.tools.means import N_PROMPTS
from pycotmech.cot.tools.registry import Description
from pycotmech.cot.tools.result import Progress, columns, counting, headline, in_words
from pycotmech.cot.tools.select_heads import Selection, select_heads, spread
from pycotmech.model.arguments import check_common
from pycotmech.model.config import ModelConfig
from pycotmech.stats import bootstrap
from pycotmech.stats.averages import nanmean
from pycotmech.stats.draws import layer_matched
from pycotmech.stats.random_sets import DRAWS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.model import Model

Order = Literal["least", "most"]


class KnockOutCurve(AblationResult):
    """Curves of accuracy over sets of heads that are ablated, each set holding the one before it.

    data, over order ("least": least important first; "most"), size, example and step: `right` 1 where every token of the word
    is still the arg-max; `agrees` 1 where the first token is that of the untouched model; `log_prob` of the whole word.
    `removed` [order, size] heads ablated and `ablated` [order, size, layer, head] which, with an axis step if each step has a
    ranking of its own; `half` [example]: "select" or "report", "both" where a single example counts or by the paper's
    definition, "" where no step of the example counts.
    Of random sets, where they were tried: `random` [draw, example, step], the accuracy (right or agrees) with only a random set
    left, which has as many heads in each layer as the set that the first order leaves at its operating point over all steps;
    NaN for examples that are not reported on. `random_kept` [draw, layer, head] (with an axis step, as above), which heads
    these are; `random_size`, that operating point's place along size.
    """

    name, title = "knock_out_curve", "Accuracy against the number of heads ablated"
    source = "E5"
    ranges: ClassVar = dict.fromkeys(("right", "agrees", "random"), bootstrap.SHARE)

    def accuracy(self, variable: str | None = None, *, half: str | None = None) -> xr.Dataset:
        """Mean over examples with its bootstrap interval: mean, low, high, n [order, size, step].

        variable: "right", "agrees" or "log_prob". half: "select" or "report": only the examples of that half.
        """
        return AblationResult.accuracy(self._half(half), variable)

    def overall(self, variable: str | None = None, *, half: str | None = None) -> xr.Dataset:
        """The same over all steps: each example's mean over its steps, then over examples: [order, size]."""
        return AblationResult.overall(self._half(half), variable)

    def _half(self, half: str | None) -> KnockOutCurve:
        if half is None:
            return self
        check_choice("half", half, ("select", "report", None))
        return KnockOutCurve(self.data.isel(example=in_half(self.data["half"].values, half)), self.about)

    def operating_points(self, *, order: str | None = None, target: float | None = None) -> pd.DataFrame:
        """Where each curve is nearest to the target accuracy, chosen on one half of the examples and reported on the other.

        At least one head is ablated; ties go to the larger number (docs/protocol.md, E5). One row for each step, and one for
        all steps together: step, kind, size (along the axis), removed, kept, chosen_at (accuracy on the selecting half),
        accuracy, low, high, n (on the reporting half), random (accuracy there of random sets with as many heads in each layer;
        NaN where none were tried at this size), gain (by how much the set is above them, example by example), floor (accuracy
        there with every head ablated, NaN if the curve does not go so far: what the replacement alone gets right), each of the
        three with name_low and name_high. Intervals are over examples; those of random and gain are over random sets too, and
        hold what one further random set gives (`pycotmech.stats.random_sets`).
        """
        import pandas as pd

        order = order or str(self.data["order"].values[0])
        goal: float = self.about["settings"]["target"] if target is None else target
        chosen_on, reported = ((self.accuracy(half=h), self.overall(half=h)) for h in ("select", "report"))
        to_the_end = bool((self.data["ablated"].sel(order=order).isel(size=-1)).all())
        n_heads = self.data.sizes["layer"] * self.data.sizes["head"]
        by_example, rows = self._half("report").data, []
        for i, step in enumerate([*self.data["step"].values.tolist(), "all"]):
            by_step = step != "all"
            pick, report = (x[0].isel(step=i) if by_step else x[1] for x in (chosen_on, reported))
            size = nearest(pick["mean"].sel(order=order).values, goal)
            if size is None:
                continue
            removed = self.data["removed"].sel(order=order).isel(size=size)
            if "step" in removed.dims:
                removed = removed.isel(step=i) if by_step else removed.mean("step").round()
            at = report.sel(order=order).isel(size=size)
            row: dict[str, Any] = {"step": step, "kind": str(self.data["kind"].values[i]) if by_step else "", "size": size}
            row |= {"removed": int(removed), "kept": n_heads - int(removed)}
            row["chosen_at"] = float(pick["mean"].sel(order=order).isel(size=size))
            row |= {**headline("accuracy", at), "n": int(at["n"])}
            floor = report.sel(order=order).isel(size=-1)
            row |= columns("floor", floor if to_the_end else floor.where(False))
            tried = self._drawn_at(order) == size
            own, drawn = by_example[self.main].sel(order=order).isel(size=size), by_example["random"] if tried else None
            comparison = (
                None if drawn is None else compared(*(x.isel(step=i) if by_step else x.mean("step") for x in (own, drawn)))
            )
            for name in ("random", "gain"):
                row |= columns(name, floor.where(False) if comparison is None else comparison[name])
            rows.append(row)
        return pd.DataFrame(rows)

    def _drawn_at(self, order: str) -> int | None:
        """The place along size at which random sets were tried, if they were beside this order."""
        tried = "random" in self.data and order == str(self.data["order"].values[0])
        return int(self.data["random_size"]) if tried else None

    def table(self) -> pd.DataFrame:
        """Accuracy of all examples: order, step, kind, removed, accuracy, low, high, n, agreement with its own low and high."""
        import pandas as pd

        found, agreed = self.accuracy(), self.accuracy("agrees")
        removed = self.data["removed"].broadcast_like(found["mean"]).transpose("order", "size", "step").values
        rows = []
        for o, order in enumerate(found["order"].values):
            for s, step in enumerate(found["step"].values):
                for k in range(found.sizes["size"]):
                    here = found.isel(order=o, size=k, step=s)
                    row = {"order": str(order), "step": int(step), "kind": str(self.data["kind"].values[s])}
                    row |= {"removed": int(removed[o, k, s]), **headline("accuracy", here), "n": int(here["n"])}
                    rows.append(row | columns("agreement", agreed.isel(order=o, size=k, step=s)))
        return pd.DataFrame(rows)

    def plot(self, *, path: str | PathLike | None = None) -> Figure:
        """Curves with their intervals, a panel for each step, the operating point marked."""
        from pycotmech.cot.analyses.knock_out_curve_figure import knock_out_figure

        s = self.about["settings"]
        apart = "report" in self.data["half"].values
        lines = [
            f"accuracy: {self.accuracy_words}; bands: 95 % intervals over examples; operating point: nearest to {s['target']:g}"
            + (", chosen on one half of the examples and shown for the other" if apart else ""),
            f"heads ordered by {s['scores']}, {s['ranked_on']}",
            f"replaced by {s['replaced_by']}" + ("" if s["positions"] == "all" else "; after the few-shot block only"),
            *self.about["notes"],
        ]
        return knock_out_figure(
            self.accuracy(),
            self.overall(),
            self.data["removed"],
            self.data["kind"].values.tolist(),
            self.operating_points().to_dict("records"),
            self._drawn(),
            title=f"{self.about['model']}: {self.title.lower()}",
            lines=lines,
            path=path,
        )

    def _drawn(self) -> tuple[NDArray, NDArray, NDArray] | None:
        """Of the random sets: heads ablated [step], accuracy by step [draw, step] and over all steps [draw]."""
        if "random" not in self.data:
            return None
        drawn = self._half("report").data["random"].transpose("draw", "example", "step")
        kept = self.data["random_kept"].isel(draw=0).sum(("layer", "head"))
        removed = self.data.sizes["layer"] * self.data.sizes["head"] - kept.broadcast_like(self.data["step"]).values
        return removed, drawn.mean("example").values, drawn.mean("step").mean("example").values

    def findings(self) -> list[str]:
        """For each step: how many heads can go, and what is left of the accuracy on the examples not used to choose."""
        lines = []
        s = self.about["settings"]
        n_heads = self.data.sizes["layer"] * self.data.sizes["head"]
        where = "held-out examples" if "report" in self.data["half"].values else "the same examples"
        for row in self.operating_points().to_dict("records"):
            what = f"step {row['step']} ({row['kind']})" if row["step"] != "all" else "all steps"
            random = f"; {random_words(s['n_random'])} {in_words(row, 'random')}" if np.isfinite(row["random"]) else ""
            random += f" (difference {in_words(row, 'gain', '{:+.2f}')})" if np.isfinite(row["gain_low"]) else ""
            floor = f"; with every head ablated {in_words(row, 'floor')}" if np.isfinite(row["floor"]) else ""
            near = ""
            if abs(row["chosen_at"] - s["target"]) > 0.1:
                near = f" (nearest to {s['target']:g} when chosen: {row['chosen_at']:.2f})"
            lines.append(
                f"{what}: {row['removed']} of {n_heads} heads ablated, accuracy {in_words(row, 'accuracy', main=True)} on "
                f"{plural(row['n'], 'example')} ({where}){near}{random}{floor}"
            )
        return [*lines, f"accuracy is {self.accuracy_words}", f"ablated heads are replaced by {s['replaced_by']}"]


def nearest(accuracy: NDArray, target: float) -> int | None:
    """The index from 1 on whose accuracy is nearest to the target, ties to the larger index; None if none is known."""
    off = np.abs(np.asarray(accuracy, float) - target)
    off[0] = np.nan
    if not np.isfinite(off).any():
        return None
    return int(np.flatnonzero(off <= np.nanmin(off) + 1e-9)[-1])


def knock_out_curve(
    model: Model,
    examples: Examples,
    scores: Any,
    *,
    variable: str | None = None,
    steps: Sequence[int] | None = None,
    right: Graded | Tensor | None = None,
    sizes: Sequence[int] | None = None,
    order: Order | Sequence[Order] = "least",
    ranking: Literal["pooled", "by_step"] = "pooled",
    n_random: int = DRAWS,
    kind: Kind = "mean",
    mean: Mean = None,
    n_mean: int = N_PROMPTS,
    positions: Positions = "all",
    target: float = 0.9,
    definition: Literal["exact", "paper"] = "exact",
    seed: int = 0,
    memory_gb: float | None = None,
    progress: Progress | None = None,
) -> KnockOutCurve:
    """Ablates more and more heads, in the order of a score, and counts which steps stay right.

    scores: what `select_heads` takes (then heads go by their value), or what it gives (then its sets are what stays).
    variable: of an Analysis, which of its variables. steps, right: as `cells.choose`.
    sizes: how many heads are ablated; None: about 12 numbers from none to all. With a `Selection` its own sets.
    order: "least": the least important heads go first; "most": the most important; or both.
    ranking: "pooled": one ranking for all steps, so that one pass answers all of them; "by_step": each step by its own scores.
    n_random: how many random sets are compared with what the first order leaves at the operating point of all steps, each with
        as many heads in each layer. They are run on the examples that are reported on.
    kind, mean, n_mean, positions: what heads are replaced by, and where; see `head_means`. The default is the mean over
        other prompts of the same kind at the same word of the template, at all positions, few-shot block included.
    target: the accuracy of the operating point.
    definition: "exact": accuracy is every token of the gold word; ranking (where scores are per example) and operating
        point come from one half of the examples, and the operating point is reported on the other. "paper": accuracy is
        agreement with the untouched model's next token, and everything is chosen and reported on all examples. What heads
        are replaced by is the same in both. The authors took the mean over 50 prompts of the false ontology at the same
        step, with their own few-shot block, position by position counted from the right; as those prompts are 35 to 50
        tokens shorter, unrelated words fall together, and that mean is not reproduced. Such prompts matched word by word
        are averaged with mean=make_examples(50, ontology="false", ...).

    Returns a `KnockOutCurve`. Raises TypeError or ValueError naming the argument, before anything is run.
    Cost: for each set one pass of the shared block and of each example's solution ("by_step": for each step); for each random
        set one pass of the block and of the solutions that are reported on.
    Source: docs/protocol.md, E5; the mean as F7 asks, both orders as F12 asks, the halves as F14 asks.
    """
    check_common(model, seed=seed, memory_gb=memory_gb)
    orders = [order] if isinstance(order, str) else list(order)
    if not orders or not all(o in ("least", "most") for o in orders) or len(set(orders)) < len(orders):
        raise ValueError(f"order: got {order!r}; expected 'least', 'most' or both")
    check_choice("ranking", ranking, ("pooled", "by_step"))
    main = check_definition(definition, n_random)
    if not 0 <= target <= 1:
        raise ValueError(f"target: got {target}; expected an accuracy, 0 to 1")
    shape = (model.cfg.n_layers, model.cfg.n_heads)
    selection = _selection(scores, variable, sizes, shape)
    with metered(model) as meter:
        cells = choose(model, examples, steps=steps, right=right)
        half = named_halves(cells.right.any(1).numpy(), definition, seed)
        selection, basis = chosen_apart(selection, examples, half)
        if ranking == "by_step" and (selection.source is None or selection.source.steps is None):
            raise ValueError("ranking: 'by_step' needs scores with an axis step; expected 'pooled'")
        by_step = [selection.at(s) for s in cells.steps] if ranking == "by_step" else [selection]
        masks = np.stack([np.stack([_masks(o, s) for s in by_step], 1) for o in orders])  # [order, size, step, L, H]
        run = ablated_steps(
            model, cells, kind=kind, mean=mean, n_mean=n_mean, positions=positions, seed=seed, memory_gb=memory_gb
        )
        sets = masks.reshape(-1, *masks.shape[2:])  # [order * size, step, L, H]
        tick = counting(progress, len(sets) + n_random)
        found = answered(run.answer, sets, cells, tick)
        at = _pooled_point(found[main][: masks.shape[1], in_half(half, "select")], target)
        rng, tried = np.random.default_rng(seed), n_random > 0 and at is not None
        drawn = [layer_matched(~masks[0, at], rng) for _ in range(n_random if tried else 0)]
        random = answered(run.answer, ~np.stack(drawn), cells, tick, in_half(half, "report"))[main] if drawn else None
    found = {v: value.reshape(*masks.shape[:2], *cells.shape) for v, value in found.items()}
    masks = masks if ranking == "by_step" else masks[:, :, 0]
    ranked = ("order", "size", "step")[: masks.ndim - 2]
    data: dict[str, Any] = {"removed": (ranked, masks.sum((-2, -1))), "ablated": ((*ranked, "layer", "head"), masks)}
    data["half"] = ("example", half)
    if random is not None:
        sets = np.stack(drawn) if ranking == "by_step" else np.stack(drawn)[:, 0]
        data["random"] = (("draw", "example", "step"), random)
        data |= {"random_kept": (("draw", *ranked[2:], "layer", "head"), sets), "random_size": ((), at)}
    dataset = result_data(cells, found, {"order": orders, "size": None}, data, shape)
    settings = dict(
        scores=selection.about, rule=selection.rule, ranked_on=basis, ranking=ranking, order=orders, n_random=n_random,
        target=target, accuracy=main, seed=seed, **run.settings,
    )  # fmt: skip
    return KnockOutCurve.made(model, cells, dataset, None, definition, settings, meter)


def _selection(scores: Any, variable: str | None, sizes: Sequence[int] | None, shape: tuple[int, int]) -> Selection:
    n = shape[0] * shape[1]
    if isinstance(scores, Selection):
        if sizes is not None:
            raise ValueError("sizes: the scores are a Selection with its own sets; expected None")
        selection = scores
    else:
        counts = spread(n) if sizes is None else sorted({0, *(int(s) for s in sizes)})
        if not all(0 <= c <= n for c in counts) or len(counts) < 2:
            raise ValueError(f"sizes: got {sizes}; expected numbers of heads in 1..{n}, at least one")
        table = scores_of(scores, variable).checked(shape)
        missing = int(np.isnan(table.mean()).sum())
        if missing:
            raise ValueError(f"scores: {missing} of {n} heads have no score, so they have no place in the order")
        selection = select_heads(table, k=[n - c for c in counts])
    if selection.scores.shape != shape:
        raise ValueError(f"scores: got heads {list(selection.scores.shape)}; the model has {list(shape)}")
    return selection


def _pooled_point(accuracy: NDArray, target: float) -> int | None:
    """The place of the operating point over all steps: accuracy [size, example, step], NaN where a step does not count."""
    return nearest(nanmean(nanmean(accuracy.T)), target)


def _masks(order: str, selection: Selection) -> NDArray[np.bool_]:
    """What is ablated, [sizes, L, H]: nothing at first, then more and more."""
    shape = selection.scores.shape
    least = ~selection.masks
    if least[0].any():
        least = np.concatenate((np.zeros((1, *shape), bool), least))
    if order == "least":
        return least
    rest = [(int(l), int(h)) for l, h in np.argwhere(np.isnan(selection.scores))]
    ranked = [l * shape[1] + h for l, h in [*selection.ranking, *rest]]
    out = np.zeros((len(least), shape[0] * shape[1]), bool)
    for mask, n in zip(out, least.sum((1, 2))):
        mask[ranked[: int(n)]] = True
    return out.reshape(least.shape)


def cost(
    cfg: ModelConfig,
    workload: Workload,
    *,
    sizes: int = 12,
    orders: int = 1,
    n_random: int = DRAWS,
    kind: Kind = "mean",
    n_mean: int = N_PROMPTS,
    steps: int = 1,
) -> Cost:
    """Predicted. sizes: sets per curve beyond the empty one. steps: how many steps have rankings of their own, 1 if pooled."""
    ordered = orders * (sizes - 1)  # and all heads, one set for every order
    reported = workload.reported(fewest=2)
    if steps == 1:
        curves = runs_cost(cfg, workload, ordered + 1, kind=kind, n_mean=n_mean)
        return curves + runs_cost(cfg, reported, n_random, started=True)
    curves = runs_cost(cfg, workload, 1, kind=kind, n_mean=n_mean, apart=ordered, parts=steps)
    return curves + runs_cost(cfg, reported, 0, apart=n_random, parts=steps, started=True)


def authors_cost(cfg: ModelConfig, workload: Workload, *, sizes: int = 24, orders: int = 1) -> Cost:
    """Theirs: a full forward for each set, step and example, the clean run, and half as many prompts for the mean again
    (docs/protocol.md, Cost, E5). sizes: sets of one curve; 24 where they remove by decision or copy scores, up to 10 by
    induction scores."""
    return forwards_cost(cfg, workload, workload.cells * (sizes * orders + 1.5))


ANALYSIS = Description(
    KnockOutCurve,
    knock_out_curve,
    cost=lambda cfg, w: cost(cfg, w, orders=2),
    authors=lambda cfg, w: authors_cost(cfg, w, orders=2),
    needs=("patch_steps",),
    claims=("shared_heads",),
    how=lambda given, progress: given.call(
        knock_out_curve, progress, given.selection("patch_steps", None), order=("least", "most")
    ),
)
