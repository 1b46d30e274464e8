"""What sets of heads do alone, all others ablated (docs/protocol.md, E6)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

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
from pycotmech.cot.tools.cells import Cells, choose
from pycotmech.cot.tools.cost import Cost, Workload, forwards_cost, metered
from pycotmech.cot.tools.head_sets import HeadSet, Scores, set_combinations
from pycotmech.cot.tools.means import N_PROMPTS
from pycotmech.cot.tools.registry import COMPARED, Description, Given
from pycotmech.cot.tools.result import Progress, columns, counting, headline, in_words
from pycotmech.cot.tools.set_words import set_words
from pycotmech.figures.words import wrapped
from pycotmech.model.arguments import check_common
from pycotmech.model.config import ModelConfig
from pycotmech.stats import bootstrap
from pycotmech.stats.draws import layer_matched
from pycotmech.stats.random_sets import DRAWS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.model import Model

Sets = Mapping[str, Any]
"""Name -> a set of heads (anything `HeadSet.of` takes), or a mapping from step to such sets."""


class KeptSets(AblationResult):
    """Sets of heads that are kept, everything else ablated.

    data, over set, example and step: `right`, `agrees`, `log_prob` as in `KnockOutCurve`; `random` [set, draw, example, step]:
    right (or agrees) for random sets with as many heads in each layer; `kept` [set, step] heads kept; `mask` [set, step, layer,
    head] which.
    """

    name, title = "keep_only", "What sets of heads do alone"
    source = "E6"
    axis: ClassVar[str] = "set"
    ranges: ClassVar = dict.fromkeys(("right", "agrees", "random"), bootstrap.SHARE)

    def beside_random(self, *, overall: bool = False) -> dict[str, xr.Dataset] | None:
        """Accuracies of random sets ("random") and by how much each set is above its own ("gain"): mean, low, high, n.

        On the axes set and step (overall: over all steps, [set]). The intervals are over examples and random sets, and hold
        what one further random set gives (`pycotmech.stats.random_sets`). None if no random sets were tried.
        """
        if "random" not in self.data:
            return None
        pair = self.data[self.main], self.data["random"]
        return compared(*(x.mean("step") for x in pair)) if overall else compared(*pair)

    def table(self) -> pd.DataFrame:
        """Accuracy by set and step, "all" for all steps: set, in_words (what it is called), step, kind, kept, accuracy, low,
        high, n; random, of random sets with as many heads in each layer; gain, by how much the set is above them; both with
        name_low and name_high, which hold what one further random set gives."""
        import pandas as pd

        found = [(self.accuracy(), self.beside_random()), (self.overall(), self.beside_random(overall=True))]
        steps, kinds, rows = self.data["step"].values.tolist(), self.data["kind"].values.tolist(), []
        words = self.names_in_words()
        for i, name in enumerate(self.data[self.axis].values):
            kept = self.data["kept"].isel({self.axis: i})
            for s, step in enumerate([*steps, "all"]):
                last = step == "all"
                at = {self.axis: i} if last else {self.axis: i, "step": s}
                accuracy, comparison = found[last]
                here = accuracy.isel(at)
                row = {self.axis: name, "in_words": words[i], "step": step, "kind": "" if last else str(kinds[s])}
                row |= {"kept": int(round(float(kept.mean())) if last else kept[s]), **headline("accuracy", here)}
                row["n"] = int(here["n"])
                for other in ("random", "gain"):
                    row |= columns(other, here.where(False) if comparison is None else comparison[other].isel(at))
                rows.append(row)
        return pd.DataFrame(rows)

    def plot(self, *, path: str | PathLike | None = None) -> Figure:
        """Accuracy of each set at each step, and over all steps with its interval."""
        from pycotmech.cot.analyses.keep_only_figure import isolation_figure

        overall, comparison = self.overall(), self.beside_random(overall=True)
        examples = plural(int(overall["n"].max()), "example")
        return isolation_figure(
            self.accuracy()["mean"].transpose(self.axis, "step").values,
            (overall["mean"].values, overall["low"].values, overall["high"].values),
            None if comparison is None else tuple(comparison["random"][k].values for k in ("mean", "low", "high")),
            labels=self._labels(),
            steps=[f"{s}\n{str(k)[0].upper()}" for s, k in zip(self.data["step"].values, self.data["kind"].values)],
            title=f"{self.about['model']}: {self.title.lower()}",
            lines=[
                f"{examples}; bars: 95 % intervals over examples, of random sets (as many heads in each layer) over sets too",
                f"accuracy: {self.accuracy_words}",
                f"other heads replaced by {self.about['settings']['replaced_by']}",
                *self.about["notes"],
            ],
            path=path,
        )

    def names_in_words(self) -> list[str]:
        """What each set along the axis is called in sentences and figures."""
        return set_words(self.data["set"].values.tolist())

    def _labels(self) -> list[str]:
        sizes = [spanned(kept, "–") for kept in self.data["kept"].values]
        return [f"{wrapped(name)}\n({n} of {self._n_heads})" for name, n in zip(self.names_in_words(), sizes)]

    @property
    def _n_heads(self) -> int:
        return self.data.sizes["layer"] * self.data.sizes["head"]

    def findings(self) -> list[str]:
        """For each set, over all steps: what is left of the accuracy, and with random sets of the same layers."""
        lines = []
        for row in self.table().to_dict("records"):
            if row["step"] != "all":
                continue
            random, name = "", row[self.axis]
            if np.isfinite(row["random"]):
                random = f"; {random_words(self.about['settings']['n_random'])} {in_words(row, 'random')}"
                random += f" (difference {in_words(row, 'gain', '{:+.2f}')})"
            size = spanned(self.data["kept"].sel({self.axis: name}).values)
            lines.append(
                f"{row['in_words']}: {size} of {self._n_heads} heads kept, accuracy {in_words(row, 'accuracy', main=True)} "
                f"over all steps of {plural(row['n'], 'example')}{random}"
            )
        return [*lines, *self.closing()]

    def closing(self) -> list[str]:
        """What the sets were chosen on, what accuracy is, and what replaces the other heads."""
        s = self.about["settings"]
        reused, others = plural(s["reused"], "example was", "examples were"), plural(s.get("others", 0), "other example")
        return [
            *([f"{reused} also used to choose the sets: the accuracies are optimistic"] if s["reused"] else []),
            *([f"the sets were chosen on {others}, none of these"] if s.get("others") and not s["reused"] else []),
            f"accuracy is {self.accuracy_words}",
            f"all other heads are replaced by {s['replaced_by']}",
        ]


def spanned(numbers: NDArray, to: str = " to ") -> str:
    """The smallest and the largest of some numbers: "3 to 5", or "3"."""
    low, high = int(numbers.min()), int(numbers.max())
    return f"{low}" if low == high else f"{low}{to}{high}"


def keep_only(
    model: Model,
    examples: Examples,
    sets: Sets,
    *,
    steps: Sequence[int] | None = None,
    right: Graded | Tensor | None = None,
    n_random: int = DRAWS,
    kind: Kind = "mean",
    mean: Mean = None,
    n_mean: int = N_PROMPTS,
    positions: Positions = "all",
    definition: Literal["exact", "paper"] = "exact",
    seed: int = 0,
    memory_gb: float | None = None,
    progress: Progress | None = None,
) -> KeptSets:
    """Keeps sets of heads and ablates all others.

    sets: by name: a `HeadSet`, a bool array [L, H] or (layer, head) pairs; or a mapping from step to such sets, for sets that
        differ by step. `set_combinations` makes the paper's five from three; `union` and `intersection` those over steps.
    n_random: how many random sets are run beside each set, each with as many heads in each layer.
    Everything else as in `knock_out_curve`; definition "paper": accuracy is agreement with the untouched model.
    Returns `KeptSets`. Raises TypeError or ValueError naming the argument, before anything is run.
    Cost: for each different set, the random ones included, one pass of the shared block and of each example's solution.
    Source: docs/protocol.md, E6.
    """
    check_common(model, seed=seed, memory_gb=memory_gb)
    if not isinstance(sets, Mapping) or not sets:
        raise TypeError(f"sets: got {type(sets).__name__}; expected a mapping from names to sets of heads, at least one")
    main = check_definition(definition, n_random)
    shape = (model.cfg.n_layers, model.cfg.n_heads)
    with metered(model) as meter:
        given = {str(name): by_step(s, shape, f"sets[{name!r}]") for name, s in sets.items()}
        cells = choose(model, examples, steps=steps, right=right)
        kept = np.stack([stacked(s, cells.steps, f"sets[{name!r}]") for name, s in given.items()])  # [set, step, L, H]
        rng = np.random.default_rng(seed)
        chance = [np.stack([layer_matched(masks, rng) for masks in kept]) for _ in range(n_random)]
        run = ablated_steps(
            model, cells, kind=kind, mean=mean, n_mean=n_mean, positions=positions, seed=seed, memory_gb=memory_gb
        )
        tick = counting(progress, len(kept) * (1 + n_random))
        found, *others = (answered(run.answer, ~masks, cells, tick) for masks in (kept, *chance))
    data = kept_data("set", kept, [o[main] for o in others])
    settings = dict(accuracy=main, n_random=n_random, seed=seed, **chosen_on(given.values(), cells), **run.settings)
    dataset = result_data(cells, found, {"set": list(given)}, data, shape)
    return KeptSets.made(model, cells, dataset, None, definition, settings, meter)


def by_step(given: Any, shape: tuple[int, int], argument: str) -> HeadSet | dict[int, HeadSet]:
    """A set for all steps, or one for each of some."""
    if isinstance(given, Mapping):
        return {int(step): HeadSet.of(s, shape, argument=f"{argument}[{step}]") for step, s in given.items()}
    return HeadSet.of(given, shape, argument=argument)


def stacked(given: HeadSet | dict[int, HeadSet], steps: Sequence[int], argument: str) -> NDArray[np.bool_]:
    """The set of each step: [step, L, H]."""
    if isinstance(given, HeadSet):
        return np.stack([given.mask] * len(steps))
    missing = [s for s in steps if s not in given]
    if missing:
        raise ValueError(f"{argument}: has no set for step {missing[0]}; expected one for each of steps {list(steps)}")
    return np.stack([given[s].mask for s in steps])


def chosen_on(given: Iterable[HeadSet | dict[int, HeadSet]], cells: Cells, scores: Scores | None = None) -> dict[str, int]:
    """How many of the examples were used to choose the sets, or gave the scores by which heads are removed from them, and
    how many other examples did; as far as is known."""
    chosen = {e for g in given for s in (g.values() if isinstance(g, dict) else [g]) for e in s.chosen_on}
    if scores is not None and scores.labelled and scores.examples is not None:
        chosen |= {scores.examples[i] for i in scores.scored}
    reused = sum(example.index in chosen for example in cells.examples)
    return {"reused": reused, "others": len(chosen) - reused}


def kept_data(axis: str, kept: NDArray, chance: Sequence[NDArray]) -> dict[str, Any]:
    """The variables besides the answers: sets that were kept [axis, step, L, H], and accuracies of each draw of
    random ones [axis, example, step]."""
    data: dict[str, Any] = {"random": ((axis, "draw", "example", "step"), np.stack(chance, 1))} if len(chance) else {}
    data["kept"] = ((axis, "step"), kept.sum((-2, -1)))
    return data | {"mask": ((axis, "step", "layer", "head"), kept)}


def cost(
    cfg: ModelConfig,
    workload: Workload,
    *,
    sets: int = 5,
    n_random: int = DRAWS,
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
    return forwards_cost(cfg, workload, workload.cells * mains * (sets + 1.5))


def _of_paper(given: Given, progress: Progress | None) -> KeptSets:
    """The sets that each score chooses on one half of the examples, and their combinations, on the other half."""
    sets = {name: selection[0] for name, selection in given.sets(choosing=True).items()}
    main, *others = sets.values()
    combined = set_combinations(main, others, shape=(given.model.cfg.n_layers, given.model.cfg.n_heads))
    kept = {name: s for name, s in (sets | combined).items() if len(s)}
    return given.reporting().call(keep_only, progress, kept, n_random=_DRAWS)


_DRAWS = 4
"""Random sets beside each of the whole paper's run: fewer than by default, for no claim rests on them."""

ANALYSIS = Description(
    KeptSets,
    keep_only,
    cost=lambda cfg, w: cost(cfg, w.reported(), sets=8, n_random=_DRAWS),
    authors=lambda cfg, w: authors_cost(cfg, w.reported()),
    needs=COMPARED,
    how=_of_paper,
)
