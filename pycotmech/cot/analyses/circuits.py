"""Finds small sets of heads that do what the whole model does at a step, and measures how well (docs/protocol.md, E13)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pycotmech._choices import check_choice
from pycotmech._words import plural
from pycotmech.cot.analyses.patch_steps import PatchSteps, patch_steps
from pycotmech.cot.analyses.patch_steps import cost as patching_cost
from pycotmech.cot.task.examples import Examples
from pycotmech.cot.task.steps import Graded
from pycotmech.cot.tools.ablation import Kind, Mean, Positions
from pycotmech.cot.tools.cells import Cell, Cells, choose
from pycotmech.cot.tools.checks import between
from pycotmech.cot.tools.circuit_search import (
    Against,
    Head,
    KeptLogits,
    search,
)
from pycotmech.cot.tools.circuit_values import CircuitValues
from pycotmech.cot.tools.cost import Cost, Workload, metered, rows_cost
from pycotmech.cot.tools.means import N_PROMPTS, HeadMeans, head_means
from pycotmech.cot.tools.registry import Description, Given
from pycotmech.cot.tools.result import Analysis, Progress, counting
from pycotmech.model.arguments import check_common, check_integer
from pycotmech.model.config import ModelConfig
from pycotmech.patching.paths import path_patch
from pycotmech.stats import bootstrap

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.model import Model

MOST = 0.5
"""Largest share of all heads that a set may have to count as a circuit."""


class Circuits(Analysis):
    """A circuit for each step: a set C of heads, with all others ablated. F is the logit difference answer - other word.

    data:

    * `kept` [step, layer, head]: the circuit.
    * `full`, `circuit`, `empty` [example, step]: F of the whole model M, of C, and with no head kept.
    * `random` [draw, example, step]: F of layer-matched random sets.
    * `held_out` [example, step]: 1 if the example was not used to find the circuit, NaN if the step does not count.
    * `subset_heads` [subset, step, layer, head]: the subsets K by which completeness is measured. `circuit_without`,
      `full_without` [subset, example, step]: F(C less K) and F(M less K).
    * `minimality` [example, step, layer, head]: F(C less K and v) - F(C less K) for each head v of C, with a K of its own; NaN
      for all other heads.
    * `evaluations` [step]: number of sets that were run on the examples to choose on. `finished` [step]: 1 if no further head
      could be left out, 0 if the budget ended the search. `separate` [step]: 1 if the circuit was chosen on other examples.

    Everything that is reported comes from held-out examples.
    """

    name, title = "circuits", "Small sets of heads that do what the model does"
    source = "E13"
    label = "change of the logit difference without the head"

    def held(self, variable: str) -> xr.DataArray:
        """Returns a variable on the held-out examples: NaN for those that the circuit was chosen on."""
        return self.data[variable].where(self.data["held_out"] == 1)

    def faithfulness(self, of: str = "circuit") -> xr.Dataset:
        """(F(C) - F(no head)) / (F(M) - F(no head)), a ratio of means over held-out examples: 1 if the circuit does what the
        model does. mean, low, high, n [step]; of: "circuit", or "random" for each draw [draw, step]."""
        values = self.held(of).transpose("example", "step", ...)
        empty, full = (self._like(self.held(name), values) for name in ("empty", "full"))
        found = bootstrap.ratio_interval(values.values - empty, full - empty)
        first = values.isel(example=0, drop=True)
        return xr.Dataset({k: first.copy(data=v) for k, v in found._asdict().items()})

    def completeness(self) -> xr.Dataset:
        """Returns F(C less K) - F(M less K), near 0 for every K if C is complete: mean, low, high, n [subset, step]."""
        data = self.data.assign(gap=self.held("circuit_without") - self.held("full_without"))
        return type(self)(data, self.about).interval("gap")

    def minimality(self) -> xr.Dataset:
        """Returns what each head of the circuit changes: mean, low, high, n [step, layer, head]."""
        data = self.data.assign(minimality=self.held("minimality"))
        return type(self)(data, self.about).interval("minimality")

    @staticmethod
    def _like(values: xr.DataArray, other: xr.DataArray) -> NDArray:
        """values [example, step] with the trailing axes of other."""
        found = values.transpose("example", "step").values
        return found.reshape(*found.shape, *[1] * (other.ndim - 2))

    def shown(self) -> xr.Dataset:
        return self.minimality()

    def table(self) -> pd.DataFrame:
        """A row for each step that counts: step, kind, heads, of (all heads), share, low, high (`faithfulness`), n, held_out,
        full, circuit, empty (means of F), random (mean share of the random sets), p (share of random sets that come as near to
        F(M), this one counted in), gap (the largest |F(C less K) - F(M less K)| over F(M) - F(no head)), needed (heads whose
        minimality has an interval without 0), evaluations, finished, holds (`holds`)."""
        import pandas as pd

        share, chance = self.faithfulness(), self.faithfulness("random")
        complete, minimal = self.completeness(), self.minimality()
        means = {name: self.held(name).mean("example") for name in ("full", "circuit", "empty")}
        rows = []
        for i, step in enumerate(self.data["step"].values.tolist()):
            here = share.isel(step=i)
            if int(here["n"]) == 0:
                continue
            at = {name: float(value.isel(step=i)) for name, value in means.items()}
            size, sure = self.data["kept"].isel(step=i), minimal.isel(step=i)
            span = abs(at["full"] - at["empty"])
            row = {"step": step, "kind": str(self.data["kind"].values[i]), "heads": int(size.sum()), "of": int(size.size)}
            row |= {"share": float(here["mean"]), "low": float(here["low"]), "high": float(here["high"]), "n": int(here["n"])}
            row |= {"held_out": bool(self.data["separate"].values[i]), **at}
            row["random"] = float(chance["mean"].isel(step=i).mean())
            row["p"] = self._p(i)
            row["gap"] = float(np.abs(complete["mean"].isel(step=i)).max()) / span if span else np.nan
            row["needed"] = int(((sure["low"] > 0) | (sure["high"] < 0)).sum())
            row["evaluations"] = int(self.data["evaluations"].values[i])
            row["finished"] = bool(self.data["finished"].values[i])
            rows.append(row | {"holds": self.holds(step)})
        return pd.DataFrame(rows)

    def _p(self, i: int) -> float:
        """Returns how often a layer-matched random set comes as near to F(M), with the circuit itself counted in."""
        full, circuit = (float(self.held(name).isel(step=i).mean()) for name in ("full", "circuit"))
        random = self.held("random").isel(step=i).mean("example").values
        return float((1 + (np.abs(random - full) <= abs(circuit - full) + 1e-9).sum()) / (1 + len(random)))

    def why_not(self, step: int) -> str:
        """Returns why there is no small faithful circuit at a step; an empty string if there is one.

        There is one if attention matters at the step, the set has at most half of all heads, its share on examples that were
        held out is within twice the tolerance of 1, and at most one in 20 layer-matched random sets comes as near.
        """
        i = self.data["step"].values.tolist().index(step)
        here, kept = self.faithfulness().isel(step=i), self.data["kept"].isel(step=i)
        matters = (self.held("full") - self.held("empty")).isel(step=i)
        spread = bootstrap.mean_interval(matters.values)
        if int(spread.n) < 2:
            return "one example has no interval"
        if not (float(spread.low) > 0 or float(spread.high) < 0):
            return "whether heads matter at all is open: the interval of F(M) - F(no head) contains 0"
        if int(kept.sum()) > MOST * kept.size:
            return f"it takes {int(kept.sum())} of {kept.size} heads"
        allowed = 2 * self.about["settings"]["tolerance"]
        if not abs(float(here["mean"]) - 1) <= allowed:
            return f"on held-out examples it does {float(here['mean']):.2f} of what the model does"
        p = self._p(i)
        if p > 0.05:
            return f"{p:.0%} of random sets with as many heads in each layer do as well"
        if not self.data["separate"].values[i]:
            return f"it was chosen on the examples that it is reported on, and fewer than {bootstrap.HALVED} hold out none"
        return ""

    def holds(self, step: int) -> bool:
        """Whether there is a small faithful circuit at a step: `why_not` finds nothing against it."""
        return not self.why_not(step)

    def plot(self, *, path: str | PathLike | None = None) -> Figure:
        """Faithfulness by step beside random sets; F(C less K) against F(M less K) for all subsets."""
        from pycotmech.cot.analyses.circuits_figure import circuits_figure

        return circuits_figure(
            self.faithfulness(),
            self.faithfulness("random")["mean"],
            self.held("full_without").mean("example"),
            self.held("circuit_without").mean("example"),
            ticks=[f"{t}\n{int(k.sum())}" for t, k in zip(self.step_ticks(), self.data["kept"].values)],
            title=f"{self.about['model']}: {self.title.lower()}",
            lines=self.small_print("circuit", "below each step the number of heads; "),
            path=path,
        )

    def figures(self) -> Mapping[str, Callable[..., Figure]]:
        return {"heads": self.plot_heads}

    def plot_heads(self, *, path: str | PathLike | None = None) -> Figure:
        """The heads of each circuit, coloured by what each changes (minimality) over F(M) - F(no head); others are grey."""
        from pycotmech.figures.heatmap import maps_figure

        found = self.minimality()["mean"]
        span = abs((self.held("full") - self.held("empty")).mean("example"))
        share = (-found / span.where(span > 0)).transpose("step", "layer", "head")
        shown = [i for i in range(share.sizes["step"]) if bool(self.data["kept"].isel(step=i).any())]
        kinds, steps = self.data["kind"].values, self.data["step"].values
        return maps_figure(
            [share.values[i] for i in shown],
            [f"{steps[i]} {kinds[i]}\n{plural(int(self.data['kept'].values[i].sum()), 'head')}" for i in shown],
            title=f"{self.about['model']}: heads of the circuits",
            lines=self.small_print("circuit", "grey: not in the circuit; "),
            label="what is lost without the head\n(share of F(M) - F(no head))",
            path=path,
        )

    def findings(self) -> list[str]:
        """For each step the circuit's size and its three criteria, beside random sets; or why there is none."""
        lines = []
        for row in self.table().to_dict("records"):
            inside = bootstrap.ends(row["low"], row["high"], "{:.2f}")
            over = f"n = {row['n']}{' held out' if row['held_out'] else ', chosen on the same examples'}"
            text = f"step {row['step']} ({row['kind']}, {over}): {row['heads']} of {row['of']} heads"
            why = self.why_not(row["step"])
            if why:
                lines.append(f"{text} are no small faithful circuit: {why} (share {row['share']:.2f}{inside})")
                continue
            n = self.data.sizes["draw"]
            ended = "" if row["finished"] else "; the budget ended the search, so fewer heads may be enough"
            lines.append(
                f"{text} do {row['share']:.2f}{inside} of what the model does; {n} random sets with as many in each layer do "
                f"{row['random']:.2f} (p = {row['p']:.2f}); with any of {self.data.sizes['subset']} subsets left out of both, "
                f"they differ by at most {row['gap']:.2f}; the intervals of {row['needed']} of {row['heads']} heads show that "
                f"the circuit needs them{ended}"
            )
        s = self.about["settings"]
        return [*lines, f"all other heads are replaced by {s['replaced_by']}, {s['where']}"]


def circuits(
    model: Model,
    examples: Examples,
    scores: PatchSteps | None = None,
    *,
    steps: Sequence[int] | None = None,
    right: Graded | Tensor | None = None,
    tolerance: float = 0.1,
    evaluations: int = 300,
    n_random: int = 20,
    n_subsets: int = 8,
    n_greedy: int = 3,
    against: Against = "counterfactual",
    kind: Kind = "mean",
    mean: Mean = None,
    n_mean: int = N_PROMPTS,
    positions: Positions = "suffix",
    seed: int = 0,
    memory_gb: float | None = None,
    progress: Progress | None = None,
) -> Circuits:
    """Finds a minimal set of heads for each step, and measures faithfulness, completeness and minimality.

    scores: those of `patch_steps` on these examples with all heads of site z; None: they are computed here. Heads are tried in
        the order of the larger of their total effect and their direct effect on the logits (path patching), both exact.
    tolerance: largest distance of the circuit's F from F(M) on the examples that it is chosen on, as a share of
        F(M) - F(no head).
    evaluations: the most sets that are run for one step while heads are left out one by one.
    n_random: number of layer-matched random sets. n_subsets: number of random subsets K of the circuit, each head with
        probability 1/2. n_greedy: number of heads of one more K, which is built to make the circuit look incomplete.
    against: what the answer's logit is compared with: "counterfactual", the word that is right in the corrupted prompt;
        "competitor", the likeliest answer of the example's other steps.
    kind, mean, n_mean: as in `knock_out_curve`. positions: where the other heads are ablated: "suffix", after the few-shot
        block; "all", in it too, which costs one pass of the block for each set.
    steps, right, seed, memory_gb, progress: as in all analyses.
    The circuit, the worst subset and the K of each head are chosen on one half of a step's examples and reported on the other.
    With fewer than four examples, all are used for both, and `separate` [step] is 0.
    Returns `Circuits`. Raises TypeError or ValueError naming the argument, before anything is run.
    Cost: one run of the examples after the few-shot block for each set; see `cost`.
    Source: docs/protocol.md, E13; Wang et al. 2022 (arXiv 2211.00593), sections 3 and 4.
    """
    check_common(model, seed=seed, memory_gb=memory_gb)
    check_choice("against", against, get_args(Against))
    check_choice("kind", kind, get_args(Kind))
    check_choice("positions", positions, get_args(Positions))
    between("tolerance", tolerance, 0, 1)
    evaluations, n_random = check_integer(evaluations, "evaluations", 1), check_integer(n_random, "n_random", 1)
    n_subsets, n_greedy = check_integer(n_subsets, "n_subsets", 1), check_integer(n_greedy, "n_greedy", 0)
    if kind == "zero" and mean is not None:
        raise ValueError("mean: kind 'zero' takes no mean; expected None")
    with metered(model) as meter:
        cells = choose(model, examples, steps=steps, right=right)
        halves = [halves_of(cells, s, seed) for s in range(len(cells.steps))]
        means: HeadMeans | None = None
        if kind == "mean":
            means = mean if isinstance(mean, HeadMeans) else head_means(model, examples, over=mean, n=n_mean, seed=seed)
        if scores is None:
            used = _choosing(cells, halves)
            scores = patch_steps(model, examples, steps=cells.steps, right=used, controls=False, seed=seed, memory_gb=memory_gb)
        check_scores(scores, model, cells)
        options = dict(
            shared=len(examples.shared_ids), means=means, everywhere=positions == "all", against=against, memory_gb=memory_gb
        )
        made = CircuitValues(model, cells, n_random, n_subsets + (n_greedy > 0))
        tick = counting(progress, len(cells.steps))
        for s, step in enumerate(cells.steps):
            chosen, reported = halves[s]
            if len(chosen):
                of = {cell.e: cell for cell in cells if cell.s == s}
                order = ranking(model, scores, [of[e] for e in chosen], step, seed, memory_gb)
                choosing = KeptLogits(model, [of[e] for e in chosen], **options)  # type: ignore[arg-type]
                same = chosen.tolist() == reported.tolist()
                reporting = choosing if same else KeptLogits(model, [of[e] for e in reported], **options)  # type: ignore[arg-type]
                found = search(choosing, order, choosing.shape, tolerance=tolerance, evaluations=evaluations)
                rng = np.random.default_rng([seed, step])
                made.write(s, found.kept, found.finished, (choosing, reporting), (chosen, reported), rng, n_subsets, n_greedy)
            tick()
    replaced = "zero" if means is None else str(means)
    where = "after the few-shot block" if positions == "suffix" else "at every position"
    words = (
        f"F is the mean logit difference of the answer and its {against}; heads outside of the circuit are ablated {where}; "
        f"chosen within {tolerance:.0%} of F(M) - F(no head) on one half of the examples, reported on the other"
    )
    settings = dict(
        tolerance=tolerance, evaluations=evaluations, n_random=n_random, against=against, kind=kind, replaced_by=replaced,
        mean_prompts=None if means is None else means.prompts, positions=positions, where=where, seed=seed,
    )  # fmt: skip
    return Circuits.made(model, cells, made.dataset(), None, words, settings, meter)


def halves_of(cells: Cells, s: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the indices of the examples that count at a step, to choose on and to report on. With fewer than
    `bootstrap.HALVED` examples, both are all of them."""
    counts = np.flatnonzero(cells.right[:, s].numpy())
    if len(counts) < bootstrap.HALVED:
        return counts, counts
    choosing, reporting = bootstrap.halves(len(counts), seed=seed)
    return counts[choosing], counts[reporting]


def _choosing(cells: Cells, halves: Sequence[tuple[NDArray, NDArray]]) -> Tensor:
    """right= for the examples to choose on alone: bool [n, all steps]."""
    out = torch.zeros(len(cells.examples), cells.examples.n_steps, dtype=torch.bool)
    for step, (chosen, _) in zip(cells.steps, halves, strict=True):
        out[chosen, step] = True
    return out


def check_scores(scores: Any, model: Model, cells: Cells) -> None:
    """Raises TypeError or ValueError if scores are not of `patch_steps` on these examples, steps and all heads."""
    if not isinstance(scores, PatchSteps):
        raise TypeError(f"scores: got {type(scores).__name__}; expected what pcm.cot.patch_steps gives")
    data, shape = scores.data, (model.cfg.n_layers, model.cfg.n_heads)
    if (data.sizes["layer"], data.sizes["head"]) != shape or scores.about["settings"]["direction"] != "denoise":
        raise ValueError(f"scores: expected effects of all heads [{shape[0]}, {shape[1]}] in the direction 'denoise'")
    missing = set(cells.steps) - set(data["step"].values.tolist())
    if missing or data["example"].values.tolist() != cells.coords["example"]:
        what = f"step {min(missing)} is missing" if missing else "they are of other examples"
        raise ValueError(f"scores: {what}; expected those of the same examples and steps")


def total_effects(scores: PatchSteps, chosen: Sequence[int], step: int) -> NDArray[np.float64]:
    """By how much each head's clean value raises the logit difference of the corrupted run: mean over examples, [L, H]."""
    here = scores.data.sel(step=step).isel(example=list(chosen))
    change = (here["logit_diff"] - here["logit_diff_corrupted"]).mean("example")
    return np.nan_to_num(change.transpose("layer", "head").values)


def ranking(
    model: Model, scores: PatchSteps, cells: Sequence[Cell], step: int, seed: int, memory_gb: float | None
) -> list[Head]:
    """All heads, by the larger size of their total effect and of their direct effect on the logits, on these cells."""
    total = total_effects(scores, [cell.e for cell in cells], step)
    direct = path_patch(
        model, [c.step.clean for c in cells], [c.step.corrupted for c in cells], metric="logit_diff", normalize=False,
        answer=[c.step.answer for c in cells], wrong=[c.step.wrong for c in cells], seed=seed, memory_gb=memory_gb,
    )  # fmt: skip
    size = np.maximum(np.abs(total), np.abs(direct.from_senders()))
    return [(int(i) // size.shape[1], int(i) % size.shape[1]) for i in np.argsort(-size.ravel(), kind="stable")]


def cost(
    cfg: ModelConfig,
    workload: Workload,
    *,
    steps: int = 10,
    heads: int = 8,
    sets: float = 120,
    n_random: int = 20,
    n_subsets: int = 8,
    n_mean: int = N_PROMPTS,
    scores: bool = True,
) -> Cost:
    """Predicted, of circuits of `heads` heads that take `sets` runs on the examples to choose on (as many as a circuit of 8
    heads takes about; one of n heads takes 2 n and more for each time that heads are left out), ablated after the few-shot
    block. scores: whether single effects are given; otherwise those of half of the examples are made."""
    own = workload.length - workload.shared
    share = 1.0 if workload.examples < bootstrap.HALVED else 0.5
    reported = 3 + n_random + 2 * (n_subsets + 1) + 2 * heads
    rows = share * workload.cells * own * (sets + reported) + steps * workload.shared
    total = rows_cost(cfg, rows, forwards=share * workload.cells * (sets + reported))
    total = total + rows_cost(cfg, n_mean * (workload.longest or workload.length), forwards=n_mean)
    direct = share * workload.cells * (2 * own + cfg.n_layers * cfg.n_heads / 2)
    total = total + rows_cost(cfg, direct, forwards=share * workload.cells * cfg.n_layers * cfg.n_heads)
    return total if scores else total + patching_cost(cfg, workload, controls=False) * share


def _of_paper(given: Given, progress: Progress | None) -> Circuits:
    return given.call(circuits, progress, given.done["patch_steps"])


ANALYSIS = Description(
    Circuits,
    circuits,
    cost=cost,
    authors=lambda cfg, w: Cost(),
    needs=("patch_steps",),
    how=_of_paper,
    on_request=True,
)
