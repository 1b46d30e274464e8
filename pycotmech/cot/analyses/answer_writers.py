"""Finds the heads that write the answer where it is predicted, by projection and by direct attribution (docs/protocol.md, E8).

The projection asks what a head's output predicts by itself, whatever its size: a head that writes almost nothing may predict a
word with certainty. Direct attribution asks how much the head adds to the answer's logit, with the norm that the model really
applied. It adds up over heads, and a head is significant if its share is above 0 example after example.

Several writers are parallel pathways only if they write the answer and not every word of the prompt, and if the answer does not
depend on any single one of them. The first is measured against the other words of the question that could stand in the answer's
place, the second by knock-outs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pycotmech._choices import check_choice
from pycotmech.cot.tools.activations import (
    SEGMENTS,
    Prompt,
    by_example,
    head_mask,
    text_activations,
    text_activations_cost,
    texts_of,
)
from pycotmech.cot.tools.cells import Cell, choose
from pycotmech.cot.tools.checks import between
from pycotmech.cot.tools.cost import Cost, Workload, metered, rows_cost
from pycotmech.cot.tools.registry import Description
from pycotmech.cot.tools.result import Analysis, Progress, columns, counting, headline, interval_table, labelled, top_cells
from pycotmech.cot.tools.writer_loss import losses, losses_cost
from pycotmech.cot.tools.written import COUNTS, FLOOR, REACH, THRESHOLDS, count_writers, is_writer, late_share, written
from pycotmech.model.arguments import check_common, check_integer
from pycotmech.model.config import ModelConfig
from pycotmech.stats import bootstrap
from pycotmech.stats.significance import means_above_zero

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.cot.task.examples import Examples
    from pycotmech.cot.task.steps import Graded
    from pycotmech.model import Model

LOSSES = ("one", "together", "matched")


@dataclass(frozen=True, eq=False)
class AnswerWriters(Analysis):
    """Heads that write the answer, their number, and what knock-outs leave of the answer.

    data [example, step, layer, head]:

    * projection, control: probability of the answer, and of the counterfactual's word, in U(z W_O).
    * direct, contrast: the head's share of logit(answer) - mean logit, and of logit(answer) - logit(wrong).
    * answer_mass: attention to the answer's word in the prompt.

    data [example, step, threshold]:

    * writers: number of heads with projection >= threshold that add at least `floor` to the answer's logit. projecting: the
      same without the floor, as the authors count; a head that writes next to nothing may say the answer by chance.
    * competitor_writers: writers of another word of the prompt that could stand in the answer's place, the mean over these
      words; NaN if there is none.
    * late: share of writers in the later half of the layers; NaN without writers.
    * sources, segments: number of occurrences of the answer's word, and of parts of the prompt, that the writers look at.
    * margin_one, margin_together, margin_matched: logit(answer) minus the largest other logit, with a single writer knocked out
      (the smallest over writers), with all of them, and with as many other heads of the same layers; NaN without writers.

    data [example, step]:

    * competitors: number of such other words. margin: logit(answer) minus the largest other logit with no knock-out; NaN
      without writers.
    * late_logit, late_competitor_logit: of what heads add to logit(word) - mean logit, if that is above 0, the share of the
      later half of the layers, for the answer and for its competitors.
    * held_out_share: share of logit(answer) - logit(wrong) of the heads that were chosen on the other half.

    significant [step, layer, head]: whether contrast is above 0 over examples, at a false discovery rate of at most alpha.
    """

    name = "answer_writers"
    title = "Heads that write the answer"
    source = "E8, stage I"
    label = "share of logit(answer) - logit(wrong)"
    ranges: ClassVar = {
        **dict.fromkeys(
            ("projection", "control", "answer_mass", "late", "late_logit", "late_competitor_logit"), bootstrap.SHARE
        ),
        **dict.fromkeys(("writers", "projecting", "competitor_writers", "sources", "competitors"), bootstrap.COUNT),
        "segments": (0.0, float(len(SEGMENTS))),
    }

    def top(self, step: int, k: int = 5, *, by: str = "contrast", held_out: bool = True) -> list[tuple[int, int, float]]:
        """The k heads with the largest mean, ranked and reported as in `table`: [(layer, head, mean), ...].

        by: contrast, direct, projection.
        """
        check_choice("by", by, ("contrast", "direct", "projection"))
        parts = self.at_step(by, step, held_out=held_out)
        if parts is None:
            return []
        chosen, reported = (part.data[by].sel(step=step).mean("example") for part in (parts.choosing, parts.reporting))
        return [(int(l), int(h), float(reported.sel(layer=l, head=h))) for l, h, _ in top_cells(chosen, k)]

    def shown(self) -> xr.Dataset:
        return self.interval("contrast")

    def table(self, k: int = 5, *, held_out: bool = True) -> pd.DataFrame:
        """The k heads of each step with the largest contrast: step, kind, rank, layer, head, contrast with low and high,
        projection, control, answer_mass (each with name_low and name_high), n, held_out, significant.

        held_out: heads are ranked on one half of the examples that count at the step, and the numbers are of the other, n
        examples; with fewer than four that count, and with False, both are of all of them. The column says which it was.
        significant: over all of them, corrected for the number of heads.
        """
        import pandas as pd

        rows = []
        for i, step in enumerate(self.data["step"].values.tolist()):
            parts = self.at_step("contrast", step, held_out=held_out)
            if parts is None:
                continue
            shown = ("contrast", "projection", "control", "answer_mass")
            found = {name: parts.reporting.interval(name).sel(step=step) for name in shown}
            chosen = top_cells(parts.choosing.data["contrast"].sel(step=step).mean("example"), k)
            for rank, (l, h, _) in enumerate(chosen, 1):
                at = {name: x.sel(layer=l, head=h) for name, x in found.items()}
                row = {"step": step, "kind": str(self.data["kind"].values[i]), "rank": rank, "layer": int(l), "head": int(h)}
                one = at.pop("contrast")
                row |= headline("contrast", one)
                for name, other in at.items():
                    row |= columns(name, other)
                row |= {"n": int(one["n"]), "held_out": parts.held_out}
                rows.append(row | {"significant": bool(self.data["significant"].isel(step=i).sel(layer=l, head=h))})
        return pd.DataFrame(rows)

    def pathways(self) -> pd.DataFrame:
        """Parallel pathways by step and threshold: `COUNTS`, each with low and high, and n."""
        return interval_table({name: self.interval(name) for name in COUNTS}, ("step", "threshold"))

    def knock_outs(self) -> pd.DataFrame:
        """What becomes of the answer without its writers, by step and threshold: survives_one, survives_together,
        survives_matched, the share of examples in which it stays the first choice whichever writer is knocked out, with all of
        them, and with as many other heads of the same layers; each with low and high; least, the smallest margin left by a
        single knock-out, in logits; n, of the examples with writers."""
        found = {f"survives_{name}": self.survival(name) for name in LOSSES}
        least = self.data["margin_one"].min("example")
        return interval_table(found, ("step", "threshold"), more=lambda at: {"least": float(least.sel(at))})

    def survival(self, name: str, *, level: float = bootstrap.LEVEL) -> xr.Dataset:
        """Returns the share of the examples with writers in which the answer stays the first choice: mean, low, high, n
        [step, threshold].

        name: what is knocked out, "one", "together" or "matched".
        """
        check_choice("name", name, LOSSES)
        margin = self.data[f"margin_{name}"].transpose("example", "step", "threshold")
        stays = (margin > 0).astype(float).where(margin.notnull())
        return labelled(bootstrap.mean_interval(stays.values, within=bootstrap.SHARE, level=level), stays)

    def plot(self, *, path: str | PathLike | None = None) -> Figure:
        """Writers by step and threshold; each layer's share of the answer's logit; the map of heads, over all steps."""
        from pycotmech.figures.bars import bars_with_intervals
        from pycotmech.figures.curves import layer_line
        from pycotmech.figures.frame import framed, saved
        from pycotmech.figures.heatmap import map_of_heads

        steps, title = self.step_ticks(), f"{self.about['model']}: {self.title.lower()}"
        figure, axes = framed(1, 3, title, self.small_print("logit", marks="bars and band"), width=4.0, height=3.2)
        found = self.interval("writers")
        names = [f"probability ≥ {t:g}" for t in self.data["threshold"].values]
        title = "heads whose output predicts the answer"
        bars_with_intervals(axes[0, 0], found.transpose("threshold", "step"), steps, names=names, title=title, across="step")
        axes[0, 0].legend(fontsize=7, frameon=False)
        by_layer = self.data["contrast"].sum("head", skipna=False).mean("step").transpose("example", "layer")
        written_there = bootstrap.mean_interval(by_layer.values)
        layer_line(axes[0, 1], *written_there[:3], title="logit of the answer written by each layer's heads")
        grid = self.data["contrast"].mean(("example", "step")).transpose("layer", "head").values
        map_of_heads(figure, axes[0, 2], grid, title="by head", label="share of logit(answer) − logit(wrong)")
        return saved(figure, path)

    def findings(self) -> list[str]:
        """Parallel pathways, where the writers lie, and how much the heads chosen on one half bring on the other."""
        out, L = [], self.data.sizes["layer"]
        mean = self.data[["writers", "sources", "late"]].mean("step").transpose("example", "threshold")
        has = self.data["competitor_writers"].notnull()
        rival = self.data[["writers", "competitor_writers"]].where(has).mean("step").transpose("example", "threshold")
        for t, threshold in enumerate(self.data["threshold"].values):
            w, s, late = (
                bootstrap.mean_interval(mean[name].values[:, t], within=self.ranges[name])
                for name in ("writers", "sources", "late")
            )
            a, c = (bootstrap.mean_interval(rival[name].values[:, t], within=bootstrap.COUNT) for name in rival.data_vars)
            if not w.n or not float(w.mean) > 0:
                out.append(
                    f"no head's output gives the answer a probability of {threshold:g} or more (n = {int(w.n)} examples)"
                )
                continue
            where = f"; {late.words()} of them lie in the later half of the layers" if L > 1 else ""
            against = (
                f"; where another word of the prompt could take its place, {a.words('{:.1f}')}, and {c.words('{:.1f}')} "
                "predict that word"
                if c.n
                else ""
            )
            out.append(
                f"{w.words('{:.1f}')} heads at once predict the answer with probability ≥ {threshold:g} (n = {int(w.n)} "
                f"examples{against}), attending to {s.words('{:.1f}')} different occurrences of it{where}"
            )
            out += self._lost(t)
        without = np.flatnonzero(~(self.data["competitors"] > 0).any("example").values)
        if len(without):
            steps = ", ".join(str(step) for step in self.data["step"].values[without])
            out.append(f"no other word of the prompt could take the answer's place at steps {steps}")
        held = bootstrap.mean_interval(self.data["held_out_share"].mean("step").values)
        k = self.about["settings"]["chosen"]
        if held.n:
            out.append(
                f"the {k} heads that write most in one half of the examples bring {held.words('{:.0%}')} of the answer's "
                f"logit against the counterfactual's in the other half (n = {int(held.n)})"
            )
        count = self.data["significant"].sum(("layer", "head")).values
        first = self.data["significant"].any("step")
        layers = [int(l) for l, h in zip(*np.nonzero(first.transpose("layer", "head").values))]
        where = f", {sum(2 * l >= L for l in layers)} of them in the later half of the layers" if L > 1 else ""
        out.append(
            f"heads that favour the answer over the counterfactual's word example after example: {int(count.min())} to "
            f"{int(count.max())} at a step, {len(layers)} in all{where}"
        )
        return out

    def _lost(self, t: int) -> list[str]:
        """What knock-outs of the writers of one threshold leave of the answer, all steps together."""
        shares = []
        for name in LOSSES:
            margin = self.data[f"margin_{name}"].isel(threshold=t)
            stays = (margin > 0).astype(float).where(margin.notnull()).mean("step")
            shares.append(bootstrap.mean_interval(stays.values, within=bootstrap.SHARE))
        one, together, matched = (x.words() for x in shares)
        if not shares[0].n:
            return []
        return [
            f"where these heads are knocked out, the answer stays the first choice without any one of them in {one} of the "
            f"cells, without all of them in {together}, without as many other heads of the same layers in {matched} "
            f"(n = {int(shares[0].n)})"
        ]


def answer_writers(
    model: Model,
    examples: Examples,
    *,
    steps: Sequence[int] | None = None,
    right: Graded | Tensor | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    heads: Sequence[tuple[int, int]] | Tensor | None = None,
    alpha: float = 0.05,
    chosen: int = 5,
    floor: float = FLOOR,
    reach: float = REACH,
    seed: int = 0,
    memory_gb: float | None = None,
    progress: Progress | None = None,
) -> AnswerWriters:
    """Finds the heads that write the answer where it is predicted.

    steps, right: which cells, as in `cells.choose`. thresholds: of the projection's probability; the authors took the four
    heads with the largest probability, whatever it was, so that their number is fixed.
    heads: the only ones that may count as writers by projection, (layer, head) pairs or bool [L, H] (the authors: those a
    knock-out had found important); None: all. alpha: false discovery rate of `significant`.
    floor: what a writer must bring of logit(answer) - mean logit: 0.25 raises the odds of the answer by a quarter.
    chosen: how many heads are chosen on one half of the examples for `held_out_share`. reach: attention to an occurrence of
    the answer's word from which it counts as a source.
    z of a head that is knocked out becomes, where the answer is predicted, its mean over the other examples at the same step;
    where only one example counts, nothing is knocked out. Without a tokenizer words are not found, and none competes.
    Returns `AnswerWriters`. Raises ValueError naming the argument.
    Cost: the prompts once, and the unembedding of one row for each head, example and step; the prompts once more,
    and for each cell with writers one row for each of these, of half of the layers.
    """
    check_common(model, seed=seed, memory_gb=memory_gb)
    thresholds = tuple(float(t) for t in thresholds)
    if not thresholds or not all(0 < t < 1 for t in thresholds):
        raise ValueError(f"thresholds: got {thresholds}; expected probabilities between 0 and 1")
    between("alpha", alpha, 0, 1)
    check_integer(chosen, "chosen", 1)
    allowed = None if heads is None else head_mask(model.cfg, heads, argument="heads")
    cells = choose(model, examples, steps=steps, right=right)
    L, H = model.cfg.n_layers, model.cfg.n_heads
    by_head = ("projection", "control", "direct", "contrast", "answer_mass")
    data = {name: cells.empty(L, H) for name in by_head} | {name: cells.empty(len(thresholds)) for name in COUNTS}
    logits = cells.empty(2)
    single = ("competitors", "margin", "late_logit", "late_competitor_logit")
    data |= {name: cells.empty() for name in single} | {f"margin_{name}": cells.empty(len(thresholds)) for name in LOSSES}
    groups = by_example(cells, model.tokenizer)
    texts, first = texts_of(groups)
    tick = counting(progress, len(cells))
    order = sorted(range(len(thresholds)), key=lambda t: thresholds[t])  # the sets of writers hold one another
    with metered(model) as meter:
        asked: list[tuple[Cell, Prompt, list[Tensor], Tensor]] = []
        for batch in text_activations(model, texts, ("z", "q"), first=first, memory_gb=memory_gb):
            for i, acts in batch:
                for cell, prompt in groups[i]:
                    found = written(model.family, acts, prompt)
                    at = (cell.e, cell.s)
                    for name in by_head[:-1]:
                        data[name][at] = getattr(found, name).cpu().numpy()
                    data["answer_mass"][at] = found.mass.sum(-1).cpu().numpy()
                    logits[at] = found.logits.cpu().numpy()
                    for name, value in count_writers(
                        found, prompt, thresholds, allowed=allowed, floor=floor, reach=reach
                    ).items():
                        data[name][at] = value
                    data["competitors"][at] = len(prompt.competing)
                    data["late_logit"][at] = late_share(found.direct)
                    data["late_competitor_logit"][at] = late_share(found.competing)
                    sets = [is_writer(found.projection, found.direct, thresholds[t], floor).cpu() for t in order]
                    sets = sets if allowed is None else [mask & allowed for mask in sets]
                    z = acts.at_layers("z", [prompt.read])[:, 0].to(model.family.resid_dtype)
                    asked.append((cell, prompt, sets, z))
                    tick()
        for i, fill in _means_of_others([cell.s for cell, *_ in asked], [z for *_, z in asked]):
            cell, prompt, sets, _ = asked[i]
            drawn = seed + 1000 * cell.example.index + cell.step.index
            lost = losses(model, prompt, sets, fill.to(model.cfg.dtype), seed=drawn, memory_gb=memory_gb)
            data["margin"][cell.e, cell.s] = lost.intact
            for name in LOSSES:
                data[f"margin_{name}"][(cell.e, cell.s, order)] = getattr(lost, name)
    by_threshold = (*COUNTS, *(f"margin_{name}" for name in LOSSES))
    variables: dict[str, Any] = data | {name: (("example", "step", "threshold"), data[name]) for name in by_threshold}
    variables |= {"logit": logits[..., 0], "logit_difference": logits[..., 1]}
    passed = np.stack([means_above_zero(data["contrast"][:, s], alpha=alpha) for s in range(cells.shape[1])])
    variables["significant"] = (("step", "layer", "head"), passed)
    variables["held_out_share"] = held_out(data["contrast"], logits[..., 1], chosen, seed)
    settings = {"steps": list(cells.steps), "alpha": alpha, "chosen": chosen, "floor": floor, "reach": reach, "seed": seed}
    settings["heads"] = "all" if allowed is None else int(allowed.sum())
    settings["replaced_by"] = "the mean of z over the other examples at the same step, where the answer is predicted"
    words = "projection of z W_O alone, and its share of the logits with the final norm as the model applied it"
    axes = {"layer": L, "head": H, "threshold": thresholds}
    return AnswerWriters.made(model, cells, variables, axes, words, settings, meter)


def _means_of_others(steps: Sequence[int], z: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """For each cell that is not the only one of its step: its number, and the mean of z [L, H, D] of the step's others."""
    for step in dict.fromkeys(steps):
        here = [i for i, s in enumerate(steps) if s == step]
        total = torch.stack([z[i] for i in here]).sum(0)
        if len(here) > 1:
            yield from ((i, (total - z[i]) / (len(here) - 1)) for i in here)


def held_out(contrast: NDArray, whole: NDArray, k: int, seed: int) -> NDArray:
    """[example, step]: share of the logit difference brought by the k heads with the largest mean in the other half.

    contrast [n, steps, L, H], whole [n, steps]. NaN where the other half has nothing to choose on.
    """
    n, S = whole.shape
    out = np.full((n, S), np.nan)
    if n < 2:
        return out
    a, b = bootstrap.halves(n, seed=seed)
    flat = contrast.reshape(n, S, -1)
    for choosing, reporting in ((a, b), (b, a)):
        for s in range(S):
            there = flat[choosing, s][np.isfinite(flat[choosing, s, 0])]
            if len(there) == 0:
                continue
            best = np.argsort(-there.mean(0), kind="stable")[:k]
            with np.errstate(divide="ignore", invalid="ignore"):
                out[reporting, s] = flat[reporting, s][:, best].sum(1) / whole[reporting, s]
    return out


def cost(cfg: ModelConfig, workload: Workload, **options) -> Cost:
    """Predicted: the prompts once, and the unembedding of a row for each head and cell; the prompts again, whose
    beginnings the knock-outs of each cell take, and these."""
    return projections_cost(cfg, workload) + losses_cost(cfg, workload)


def projections_cost(cfg: ModelConfig, workload: Workload) -> Cost:
    """Predicted: the prompts once, and the unembedding of a row for each head and cell."""
    rows = workload.cells * cfg.n_layers * cfg.n_heads
    held = 4.0 * 256 * cfg.d_vocab
    return text_activations_cost(cfg, workload, 2, held=held) + rows_cost(cfg, 0, read=rows)


def authors_cost(cfg: ModelConfig, workload: Workload, **options) -> Cost:
    """Nothing: the authors' writers are what the first stage of their graphs finds, and are read off these. What the graphs
    took, this stage included, is counted once, by `information_flow.authors_cost`."""
    return Cost()


ANALYSIS = Description(AnswerWriters, answer_writers, cost=cost, authors=authors_cost, claims=("pathways", "writers"))
