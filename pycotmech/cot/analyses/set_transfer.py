"""What the heads of one step do for the others (docs/protocol.md, E5, transfer)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pycotmech._choices import check_choice
from pycotmech._words import plural
from pycotmech.cot.analyses.head_overlap import head_overlap
from pycotmech.cot.task.examples import Examples
from pycotmech.cot.task.steps import Graded
from pycotmech.cot.tools.ablation import Kind, Mean, Positions, ablated_steps, runs_cost
from pycotmech.cot.tools.ablation_results import AblationResult, answered, check_definition, result_data
from pycotmech.cot.tools.cells import choose
from pycotmech.cot.tools.cost import Cost, Workload, metered
from pycotmech.cot.tools.head_sets import HeadSet, scores_of
from pycotmech.cot.tools.held_out import chosen_apart, in_half, named_halves
from pycotmech.cot.tools.means import N_PROMPTS
from pycotmech.cot.tools.registry import Description, Given
from pycotmech.cot.tools.result import Progress, columns, counting, headline, in_words
from pycotmech.cot.tools.select_heads import Selection, select_heads
from pycotmech.model.arguments import check_common
from pycotmech.model.config import ModelConfig
from pycotmech.stats import bootstrap
from pycotmech.stats.averages import nanmean
from pycotmech.stats.draws import relabelled
from pycotmech.stats.random_sets import DRAWS, beyond_draws, without_strata

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.model import Model

Pairs = Literal["own step", "same kind", "other kinds"]
PAIRS: tuple[Pairs, ...] = ("own step", "same kind", "other kinds")
_OVERLAPS = ("intersection", "f1", "chance", "chance_by_layer", "p_by_layer_holm")


class SetTransfer(AblationResult):
    """The heads of each step kept alone, and which steps stay right.

    data, over chosen (the step whose heads are kept), example and step (which is evaluated): `right`, `agrees`, `log_prob` as
    in `KnockOutCurve`; the examples are those that are reported on. `kept` [chosen, layer, head] which heads these are.
    Of random sets, where they were tried: `random` [draw, example, step], their accuracy (right or agrees). In each `round`
    [draw] the heads of every layer change places at random, the same for a few of the steps' sets: `matched` [draw] is the step
    whose set it was, `random_kept` [draw, layer, head] what became of it. So random sets have as many heads in each layer as
    the chosen ones, and share as many.
    Over chosen and other, from `HeadOverlap`: `intersection` and `f1` of two steps' sets, `chance` and `chance_by_layer`,
    `p_by_layer_holm`. Coordinate `chosen_kind` of each chosen step.
    """

    name, title = "set_transfer", "What the heads of one step do for the others"
    source = "E5, transfer"
    ranges: ClassVar = dict.fromkeys(("right", "agrees", "random", "f1"), bootstrap.SHARE)

    def transfer(self, pairs: Pairs = "other kinds") -> dict[str, bootstrap.Interval]:
        """Accuracy over pairs of a chosen step and a step that is evaluated, each a single number with its interval.

        pairs: "own step"; "same kind": another step of the same kind; "other kinds": a step of another kind.
        Returns "accuracy", the mean over chosen steps of the mean over the steps they are paired with, over examples; "random",
        the same of the random sets; "gain", by how much the sets are above them. The intervals of the last two are over
        examples and rounds of random sets, and hold what one further round gives (`pycotmech.stats.random_sets`). All are NaN
        without such pairs.
        """
        own, paired = self.by_example(pairs), self._paired(pairs)
        drawn, lost = self._rounds(paired) if "random" in self.data else (np.full((len(own), 1), np.nan), 1)
        return {
            "accuracy": bootstrap.mean_interval(own, within=bootstrap.SHARE),
            "random": beyond_draws(drawn, within=bootstrap.SHARE, lost=lost),
            "gain": beyond_draws(own[:, None] - drawn, within=bootstrap.SHARES_APART, lost=lost),
        }

    def by_example(self, pairs: Pairs = "other kinds") -> NDArray[np.float64]:
        """The accuracy over such pairs of each example, [example]; NaN where it has none."""
        check_choice("pairs", pairs, PAIRS)
        values = self.data[self.main].transpose("chosen", "example", "step").values
        return nanmean(_over_steps(values, self._paired(pairs)))

    def _rounds(self, paired: NDArray[np.bool_]) -> tuple[NDArray[np.float64], int]:
        """The accuracy over pairs of the random sets, [example, round], and the number of groups of steps they are of: of the
        groups that have such pairs."""
        names = self.data["chosen"].values.tolist()
        rows = [names.index(step) for step in self.data["matched"].values]
        by_set = _over_steps(self.data["random"].transpose("draw", "example", "step").values, paired[rows])
        of_round = self.data["round"].values
        of_group = np.array([int(paired[group].any(1).sum()) for group in _groups(len(names))])  # sets that have a pair
        strata = np.arange(of_round.max() + 1) % len(of_group)
        rounds = np.flatnonzero(of_group[strata])
        if not len(rounds):
            return np.full((by_set.shape[1], 1), np.nan), 1
        by_round = np.stack([nanmean(by_set[of_round == r]) for r in rounds], 1)
        return without_strata(by_round, strata[rounds], of_group), len(set(strata[rounds].tolist()))

    def _paired(self, pairs: Pairs) -> NDArray[np.bool_]:
        """Which steps are evaluated for each chosen one: [chosen, step]."""
        own = self.data["chosen"].values[:, None] == self.data["step"].values
        alike = self.data["chosen_kind"].values[:, None] == self.data["kind"].values
        return {"own step": own, "same kind": alike & ~own, "other kinds": ~alike}[pairs]

    def table(self) -> pd.DataFrame:
        """A row for each chosen step and step that is evaluated: chosen, chosen_kind, step, kind, accuracy, low, high, n; and
        of the two steps' sets intersection, f1, chance, chance_by_layer, p_by_layer_holm."""
        import pandas as pd

        found, rows = self.accuracy(), []
        for i, chosen in enumerate(self.data["chosen"].values.tolist()):
            for j, step in enumerate(self.data["step"].values.tolist()):
                here = found.isel(chosen=i, step=j)
                row: dict[str, Any] = {"chosen": chosen, "chosen_kind": str(self.data["chosen_kind"].values[i])}
                row |= {
                    "step": step,
                    "kind": str(self.data["kind"].values[j]),
                    **headline("accuracy", here),
                    "n": int(here["n"]),
                }
                known = step in self.data["other"].values
                rows.append(
                    row | {k: float(self.data[k].isel(chosen=i).sel(other=step)) if known else np.nan for k in _OVERLAPS}
                )
        return pd.DataFrame(rows)

    def transfer_table(self) -> pd.DataFrame:
        """A row for each of "own step", "same kind" and "other kinds": pairs, accuracy, low, high, n, random and gain with
        their intervals."""
        import pandas as pd

        rows = []
        for pairs in PAIRS:
            found = {k: x._asdict() for k, x in self.transfer(pairs).items()}
            row: dict[str, Any] = {"pairs": pairs, **headline("accuracy", found["accuracy"]), "n": int(found["accuracy"]["n"])}
            rows.append(row | columns("random", found["random"]) | columns("gain", found["gain"]))
        return pd.DataFrame(rows)

    def plot(self, *, path: str | PathLike | None = None) -> Figure:
        """Accuracy of each step's heads at each step, and over its own, like and other steps beside random sets."""
        from pycotmech.cot.analyses.set_transfer_figure import transfer_figure

        s, tried = self.about["settings"], "random" in self.data
        drawn = self.data["random"].mean(("draw", "example")).values if tried else None
        return transfer_figure(
            self.accuracy()["mean"].transpose("chosen", "step").values,
            drawn,
            self.transfer_table().to_dict("records"),
            chosen=[f"{n} {k}" for n, k in zip(self.data["chosen"].values, self.data["chosen_kind"].values)],
            steps=self.step_ticks(),
            title=f"{self.about['model']}: {self.title[0].lower()}{self.title[1:]}",
            lines=[
                f"{s['k']} of {self.data.sizes['layer'] * self.data.sizes['head']} heads of each step, by {s['ranked_on']}",
                f"accuracy: {self.accuracy_words}; bars: 95 % intervals over examples, of random sets over sets too",
                f"other heads replaced by {s['replaced_by']}",
                *self.about["notes"],
            ],
            path=path,
        )

    def findings(self) -> list[str]:
        """What the heads of a step keep right of the steps of other kinds, of its own and of like ones; where they do worst;
        and how many heads the steps' sets share."""
        s, n_heads = self.about["settings"], self.data.sizes["layer"] * self.data.sizes["head"]
        where = "held-out examples" if s["held_out"] else "the examples they were chosen on"
        by_pairs = {row["pairs"]: row for row in self.transfer_table().to_dict("records")}
        other, lines = by_pairs["other kinds"], []
        if other["n"]:
            random = f"; {exchanged_words(s['n_random'])} {in_words(other, 'random')}" if np.isfinite(other["random"]) else ""
            random += f" (difference {in_words(other, 'gain', '{:+.2f}')})" if np.isfinite(other["gain_low"]) else ""
            lines.append(
                f"the {s['k']} of {n_heads} heads of one step keep steps of other kinds with accuracy "
                f"{in_words(other, 'accuracy', main=True)}, on {plural(other['n'], 'example')} ({where}){random}"
            )
        for pairs, words in (("own step", "their own step"), ("same kind", "other steps of the same kind")):
            if (row := by_pairs[pairs])["n"]:
                lines.append(f"they keep {words} with accuracy {in_words(row, 'accuracy', main=True)}")
        lines += [*self._weakest(), *self._overlap()]
        missing = [str(n) for n in self.data["step"].values if n not in self.data["chosen"].values]
        if missing:
            lines.append(
                f"no heads were chosen for step {', '.join(missing)}: none of the examples to choose on has a score there"
            )
        return [*lines, f"accuracy is {self.accuracy_words}", f"all other heads are replaced by {s['replaced_by']}"]

    def _weakest(self) -> list[str]:
        """The pair of steps of different kinds with the lowest accuracy."""
        rows = [r for r in self.table().to_dict("records") if r["kind"] != r["chosen_kind"] and np.isfinite(r["accuracy"])]
        if not rows:
            return ["the steps are all of one kind, so that nothing is known of others"]
        least = min(rows, key=lambda row: row["accuracy"])
        return [
            f"worst: the heads of step {least['chosen']} ({least['chosen_kind']}) at step {least['step']} ({least['kind']}), "
            f"{in_words(least, 'accuracy', main=True)}"
        ]

    def _overlap(self) -> list[str]:
        """How many heads two steps' sets share, beside chance."""
        upper = np.triu_indices(self.data.sizes["chosen"], 1)
        if not len(upper[0]):
            return []
        shared, f1, uniform, matched, p = (self.data[k].transpose("chosen", "other").values[upper] for k in _OVERLAPS)
        return [
            f"two steps' sets share {shared.mean():.1f} heads on average (F1 {f1.mean():.2f}); by chance {matched.mean():.1f} "
            f"in the same layers, {uniform.mean():.1f} in any; {(p < 0.05).sum()} of {len(p)} pairs share more than by chance "
            "in the same layers (p < 0.05, Holm)"
        ]


def exchanged_words(n: int) -> str:
    """The random sets beside those of the steps, as a sentence has them before what they keep."""
    return f"with heads exchanged at random within their layers ({'once' if n == 1 else f'{n} times'})"


def _groups(n: int) -> list[NDArray[np.int64]]:
    """The sets that change together in one round, by number: up to three, which bounds its cost. Rounds take turns."""
    return np.array_split(np.arange(n), math.ceil(n / 3))


def _over_steps(values: NDArray, paired: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The mean over the steps that each set is paired with: values [set, example, step], paired [set, step].

    Returns [set, example].
    """
    return nanmean(np.moveaxis(np.where(paired[:, None], values, np.nan), -1, 0))


def set_transfer(
    model: Model,
    examples: Examples,
    scores: Any,
    *,
    k: int | None = None,
    variable: str | None = None,
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
) -> SetTransfer:
    """Chooses the heads of each step by its own scores, keeps them alone, and evaluates all steps.

    A set for all steps together may suffice because it holds a part for each of them. The heads of one step suffice for another
    only if the two share what they need.

    scores: what `select_heads` takes, with an axis step (then the k heads with the largest values at a step are its set), or a
        `Selection` of one set (then its rule is applied to each step).
    k: how many heads; None: a third of all.
    n_random: how many rounds of random sets are run. In each the heads of every layer change places at random, for up to three
        of the steps' sets; rounds take turns.
    definition: "exact": heads are chosen on one half of the examples and evaluated on the other, and accuracy is every token of
        the gold word. "paper": all examples are used for both, and accuracy is agreement with the untouched model.
    Everything else as in `knock_out_curve`.
    Returns a `SetTransfer`. Raises TypeError or ValueError naming the argument, before anything is run.
    Cost: for each step's set and each random one a pass of the shared block and of the solutions that are reported on.
    Source: docs/protocol.md, E5, transfer; the authors do not evaluate this.
    """
    check_common(model, seed=seed, memory_gb=memory_gb)
    main = check_definition(definition, n_random)
    shape = (model.cfg.n_layers, model.cfg.n_heads)
    selection = _selection(scores, variable, k, shape)
    with metered(model) as meter:
        cells = choose(model, examples, steps=steps, right=right)
        half = named_halves(cells.right.any(1).numpy(), definition, seed)
        selection, basis = chosen_apart(selection, examples, half)
        sets = _by_step(selection, cells.steps)
        rows = in_half(half, "report")
        kept = np.stack([s.mask for s in sets.values()])  # [chosen, L, H]
        groups, rng = _groups(len(kept)), np.random.default_rng(seed)
        rounds = [groups[r % len(groups)] for r in range(n_random)]
        drawn = [relabelled(kept[together], rng) for together in rounds]  # [sets of the round, L, H] each
        run = ablated_steps(
            model, cells, kind=kind, mean=mean, n_mean=n_mean, positions=positions, seed=seed, memory_gb=memory_gb
        )
        tick = counting(progress, len(kept) + sum(map(len, drawn)))
        found = answered(run.answer, ~kept[:, None], cells, tick, rows)
        random = answered(run.answer, ~np.concatenate(drawn)[:, None], cells, tick, rows)[main] if drawn else None
    cells, found = cells.only(rows), {v: values[:, rows] for v, values in found.items()}
    names = list(sets)
    data: dict[str, Any] = {"kept": (("chosen", "layer", "head"), kept)}
    data |= {name: (("chosen", "other"), value) for name, value in _overlaps(sets).items()}
    if random is not None:
        data["random"] = (("draw", "example", "step"), random[:, rows])
        data["random_kept"] = (("draw", "layer", "head"), np.concatenate(drawn))
        data["matched"] = ("draw", [names[i] for together in rounds for i in together])
        data["round"] = ("draw", [r for r, together in enumerate(rounds) for _ in together])
    dataset = result_data(cells, found, {"chosen": names}, data, shape)
    kinds = [examples.kinds[s] for s in names]
    dataset = dataset.assign_coords(other=names, chosen_kind=("chosen", kinds))
    settings = dict(
        k=int(kept[0].sum()), scores=selection.about, rule=selection.rule, ranked_on=basis, held_out="report" in half,
        n_random=n_random, accuracy=main, seed=seed, **run.settings,
    )  # fmt: skip
    words = "the heads with the best scores at one step are kept, all others are ablated, and all steps are evaluated"
    return SetTransfer.made(model, cells, dataset, None, words, settings, meter)


def _selection(scores: Any, variable: str | None, k: int | None, shape: tuple[int, int]) -> Selection:
    n = shape[0] * shape[1]
    if isinstance(scores, Selection):
        if k is not None or len(scores) != 1:
            got = f"k={k}" if k is not None else f"a Selection of {len(scores)} sets"
            raise ValueError(f"scores: got {got}; expected a Selection of one set and no k, or scores")
        selection = scores
    else:
        if k is not None and not 1 <= k <= n:
            raise ValueError(f"k: got {k}; expected a number of heads in 1..{n}")
        selection = select_heads(scores_of(scores, variable), k=max(1, n // 3) if k is None else k)
    if selection.scores.shape != shape:
        raise ValueError(f"scores: got heads {list(selection.scores.shape)}; the model has {list(shape)}")
    if selection.source is None or selection.source.steps is None:
        raise ValueError("scores: have no axis step; expected those of each step by itself")
    return selection


def _by_step(selection: Selection, steps: Sequence[int]) -> dict[int, HeadSet]:
    """The set of each step that has a score. Raises ValueError if none has."""
    source = selection.source
    assert source is not None and source.steps is not None
    scored = [s for s in steps if s in source.steps and len(source.at(s).scored)]
    if not scored:
        raise ValueError(f"scores: no head has a score at steps {list(steps)}; expected those of the steps that are evaluated")
    return {s: selection.at(s)[0] for s in scored}


def _overlaps(sets: Mapping[int, HeadSet]) -> dict[str, NDArray]:
    """`_OVERLAPS` of every two steps' sets, [chosen, other]; NaN with a single one."""
    if len(sets) == 1:
        return dict.fromkeys(_OVERLAPS, np.full((1, 1), np.nan))
    found = head_overlap({"step": sets}, draws=0).data
    return {name: found[name].values for name in _OVERLAPS}


def cost(
    cfg: ModelConfig,
    workload: Workload,
    *,
    sets: int | None = None,
    n_random: int = DRAWS,
    kind: Kind = "mean",
    n_mean: int = N_PROMPTS,
) -> Cost:
    """Predicted. sets: steps that have a set; None: as many as count in an example."""
    sets = sets or max(1, math.ceil(workload.cells / workload.examples))
    groups = _groups(sets)
    drawn = sum(len(groups[r % len(groups)]) for r in range(n_random))
    untouched = runs_cost(cfg, workload, 0, kind=kind, n_mean=n_mean)
    return untouched + runs_cost(cfg, workload.reported(fewest=2), sets + drawn, started=True)


def authors_cost(cfg: ModelConfig, workload: Workload) -> Cost:
    """Theirs: they do not evaluate this."""
    return Cost()


def _of_paper(given: Given, progress: Progress | None) -> SetTransfer:
    """As many heads as the curve leaves at its operating point over all steps, by the scores of the same patching."""
    points = given.done["knock_out_curve"].operating_points(order="least")
    kept = int(points[points["step"] == "all"]["kept"].iloc[0])
    return given.call(set_transfer, progress, given.selection("patch_steps", max(1, kept)))


ANALYSIS = Description(
    SetTransfer,
    set_transfer,
    cost=cost,
    authors=authors_cost,
    needs=("patch_steps", "knock_out_curve"),
    claims=("shared_heads",),
    order=1,
    how=_of_paper,
)
