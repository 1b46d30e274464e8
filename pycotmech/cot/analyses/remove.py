"""What a set of heads does without some of its members (docs/protocol.md, E6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pycotmech._choices import check_choice
from pycotmech._words import plural
from pycotmech.cot.analyses.keep_only import KeptSets, by_step, chosen_on, cost, kept_data, spanned, stacked
from pycotmech.cot.analyses.keep_only import authors_cost as authors_cost_of_sets
from pycotmech.cot.task.examples import Examples
from pycotmech.cot.task.steps import Graded
from pycotmech.cot.tools.ablation import Kind, Mean, Positions, ablated_steps
from pycotmech.cot.tools.ablation_results import VARIABLES, answered, check_definition, result_data, words
from pycotmech.cot.tools.cells import choose
from pycotmech.cot.tools.cost import metered
from pycotmech.cot.tools.head_sets import Head, scores_of
from pycotmech.cot.tools.means import N_PROMPTS
from pycotmech.cot.tools.registry import Description, Given
from pycotmech.cot.tools.result import Progress, counting
from pycotmech.cot.tools.select_heads import select_heads
from pycotmech.cot.tools.set_words import score_words
from pycotmech.model.arguments import check_common
from pycotmech.stats import bootstrap
from pycotmech.stats.draws import layer_matched
from pycotmech.stats.random_sets import DRAWS

if TYPE_CHECKING:
    from pycotmech.model import Model


class Removal(KeptSets):
    """A set of heads from which more and more are taken, those with the best scores of another kind first.

    data as in `KeptSets` with the axis size for set: `removed` [size] heads that are taken (definition "paper": members of
    the set or not; `kept` is what stays of it); `random` for as many taken at random in each layer.
    """

    name, title = "remove", "What a set of heads does without some of its members"
    source = "E6"
    axis: ClassVar[str] = "size"

    def names_in_words(self) -> list[str]:
        """How many heads are taken out of the set, along the axis."""
        return [f"{n} taken" for n in self.data["removed"].values]

    def _labels(self) -> list[str]:
        return self.names_in_words()

    def _taken(self) -> str:
        """Which heads are taken, in words."""
        s = self.about["settings"]
        of_all = "" if self.about["definition"] == "exact" else " of all heads"
        return f"with the {'highest' if s['order'] == 'most' else 'lowest'} scores{of_all} ({score_words(s['scores'])})"

    def findings(self) -> list[str]:
        """Accuracy over all steps at the beginning and with fewer heads, with random removal for comparison."""
        overall, removed = self.overall(), self.data["removed"].values
        s = self.about["settings"]
        start = overall.isel(size=0)
        of = plural(int(start["n"]), "example")
        n = spanned(self.data["kept"].isel(size=0).values)
        lines = [f"{s['within']} ({n} heads) alone: accuracy {words(start)} over all steps of {of}"]
        chance = self.beside_random(overall=True)
        for k in range(1, len(removed)):
            comparison = ""
            if chance is not None:
                random, gain = (chance[name].isel(size=k) for name in ("random", "gain"))
                times = "once" if s["n_random"] == 1 else f"{s['n_random']} times"
                comparison = f"; as many taken at random in the same layers ({times}): {words(random)}, "
                comparison += f"difference {words(gain, '{:+.2f}')}"
            lines.append(f"without the {removed[k]} {self._taken()}: {words(overall.isel(size=k))}{comparison}")
        if s["stopped"]:
            lines.append(f"stopped there: the accuracy of every step is below {s['stop']:g}")
        return [*lines, *self.closing()]


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
    n_random: int = DRAWS,
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
    n_random: how often as many heads are taken at random beside each size, from the same layers.
    Everything else as in `keep_only`.
    Returns a `Removal`. Raises TypeError or ValueError naming the argument, before anything is run.
    Cost: as `keep_only`, for each size.
    Source: docs/protocol.md, E6, removal.
    """
    check_common(model, seed=seed, memory_gb=memory_gb)
    check_choice("order", order, ("most", "least"))
    if not 0 <= stop <= 1:
        raise ValueError(f"stop: got {stop}; expected an accuracy, 0 to 1")
    main = check_definition(definition, n_random)
    shape = (model.cfg.n_layers, model.cfg.n_heads)
    table = scores_of(scores, variable).checked(shape)
    given = by_step(within, shape, "within")
    with metered(model) as meter:
        cells = choose(model, examples, steps=steps, right=right)
        base = stacked(given, cells.steps, "within")  # [step, L, H]
        ranked = list(select_heads(table, k=0).ranking)[:: 1 if order == "most" else -1]
        members = definition == "exact"
        pool = base if members else np.ones_like(base)
        taken = _sizes(sizes, int(base.sum((1, 2)).min()), None if members else len(ranked))
        gone = np.stack([_first(pool, ranked, n) for n in taken])  # [size, step, L, H]
        kept = base & ~gone
        rng = np.random.default_rng(seed)
        run = ablated_steps(
            model, cells, kind=kind, mean=mean, n_mean=n_mean, positions=positions, seed=seed, memory_gb=memory_gb
        )
        tick = counting(progress, len(taken) * (1 + n_random))
        found, others, stopped = [], [], False
        for masks, without in zip(kept, gone):
            drawn = [base & ~layer_matched(without, rng, within=pool) for _ in range(n_random)]
            here = [answered(run.answer, ~mask[None], cells, tick) for mask in (masks, *drawn)]
            found.append(here[0])
            others.append([answers[main] for answers in here[1:]])
            if bool((np.nan_to_num(bootstrap.mean_interval(here[0][main][0]).mean) < stop).all()):
                stopped = True
                break
    n = len(found)
    joined = {v: np.concatenate([f[v] for f in found]) for v in VARIABLES}
    chance = [np.concatenate([o[i] for o in others]) for i in range(n_random)]
    data = kept_data("size", kept[:n], chance) | {"removed": ("size", taken[:n])}
    settings = dict(
        within=name, scores=table.name, order=order, stop=stop, stopped=stopped, accuracy=main, n_random=n_random,
        seed=seed, **chosen_on([given], cells, table), **run.settings,
    )  # fmt: skip
    dataset = result_data(cells, joined, {"size": list(range(n))}, data, shape)
    return Removal.made(model, cells, dataset, None, definition, settings, meter)


def _sizes(sizes: Sequence[int] | None, least: int, ranked: int | None) -> list[int]:
    """How many heads are taken. least: the size of the (smallest) set; ranked: of all heads with a score, if they count."""
    if sizes is None:
        return sorted({round(least / 2 * i / 10) for i in range(11)})
    out = sorted({0, *(int(s) for s in sizes)})
    most, what = (least, "the size of the set") if ranked is None else (ranked, "the number of heads with a score")
    if out[0] < 0 or out[-1] > most:
        raise ValueError(f"sizes: got {list(sizes)}; expected numbers in 0..{most}, {what}")
    return out


def _first(pool: NDArray, ranked: Sequence[Head], n: int) -> NDArray[np.bool_]:
    """Of each set [step, L, H] the first n heads in the ranking; unranked heads are never among them."""
    out = np.zeros_like(pool)
    for mask, heads in zip(out, pool):
        for head in [head for head in ranked if heads[head]][:n]:
            mask[head] = True
    return out


_SIZES = 3
"""Sizes of the whole paper's run: fewer than by default."""
_DRAWS = 4
"""Random removals of each of them: fewer than by default too, for no claim rests on them."""


def _of_paper(given: Given, progress: Progress | None) -> Removal:
    """The heads that patching puts first, without those that copy, both chosen on one half of the examples."""
    within = given.sets(("patch_steps",), choosing=True)["patch_steps"][0]
    scores = scores_of(given.done["copy_heads"], "copying").of(given.choosing)
    sizes = [round(len(within) / 2 * i / _SIZES) for i in range(1, _SIZES + 1)]
    name = "the heads that patching puts first"
    return given.reporting().call(remove, progress, within, scores, sizes=sizes, n_random=_DRAWS, name=name)


ANALYSIS = Description(
    Removal,
    remove,
    cost=lambda cfg, w: cost(cfg, w.reported(), sets=_SIZES, n_random=_DRAWS),
    authors=lambda cfg, w: authors_cost_of_sets(cfg, w.reported(), sets=_SIZES, mains=1),
    needs=("patch_steps", "copy_heads"),
    how=_of_paper,
)
