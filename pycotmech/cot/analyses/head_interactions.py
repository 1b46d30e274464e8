"""Measures what the strongest heads of a step do together beyond the sum of their effects, and what removes the effect of the
most negative head (docs/protocol.md, E13)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from torch import Tensor

from pycotmech.cot.analyses.circuits import check_scores, halves_of, total_effects
from pycotmech.cot.analyses.patch_steps import PatchSteps, patch_steps
from pycotmech.cot.analyses.patch_steps import cost as patching_cost
from pycotmech.cot.task.examples import Examples
from pycotmech.cot.task.steps import Graded
from pycotmech.cot.tools.cells import choose
from pycotmech.cot.tools.cost import Cost, Workload, metered, rows_cost
from pycotmech.cot.tools.registry import Description, Given
from pycotmech.cot.tools.result import Analysis, Progress, counting, labelled
from pycotmech.display import View
from pycotmech.engine.joins import N_JITTERED, N_SELF_PATCHES
from pycotmech.model.arguments import check_common, check_integer
from pycotmech.model.config import ModelConfig
from pycotmech.patching.interactions import head_interactions as of_pair
from pycotmech.patching.interactions import unit_name
from pycotmech.stats import bootstrap

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.model import Model

SHOWN = 3
"""Number of pairs in the findings of each step."""


class HeadInteractions(Analysis):
    """Interactions of k heads at each step. In the clean run, heads take their values from the corrupted run, alone and in
    pairs. Changes are those of logit(answer) - logit(wrong), in logits: below 0 where the answer loses.

    data:

    * `unit_layer`, `unit_head` [step, unit]: the heads, by rank.
    * `single` [example, step, unit]: the change by each head alone. `joint` [example, step, unit, other]: the change by two
      heads at once, NaN on the diagonal.
    * `span` [example, step]: clean - corrupted, by which all effects are divided.
    * `negative_layer`, `negative_head` [step]: the head whose clean value lowers the answer most; -1 if none does.
      `negative` [example, step]: the change by it alone.
    * `layer_alone`, `layer_joint` [example, step, layer]: the change by all heads of a layer below the negative head, and by
      these and the negative head at once; NaN in other layers.
    * `held_out` [example, step]: 1 if the heads were not chosen on the example. `noise_floor` [example, step]: of an
      interaction, in logits.

    Effects are shares of `span`, above 0 where a head's corrupted value breaks the answer. Everything that is reported comes
    from held-out examples.
    """

    name, title = "head_interactions", "What pairs of heads do beyond the sum of their effects"
    source = "E13"
    label = "interaction, share of clean - corrupted"

    def held(self, variable: str) -> xr.DataArray:
        """Returns a variable on the held-out examples: NaN for those that the heads were chosen on."""
        return self.data[variable].where(self.data["held_out"] == 1)

    def _share(self, change: xr.DataArray) -> xr.Dataset:
        """-change over the span, a ratio of means over examples: mean, low, high, n."""
        values = change.transpose("example", "step", ...)
        span = self.held("span").transpose("example", "step").values
        span = span.reshape(*span.shape, *[1] * (values.ndim - 2))
        return labelled(bootstrap.ratio_interval(-values.values, np.broadcast_to(span, values.shape)), values)

    def effects(self) -> xr.Dataset:
        """The effect of each head alone: mean, low, high, n [step, unit]."""
        return self._share(self.held("single"))

    def interactions(self) -> xr.Dataset:
        """effect(a and b) - effect(a) - effect(b): [step, unit, other]; 0 where two heads add up."""
        single = self.held("single")
        return self._share(self.held("joint") - single - single.rename(unit="other"))

    def negative(self) -> xr.Dataset:
        """The effect of the most negative head alone: [step]."""
        return self._share(self.held("negative"))

    def given_layer(self) -> xr.Dataset:
        """The effect of the most negative head once all heads of a lower layer have their corrupted values: [step, layer]."""
        return self._share(self.held("layer_joint") - self.held("layer_alone"))

    def names(self, step: int) -> list[str]:
        """The heads of a step."""
        here = self.data.sel(step=step)
        pairs = zip(here["unit_layer"].values, here["unit_head"].values, strict=True)
        return [unit_name(((int(l), int(h)),)) for l, h in pairs]

    def shown(self) -> xr.Dataset:
        return self.interactions()

    def view(self) -> View:
        """Each pair once, with the names of its heads: those of a unit differ from step to step."""
        found = super().view()
        units = [self.names(step) for step in self.data["step"].values.tolist()]
        pairs = [[[f"{a} and {b}" for b in names] for a in names] for names in units]
        upper = np.triu(np.ones(found.values.shape[1:], bool), 1)
        values = np.where(upper, found.values, np.nan)
        return replace(found, values=values, beside={"pair": np.array(pairs, dtype=object), **found.beside})

    def table(self) -> pd.DataFrame:
        """A row for each step and pair: step, kind, a, b, effect_a, effect_b, interaction, low, high, n, clear (whether the
        interval lies beyond the noise floor)."""
        import pandas as pd

        effect, found = self.effects()["mean"], self.interactions()
        floor = (self.held("noise_floor").mean("example") / np.abs(self.held("span").mean("example"))).values
        rows: list[dict[str, Any]] = []
        for i, step in enumerate(self.data["step"].values.tolist()):
            if int(found["n"].isel(step=i).max()) == 0:
                continue
            names = self.names(step)
            for a, b in combinations(range(len(names)), 2):
                here = found.isel(step=i, unit=a, other=b)
                low, high = float(here["low"]), float(here["high"])
                row = {"step": step, "kind": str(self.data["kind"].values[i]), "a": names[a], "b": names[b]}
                row |= {"effect_a": float(effect[i, a]), "effect_b": float(effect[i, b])}
                row |= {"interaction": float(here["mean"]), "low": low, "high": high, "n": int(here["n"])}
                rows.append(row | {"clear": bool(low > floor[i] or high < -floor[i])})
        return pd.DataFrame(rows)

    def plot(self, *, path: str | PathLike | None = None) -> Figure:
        """A heat map for each step: interactions of pairs, the effects of single heads on the diagonal."""
        from pycotmech.figures.heatmap import interaction_figure

        found, effect = self.interactions(), self.effects()["mean"].values
        shown = [i for i in range(self.data.sizes["step"]) if int(found["n"].isel(step=i).max()) > 0]
        grids = []
        for i in shown:
            grid = found["mean"].isel(step=i).transpose("unit", "other").values.copy()
            np.fill_diagonal(grid, effect[i])
            grids.append(grid)
        steps, kinds = self.data["step"].values.tolist(), self.data["kind"].values
        return interaction_figure(
            grids,
            [self.names(steps[i]) for i in shown],
            [f"step {steps[i]} ({kinds[i]})" for i in shown],
            title=f"{self.about['model']}: {self.title.lower()}",
            lines=self.small_print("single", "diagonal: the head alone; "),
            label="interaction (share of clean - corrupted)",
            path=path,
        )

    def figures(self) -> Mapping[str, Callable[..., Figure]]:
        return {"negative": self.plot_negative}

    def plot_negative(self, *, path: str | PathLike | None = None) -> Figure:
        """The effect of the most negative head of each step, alone and once a layer below has its corrupted values."""
        from pycotmech.cot.analyses.head_interactions_figure import negative_figure

        given, alone = self.given_layer(), self.negative()
        return negative_figure(
            [(title, alone.isel(step=i), given.isel(step=i)) for i, title in self._negative_heads()],
            title=f"{self.about['model']}: heads that work against the answer, and what they respond to",
            lines=self.small_print("negative", "line: the head alone; dots: with all heads of a layer corrupted; "),
            path=path,
        )

    def _negative_heads(self) -> Iterator[tuple[int, str]]:
        """Yields the steps with a negative head: (index of the step, step and head in words)."""
        for i, step in enumerate(self.data["step"].values.tolist()):
            l, h = int(self.data["negative_layer"].values[i]), int(self.data["negative_head"].values[i])
            if l >= 0:
                yield i, f"step {step} ({self.data['kind'].values[i]}): L{l}H{h}"

    def findings(self) -> list[str]:
        """For each step the clearest interactions, and what removes the effect of the most negative head."""
        lines, table = [], self.table().to_dict("records")
        for step in dict.fromkeys(row["step"] for row in table):
            rows = [row for row in table if row["step"] == step]
            if rows[0]["n"] == 1:
                lines.append(f"step {step}: one example has no interval, so no interaction can be called clear of the noise")
                continue
            clear = [row for row in rows if row["clear"]]
            first = sorted(clear, key=lambda row: -abs(row["interaction"]))[:SHOWN]
            told = [
                f"{r['a']} and {r['b']} {r['interaction']:+.2f}{bootstrap.ends(r['low'], r['high'], '{:+.2f}')}" for r in first
            ]
            what = f": {'; '.join(told)}" if told else ""
            lines.append(
                f"step {step} (n = {rows[0]['n']}): of {len(rows)} pairs {len(clear)} have an interaction whose interval lies "
                f"beyond 0 and the noise floor (about {math.ceil(len(rows) / 20)} may by chance){what}"
            )
        return [*lines, *(self._against(i, words) for i, words in self._negative_heads())]

    def _against(self, i: int, words: str) -> str:
        """Whether the negative head's effect is gone once the layer that takes most of it has its corrupted values."""
        alone = self.negative().isel(step=i)
        if not float(alone["high"]) < 0:
            return f"{words} is the most negative head, and whether it works against the answer is open: {_words(alone)}"
        text = f"{words} works against the answer: corrupted alone it changes {_words(alone)}"
        taken = self._takes_most(i)
        if taken is None:
            return f"{text}; no layer lies below it"
        given = self.given_layer().isel(step=i, layer=taken)
        change = self.held("layer_joint") - self.held("layer_alone") - self.held("negative")
        gone = self._share(change).isel(step=i, layer=taken)
        clear = bool(gone["low"] > 0 or gone["high"] < 0)
        left = float(given["mean"]) / float(alone["mean"]) if float(alone["mean"]) else np.nan
        verdict = f"{left:.0%} of it remains" if clear else "the difference may be chance"
        return f"{text}; with all heads of layer {taken} corrupted {_words(given)}: {verdict} (interaction {_words(gone)})"

    def _takes_most(self, i: int) -> int | None:
        """The layer whose corruption moves the negative head's effect most towards 0, on the examples that it was chosen on."""
        other = self.data["held_out"] != 1
        rows = other if bool((other & self.data["negative"].notnull()).isel(step=i).any()) else self.data["held_out"] == 1
        given = (self.data["layer_joint"] - self.data["layer_alone"]).where(rows).isel(step=i).mean("example")
        left = np.abs(given.values)
        return int(np.nanargmin(left)) if np.isfinite(left).any() else None


def _words(found: xr.Dataset) -> str:
    low, high = float(found["low"]), float(found["high"])
    return f"{float(found['mean']):+.2f}{bootstrap.ends(low, high, '{:+.2f}')}"


def head_interactions(
    model: Model,
    examples: Examples,
    scores: PatchSteps | None = None,
    *,
    k: int = 12,
    steps: Sequence[int] | None = None,
    right: Graded | Tensor | None = None,
    seed: int = 0,
    memory_gb: float | None = None,
    progress: Progress | None = None,
) -> HeadInteractions:
    """Measures all pairs of each step's k strongest heads, and the most negative head with every layer below it, exactly.

    scores: those of `patch_steps` on these examples, by which heads are chosen; None: they are computed here.
    k: number of heads of each step. steps, right, seed, memory_gb, progress: as in all analyses.
    Heads are chosen on one half of a step's examples and reported on the other; with fewer than four examples, all are used for
    both.
    Returns `HeadInteractions`. Raises TypeError or ValueError naming the argument, before anything is run.
    Cost: for each cell one sweep (`pcm.head_interactions`) of k (k + 1) / 2 variants, and 2 for each layer.
    Source: docs/protocol.md, E13.
    """
    check_common(model, seed=seed, memory_gb=memory_gb)
    L, H = model.cfg.n_layers, model.cfg.n_heads
    k = check_integer(k, "k", 2, L * H)
    with metered(model) as meter:
        cells = choose(model, examples, steps=steps, right=right)
        if scores is None:
            scores = patch_steps(
                model, examples, steps=cells.steps, right=right, controls=False, seed=seed, memory_gb=memory_gb
            )
        check_scores(scores, model, cells)
        S = len(cells.steps)
        unit, negative = np.full((S, 2, k), -1), np.full((S, 2), -1)
        data = {"single": cells.empty(k), "joint": cells.empty(k, k), "layer_alone": cells.empty(L)}
        data |= {"layer_joint": cells.empty(L)}
        data |= {name: cells.empty() for name in ("span", "negative", "held_out", "noise_floor")}
        tick, todo = counting(progress, len(cells)), list(cells)
        for s, step in enumerate(cells.steps):
            chosen, reported = halves_of(cells, s, seed)
            if not len(chosen):
                continue
            total = total_effects(scores, chosen.tolist(), step)
            order = np.argsort(-np.abs(total).ravel(), kind="stable")[:k]
            unit[s] = np.stack(np.unravel_index(order, (L, H)))
            if float(total.min()) < 0:
                negative[s] = np.unravel_index(int(total.argmin()), (L, H))
            heads = [(int(l), int(h)) for l, h in unit[s].T]
            below = int(negative[s, 0])
            units: list[Any] = [*heads, (below, int(negative[s, 1])), *([(m, h) for h in range(H)] for m in range(below))]
            if below < 0:
                units = list(heads)
            pairs = [*combinations(range(k), 2), *((k, k + 1 + m) for m in range(max(below, 0)))]
            for cell in (c for c in todo if c.s == s):
                at = (cell.e, s)
                found = of_pair(
                    model, cell.step.clean, cell.step.corrupted, units, pairs=pairs, answer=cell.step.answer,
                    wrong=cell.step.wrong, normalize=False, seed=seed, memory_gb=memory_gb,
                )  # fmt: skip
                data["single"][at], data["joint"][at] = found.single[0, :k], found.joint[0, :k, :k]
                data["span"][at] = found.clean_metric[0] - found.corrupted_metric[0]
                data["noise_floor"][at], data["held_out"][at] = found.noise_floor, float(cell.e in reported)
                if below >= 0:
                    data["negative"][at] = found.single[0, k]
                    data["layer_alone"][(*at, slice(below))] = found.single[0, k + 1 :]
                    data["layer_joint"][(*at, slice(below))] = found.joint[0, k, k + 1 :]
                tick()
    coordinates: dict[str, Any] = {f"unit_{name}": (("step", "unit"), unit[:, i]) for i, name in enumerate(("layer", "head"))}
    coordinates |= {f"negative_{name}": ("step", negative[:, i]) for i, name in enumerate(("layer", "head"))}
    coordinates["joint"] = (("example", "step", "unit", "other"), data.pop("joint"))
    coordinates["single"] = (("example", "step", "unit"), data.pop("single"))
    coordinates |= {name: (("example", "step", "layer"), data.pop(name)) for name in ("layer_alone", "layer_joint")}
    words = (
        f"corrupted z of heads in the clean run, alone and in pairs, at all positions; logit difference; the {k} heads with "
        "the largest effects on one half of the examples, reported on the other"
    )
    axes = {"unit": k, "other": k, "layer": L}
    return HeadInteractions.made(model, cells, data | coordinates, axes, words, {"k": k, "seed": seed}, meter)


def cost(cfg: ModelConfig, workload: Workload, *, k: int = 12, scores: bool = True) -> Cost:
    """Predicted: for each cell both runs, and its variants through the layers above, by half of the layers on average. scores:
    whether single effects are given."""
    variants = k * (k + 1) / 2 + cfg.n_layers + N_SELF_PATCHES + 4 * N_JITTERED
    rows = workload.cells * (2 * (workload.length - workload.shared) + workload.suffix * (1 + variants / 2)) + workload.shared
    total = rows_cost(cfg, rows, forwards=workload.cells * (variants + 2))
    return total if scores else total + patching_cost(cfg, workload, controls=False)


def _of_paper(given: Given, progress: Progress | None) -> HeadInteractions:
    return given.call(head_interactions, progress, given.done["patch_steps"])


ANALYSIS = Description(
    HeadInteractions,
    head_interactions,
    cost=cost,
    authors=lambda cfg, w: Cost(),
    needs=("patch_steps",),
    order=1,
    how=_of_paper,
    on_request=True,
)
