"""Divides what restores a step into the shares of MLPs and of attention (docs/protocol.md, E1).

The paper patches heads and leaves MLPs out. Patching all attention outputs at all positions would restore everything whatever
MLPs do, since only attention moves information between positions. What can be divided is what is added to the residual stream
where the answer is predicted: by how much do the attention outputs of all layers restore the answer if they take their clean
values and MLP outputs do not, and the reverse? With both it is the clean run. Each part's share is the mean of what it restores
when it is patched first and when it is patched second (its Shapley value), so that the two shares add up to the whole. Effects
of MLPs at earlier positions, which attention moves, count as attention's.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pycotmech._choices import check_choice
from pycotmech.cot.task.examples import Examples
from pycotmech.cot.task.steps import Graded
from pycotmech.cot.tools.cells import Cell, choose
from pycotmech.cot.tools.cost import Cost, Workload, metered, rows_cost
from pycotmech.cot.tools.registry import Description
from pycotmech.cot.tools.result import Analysis, Progress, counting, interval_table, labelled
from pycotmech.engine import planner
from pycotmech.engine.metrics import ExampleMetric
from pycotmech.model.arguments import check_common
from pycotmech.model.config import ModelConfig
from pycotmech.model.families.base import Family
from pycotmech.model.run import KeyValues, forward_packed
from pycotmech.patching.pairs import aligned
from pycotmech.patching.shared_runs import shared_runs
from pycotmech.stats import bootstrap

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.model import Model

METRICS = ("kl", "logit_diff")
TAKEN = ("none", "attention", "mlp", "both")
PARTS = ("attention", "mlp")


class MlpShare(Analysis):
    """Restoration of the corrupted run by attention and by MLPs.

    data: `kl` [example, step, taken], KL(P_clean || P) in nats, and `logit_diff` [example, step, taken], logit(answer) -
    logit(wrong), of the corrupted run. taken: what comes from the clean run where the answer is predicted, in all layers:
    "none", the outputs of "attention", of "mlp", or "both".
    """

    name, title = "mlp_share", "What MLPs restore, and what attention does"
    source = "E1"
    label = "share of the restored KL divergence"
    ranges: ClassVar = {"kl": bootstrap.COUNT}

    def gains(self, metric: str = "kl") -> tuple[xr.DataArray, xr.DataArray]:
        """Returns what each part restores of the metric, the mean of patched first and second [example, step, part], and what
        both restore together [example, step]; larger is nearer to the clean run."""
        check_choice("metric", metric, METRICS)
        value = self.data[metric] if metric == "logit_diff" else -self.data[metric]
        none, attention, mlp, both = (value.sel(taken=t, drop=True) for t in TAKEN)
        parts = [((part - none) + (both - other)) / 2 for part, other in ((attention, mlp), (mlp, attention))]
        axis = xr.DataArray(list(PARTS), dims="part", name="part")
        return xr.concat(parts, axis).transpose("example", "step", "part"), (both - none).transpose("example", "step")

    def shares(self, metric: str = "kl") -> xr.Dataset:
        """Each part's share of what both restore, a ratio of means over examples: mean, low, high, n [step, part].

        metric: "kl" or "logit_diff". Shares add up to 1; one is below 0 where a part works against the answer.
        """
        part, whole = self.gains(metric)
        below = whole.values[..., None] + 0 * part.values
        return labelled(bootstrap.ratio_interval(part.values, np.where(below == 0, np.nan, below)), part)

    def overall(self, metric: str = "kl") -> bootstrap.Interval:
        """The share of MLPs over all steps: the ratio of sums over the steps of each example, means over examples."""
        part, whole = self.gains(metric)
        mlp = part.sel(part="mlp").sum("step", min_count=1).values
        return bootstrap.ratio_interval(mlp, whole.sum("step", min_count=1).values)

    def shown(self) -> xr.Dataset:
        return self.shares()

    def table(self) -> pd.DataFrame:
        """One row per step: kind, mlp (share of the restored KL divergence), mlp_logit_diff (of the logit difference), each
        with its interval, n."""
        found = {
            name: self.shares(metric).sel(part="mlp", drop=True).assign_coords(kind=self.data["kind"])
            for name, metric in (("mlp", "kl"), ("mlp_logit_diff", "logit_diff"))
        }
        return interval_table(found, ("step",), main="mlp")

    def plot(self, *, path: str | PathLike | None = None) -> Figure:
        """The share of each part at each step, with its interval, for both metrics."""
        from pycotmech.figures.bars import bars_with_intervals
        from pycotmech.figures.frame import framed, saved

        title = f"{self.about['model']}: {self.title[0].lower()}{self.title[1:]}"
        figure, axes = framed(1, 2, title, self.small_print("kl", marks="bars"), width=4.0, height=3.0)
        for axis, metric, of in zip(axes[0], METRICS, ("the KL divergence", "the logit difference")):
            found = self.shares(metric).transpose("part", "step")
            bars_with_intervals(axis, found, self.step_ticks(), names=PARTS, title=f"share of {of} restored", across="step")
            axis.axhline(0, color="0.6", linewidth=0.6)
        axes[0, 0].legend(fontsize=7, frameon=False)
        return saved(figure, path)

    def findings(self) -> list[str]:
        """The share of MLPs over all steps and at each."""
        whole, logits, by_step = self.overall(), self.overall("logit_diff"), self.shares().sel(part="mlp")
        words = []
        for step in by_step["step"].values:
            at = by_step.sel(step=step)
            mean, low, high = (float(at[k]) for k in ("mean", "low", "high"))
            if np.isfinite(mean):
                words.append(f"{int(step)}: {mean:.0%}{bootstrap.ends(low, high)}")
        return [
            f"of what clean outputs restore where the answer is predicted, MLPs contribute {whole.words()} of the KL "
            f"divergence and {logits.words()} of the logit difference over all steps, and attention the rest "
            f"(n = {int(whole.n)} examples)",
            f"share of MLPs of the KL divergence restored, by step: {', '.join(words)}",
        ]


def mlp_share(
    model: Model,
    examples: Examples,
    *,
    steps: Sequence[int] | None = None,
    right: Graded | Tensor | None = None,
    seed: int = 0,
    memory_gb: float | None = None,
    progress: Progress | None = None,
) -> MlpShare:
    """Divides what restores each step between MLPs and attention, exactly.

    steps, right: as `cells.choose`. seed: unused, for nothing is drawn. What a single layer's MLP does at all positions, with
    everything above it recomputed, is `pcm.patch_residual(site="mlp_out", by_position=False)`.
    Returns `MlpShare`. Raises ValueError naming the argument.
    Cost: the clean and the corrupted prompt once for all steps of an example that have the same word replaced; no variants.
    """
    check_common(model, seed=seed, memory_gb=memory_gb)
    cells = choose(model, examples, steps=steps, right=right)
    data = {name: cells.empty(len(TAKEN)) for name in METRICS}
    tick = counting(progress, len(cells))
    shared = examples.shared_ids
    with metered(model) as meter:
        past = model.prefixes.key_values(shared, planner.memory_budget(memory_gb, *model.family.devices))
        for group in cells.by_example().values():
            for run in shared_runs([aligned(cell.step.clean, cell.step.corrupted) for cell in group]):
                together = [group[i] for i in run.readers]
                for cell, logits in zip(together, _taken(model.family, together, len(shared), past), strict=True):
                    clean, patched = logits[0], logits[1:]
                    for name in METRICS:
                        measure = ExampleMetric(name, clean, cell.step.answer, cell.step.wrong)
                        data[name][cell.e, cell.s] = measure(patched).cpu().numpy()
                    tick()
    words = (
        "the corrupted run with the outputs of all attentions, or of all MLPs, of the clean run where the answer is predicted"
    )
    settings = {"steps": list(cells.steps), "seed": seed}
    return MlpShare.made(model, cells, data, {"taken": TAKEN}, words, settings, meter)


@torch.no_grad()
def _taken(family: Family, cells: Sequence[Cell], shared: int, past: KeyValues | None) -> Tensor:
    """Logits of the clean run, then of the corrupted run with what is `TAKEN`: [n, 5, V]. The prompts of the cells begin those
    of the last one."""
    host = cells[-1].step
    suffixes = [host.clean[shared:], host.corrupted[shared:]]
    at = torch.tensor([len(cell.step.clean) - 1 - shared for cell in cells])
    rows = torch.cat((at, len(suffixes[0]) + at))
    packed = forward_packed(family, suffixes, past, sites=("attn_out", "mlp_out"), keep=rows, read=rows)
    clean, corrupted = packed.resid_final.unflatten(0, (2, -1))  # [2 n, d] -> [2, n, d]
    added = []
    for site in ("attn_out", "mlp_out"):
        theirs, own = packed.sites[site].double().sum(0).unflatten(0, (2, -1))
        added.append((theirs - own).to(corrupted.dtype))
    attention, mlp = added
    runs = (clean, corrupted, corrupted + attention, corrupted + mlp, corrupted + attention + mlp)
    return torch.stack([family.logits(x) for x in runs], 1)


def cost(cfg: ModelConfig, workload: Workload) -> Cost:
    """Predicted: both prompts after the shared beginning, for each word replaced, and five rows of logits for each cell."""
    runs = workload.sweeps or workload.cells
    rows = 2 * runs * (workload.length - workload.shared) + workload.shared * (1 - 1 / cfg.n_layers)
    return rows_cost(cfg, rows, forwards=2 * workload.cells, read=5 * workload.cells, passes=4 * runs)


def authors_cost(cfg: ModelConfig, workload: Workload) -> Cost:
    """Nothing: the authors left MLPs out."""
    return Cost()


ANALYSIS = Description(MlpShare, mlp_share, cost=cost, authors=authors_cost, order=1)
