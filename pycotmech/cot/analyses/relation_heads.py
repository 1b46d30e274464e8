"""Finds heads that look along the relations of the ontology, and whether a probe misses them (docs/protocol.md, E10)."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, get_args

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pycotmech.cot.task.relations import CLASSES, Question
from pycotmech.cot.tools.by_head import layer_share
from pycotmech.cot.tools.checks import between, one_of
from pycotmech.cot.tools.cost import Cost, Workload, metered, rows_cost
from pycotmech.cot.tools.head_probe import Rows, head_sets, probed, read_positions
from pycotmech.cot.tools.question_runs import every_forward, pair_table, question_length, questions_of, runs
from pycotmech.cot.tools.registry import Description
from pycotmech.cot.tools.result import Analysis, Progress, columns, in_words, labelled, top_cells
from pycotmech.model.arguments import check_common, check_integer
from pycotmech.model.config import ModelConfig
from pycotmech.stats import bootstrap
from pycotmech.stats.averages import nanmean
from pycotmech.stats.significance import sign_flip

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.cot.task.examples import Examples
    from pycotmech.cot.task.steps import Graded
    from pycotmech.model import Model

QUESTIONS, HEADS, RANDOM_SETS = 64, 10, 5
LEAST = 0.05
"""Share of a head's attention that has to go along relations beyond what goes elsewhere: far below, a difference may be
significant without moving anything."""
RELATIONS = CLASSES[:2]
Kind = Literal["mean", "zero"]


class RelationHeads(Analysis):
    """Attention from the last piece of the later word to all pieces of the earlier one.

    data, by example (question): `attention` [.., class, layer, head], means over the question's pairs; `score` [.., relation,
    layer, head], related (or negated) pairs less unrelated ones at the same distance; `auroc` [.., relation, layer, head],
    how often a related pair is looked along more than an unrelated one, in multiples of even attention, so that it does not
    matter how much text comes before. `p` [relation, layer, head], that all heads together reach such an auroc by chance,
    on the choosing half (`half` [example]); `selected` [relation, layer, head]: below the level there, with at least the
    least score. `accuracy`, `margin` [example, run]: of a probe on the residual stream, whole and with heads out (NaN on the
    choosing half, on which the probe was trained), classes alike; margin is the logit of the true class less the mean of the
    others.
    """

    name, title = "relation_heads", "Heads that look along the relations of the ontology"
    source = "E10 (operational definition)"
    ranges: ClassVar = {
        **dict.fromkeys(("attention", "auroc", "accuracy"), bootstrap.SHARE),
        "score": bootstrap.SHARES_APART,
    }

    def reported(self, variable: str) -> xr.DataArray:
        """A variable on the reporting half."""
        return self.data[variable].isel(example=np.flatnonzero(self.data["half"].values == "report"))

    def scores(self, variable: str = "score") -> xr.Dataset:
        """Mean over the reporting half with its interval: mean, low, high, n [relation, layer, head]."""
        here = self.reported(variable).transpose("example", ...)
        return labelled(bootstrap.mean_interval(here.values, within=self.ranges.get(variable)), here)

    def heads(self, relation: str = "related") -> list[tuple[int, int]]:
        """The selected heads, the strongest on the choosing half first."""
        chosen = self.data["selected"].sel(relation=relation)
        choosing = self.data["score"].sel(relation=relation).isel(example=np.flatnonzero(self.data["half"].values == "choose"))
        mean = choosing.mean("example").where(chosen)
        return [(int(l), int(h)) for l, h, _ in top_cells(mean, int(chosen.sum()))]

    def first_half(self, relation: str = "related") -> bootstrap.Interval:
        """Share of the selected heads' positive score that lies in the first half of the layers, on the reporting half; NaN
        without such heads, and in a model of one layer."""
        score = self.reported("score").sel(relation=relation).transpose("example", "layer", "head")
        chosen = self.data["selected"].sel(relation=relation)
        if not bool(chosen.any()) or self.data.sizes["layer"] == 1:
            nan = np.array(np.nan)
            return bootstrap.Interval(nan, nan, nan, np.array(0))
        later = layer_share(score.where(chosen, 0.0), self.data.sizes["layer"] // 2)
        return bootstrap.Interval(1 - later.mean, 1 - later.high, 1 - later.low, later.n)

    def table(self, k: int = 10) -> pd.DataFrame:
        """The k strongest selected heads of each relation: relation, rank (on the choosing half), layer, head, score and auroc
        on the reporting half with their intervals, p, n."""
        import pandas as pd

        score, auroc, rows = self.scores(), self.scores("auroc"), []
        for relation in RELATIONS:
            for rank, (l, h) in enumerate(self.heads(relation)[:k], 1):
                at = {"relation": relation, "layer": l, "head": h}
                row: dict[str, object] = {"relation": relation, "rank": rank, "layer": l, "head": h}
                for name, found in (("score", score), ("auroc", auroc)):
                    row |= columns(name, found.sel(at))
                rows.append({**row, "p": float(self.data["p"].sel(at)), "n": int(score["n"].sel(at))})
        names = ("score", "score_low", "score_high", "auroc", "auroc_low", "auroc_high", "p", "n")
        return pd.DataFrame(rows, columns=["relation", "rank", "layer", "head", *names])

    def ablation(self) -> pd.DataFrame:
        """What the probe loses: run ("selected" or "random", each question's median over the random sets), accuracy and margin
        less the whole run's, with intervals, n. Empty where nothing was ablated."""
        import pandas as pd

        rows = []
        for run, taken in self._runs().items():
            row: dict[str, object] = {"run": run}
            for name in ("accuracy", "margin"):
                here = self.reported(name).transpose("example", "run")
                change = here.sel(run=taken).median("run") - here.sel(run="whole")
                within = bootstrap.SHARES_APART if name == "accuracy" else None
                found = bootstrap.mean_interval(change.values, within=within)
                row |= columns(name, found._asdict())
                row["n"] = int(found.n)
            rows.append(row)
        return pd.DataFrame(rows)

    def findings(self) -> list[str]:
        """How many heads look along relations, the strongest, in which half of the layers, and what the probe misses."""
        s, n = self.about["settings"], int((self.data["half"].values == "report").sum())
        count, L = self.data.sizes["layer"] * self.data.sizes["head"], self.data.sizes["layer"]
        lines = []
        for relation in RELATIONS:
            heads = self.heads(relation)
            rows = [row for row in self.table(1).to_dict("records") if row["relation"] == relation]
            rule = f"p < {s['level']}, score at least {s['least']}"
            text = f"{relation} pairs (n = {n}): {len(heads)} of {count} heads look along them ({rule})"
            if not rows:
                lines.append(text)
                continue
            best, share = rows[0], self.first_half(relation)
            lines.append(
                f"{text}, first L{best['layer']}H{best['head']}: {in_words(best, 'score', '{:+.3f}')} of its attention, "
                f"AUROC {in_words(best, 'auroc')}"
            )
            verdict = (
                "mostly there"
                if share.low > 0.5
                else "mostly in the second half"
                if share.high < 0.5
                else "not clearly in either half"
            )
            if L == 1:
                lines.append(f"{relation}: the model has one layer, so that no half of the layers can hold more of the score")
                continue
            where = f"layers 0 to {L // 2 - 1} of {L}"
            lines.append(f"{relation}: {share.words()} of these heads' score lies in {where}: {verdict}")
        return [*lines, *self._ablation_findings()]

    def _ablation_findings(self) -> list[str]:
        s, table = self.about["settings"], self.ablation()
        if len(table) == 0:
            return ["no head below the probe's depth was selected: nothing was ablated"]
        untouched = bootstrap.mean_interval(self.reported("accuracy").sel(run="whole").values, within=bootstrap.SHARE)
        gone, other = table.to_dict("records")
        here = self.reported("margin").transpose("example", "run")
        randoms = self._runs()["random"]
        more = bootstrap.mean_interval((here.sel(run="selected") - here.sel(run=randoms).median("run")).values)
        verdict = (
            "the probe loses more by them than by others" if more.high < 0 else
            "the probe loses less by them than by others" if more.low > 0 else "no difference beyond the interval"
        )  # fmt: skip
        changes = [in_words(row, "accuracy", "{:+.2f}") for row in (gone, other)]
        drawn = "one set" if len(randoms) == 1 else f"each question's median over {len(randoms)} sets"
        return [
            f"a probe at depth {s['depth']} is right in {untouched.words('{:.2f}')}; {s['ablated']} selected heads out change "
            f"this by {changes[0]}, as many random heads of the same layers ({drawn}) by {changes[1]}",
            f"its margin changes by {gone['margin']:+.2f} and {other['margin']:+.2f}, difference "
            f"{more.words('{:+.2f}')}: {verdict}",
        ]

    def _runs(self) -> dict[str, list[str]]:
        names = self.data["run"].values.tolist()
        found = {"selected": ["selected"], "random": [r for r in names if r.startswith("random")]}
        return {k: v for k, v in found.items() if set(v) & set(names)}

    def plot(self, *, path: str | PathLike | None = None) -> Figure:
        """Maps of the score, the selected heads framed; the score by layer; what the probe loses without the heads."""
        from matplotlib.patches import Rectangle

        from pycotmech.figures.bars import bars_with_intervals
        from pycotmech.figures.curves import layer_line
        from pycotmech.figures.frame import framed, saved
        from pycotmech.figures.heatmap import map_of_heads

        n = int((self.data["half"].values == "report").sum())
        lines = [f"n = {n} questions to report on; {self.about['definition']}", *self.about["notes"]]
        figure, axes = framed(2, 2, f"{self.about['model']}: {self.title}", lines, width=4.4, height=3.2)
        score = self.scores()["mean"]
        for j, relation in enumerate(RELATIONS):
            grid = score.sel(relation=relation).transpose("layer", "head").values
            label = "attention less that to unrelated"
            map_of_heads(figure, axes[0, j], grid, title=f"{relation} pairs (framed: selected)", label=label)
            for l, h in self.heads(relation):
                axes[0, j].add_patch(Rectangle((h - 0.5, l - 0.5), 1, 1, fill=False, ec="black", lw=0.9))
        by_layer = self.reported("score").sel(relation="related").sum("head").transpose("example", "layer")
        found = bootstrap.mean_interval(by_layer.values)
        layer_line(axes[1, 0], *found[:3], title="related pairs, all heads of a layer", up="sum of scores")
        table, axis = self.ablation(), axes[1, 1]
        if len(table):
            ticks = ["selected heads", "random heads"][: len(table)]
            words = {"title": f"probe at depth {self.about['settings']['depth']}, heads out", "up": "change"}
            ends = {"mean": "", "low": "_low", "high": "_high"}
            values = {k: np.stack([table[f"{name}{end}"] for name in ("accuracy", "margin")]) for k, end in ends.items()}
            bars_with_intervals(axis, values, ticks, names=("accuracy", "margin (logits)"), **words)
            axis.axhline(0, color="0.4", lw=0.8)
            axis.legend(fontsize=7)
        else:
            axis.text(0.5, 0.5, "no head selected\nbelow the probe", ha="center", va="center", fontsize=8)
            axis.set_axis_off()
        return saved(figure, path)


def relation_heads(
    model: Model,
    examples: Examples | None = None,
    *,
    questions: int | Sequence[Question] = QUESTIONS,
    shots: int = 0,
    heads: int = HEADS,
    depth: int | None = None,
    kind: Kind = "mean",
    random_sets: int = RANDOM_SETS,
    level: float = 0.05,
    least: float = LEAST,
    draws: int = 2000,
    right: Graded | Tensor | None = None,
    seed: int = 0,
    memory_gb: float | None = None,
    progress: Progress | None = None,
) -> RelationHeads:
    """The attention of every head from a word to the word it is related to, against unrelated words at the same distance.

    Heads are selected on one half of the questions, by a permutation test over all heads at once (each question's sign is
    drawn at random, the largest standardised auroc of all heads is compared), and reported on the other. Then the `heads`
    strongest of them below the probe's depth are ablated at all positions of the other half, and a linear probe that was
    trained on the first half for how two words are related reads the residual stream; compared with as many random heads of
    the same layers (docs/protocol.md, E10, an operational definition: the authors released none).

    examples: whose style, ontology and demonstrations the questions take; None: as `cot.task.relations.make_questions` has it.
    questions: how many to make, or your own. shots: demonstrations before it.
    depth: the probe's, 1 (after layer 0) .. n_layers; None: 14 of 32, in proportion. kind: what an ablated head is replaced
        by: its "mean" over the choosing half (the first position has its own), or "zero".
    random_sets: how many random sets of heads. level: of the test. least: the score that a head needs besides. draws: of
        signs.
    right: not used: pairs are in the question, and no answer is predicted.
    Raises TypeError or ValueError naming the argument.
    Cost: one pass of each question; half of them again up to the probe's depth for each set of heads. T weights for each
    head and row that is looked at, a layer at a time. Memory: a batch of queries, z and residual streams.
    """
    check_common(model, seed=seed, memory_gb=memory_gb)
    cfg = model.cfg
    one_of("kind", kind, get_args(Kind))
    at = max(1, round(14 / 32 * cfg.n_layers)) if depth is None else int(depth)
    if not 1 <= at <= cfg.n_layers:
        raise ValueError(f"depth: got {depth}; expected a number in 1..{cfg.n_layers}")
    for name, value, lowest in (("heads", heads, 1), ("random_sets", random_sets, 1), ("draws", draws, 20)):
        check_integer(value, name, lowest)
    between("level", level, 0, 1)
    kept = questions_of(model, examples, questions, shots=shots, least=8, seed=seed)
    choose, report = bootstrap.halves(len(kept), seed=seed)
    rng = np.random.default_rng(seed)
    with metered(model) as meter:
        seen = _look(model, kept, at, choose, memory_gb, progress)
        score, auroc, mean = _scores(kept, seen.weight, seen.lift)
        p = np.stack([sign_flip(auroc[choose, r] - 0.5, flips=draws, seed=seed) for r in range(len(RELATIONS))])
        strong = nanmean(score[choose])
        selected = (p < level) & (strong >= least)
        strength = np.where(selected[0], strong[0], -np.inf)[:at]
        order = np.argsort(-strength.ravel(), kind="stable")[: min(heads, int(np.isfinite(strength).sum()))]
        sets = head_sets([divmod(int(i), cfg.n_heads) for i in order], cfg, at, random_sets, rng)
        fill = None if kind == "zero" else seen.mean_z
        accuracy, margin = probed(model, kept, seen.rows, at, choose, report, sets, fill, seed, memory_gb)
    if progress is not None:
        progress(1.0, 1.0)
    axes = ("example", "relation", "layer", "head")
    half = np.full(len(kept), "report", dtype=object)
    half[choose] = "choose"
    data = {
        "attention": (("example", "class", "layer", "head"), mean),
        "score": (axes, score),
        "auroc": (axes, auroc),
        "p": (axes[1:], p),
        "selected": (axes[1:], selected),
        "accuracy": (("example", "run"), accuracy),
        "margin": (("example", "run"), margin),
        "half": ("example", half.astype(str)),
        **pair_table(kept),
    }
    coords = {
        "example": np.arange(len(kept)),
        "relation": list(RELATIONS),
        "class": list(CLASSES),
        "layer": np.arange(cfg.n_layers),
        "head": np.arange(cfg.n_heads),
        "run": ["whole", *sets],
    }
    settings = {
        "questions": len(kept), "shots": shots, "heads": heads, "ablated": len(order), "depth": at, "kind": kind,
        "random_sets": random_sets, "level": level, "least": least, "draws": draws, "seed": seed,
    }  # fmt: skip
    words = "attention from a word's last piece to all pieces of the earlier word, less that of unrelated words at the same "
    words += "distance; heads selected on the other half"
    n_pairs = sum(len(q.pairs) for q in kept)
    facts = RelationHeads.facts(model, examples, len(kept), n_pairs, words, settings, meter)
    return RelationHeads(xr.Dataset(data, coords=coords), facts)


# ---- what heads look at --------------------------------------------------------------------------------------------


class _Seen(NamedTuple):
    weight: list[NDArray]  # by question [pairs, L, H]: attention to the pieces of the first word
    lift: list[NDArray]  # the same in multiples of even attention
    rows: list[Rows]  # by question, at the probe's depth
    mean_z: Tensor  # [L, 2, H, D]: of the first position, of all others; over the choosing half


def _look(
    model: Model, questions: Sequence[Question], depth: int, choose: NDArray, memory_gb: float | None, progress: Progress | None
) -> _Seen:
    cfg, family = model.cfg, model.family
    weight, lift, rows = [], [], []
    total = torch.zeros(cfg.n_layers, 2, cfg.n_heads, cfg.d_head, dtype=family.resid_dtype, device=model.device)
    count = torch.zeros(2)
    chosen = set(choose.tolist())
    for i, acts in runs(model, questions, ("q", "z", "resid_post"), memory_gb=memory_gb, whole=True):
        pairs = questions[i].pairs
        read = sorted({p.second.stop - 1 for p in pairs})
        found = np.zeros((len(pairs), cfg.n_layers, cfg.n_heads))
        for l in range(cfg.n_layers):
            pattern = acts.pattern(l, read)  # [rows, H, T]
            for j, p in enumerate(pairs):
                found[j, l] = pattern[read.index(p.second.stop - 1), :, p.first].sum(-1).cpu().numpy()
            if i in chosen:
                z = acts.everywhere("z", l).to(family.resid_dtype)
                total[l, 0] += z[0]
                total[l, 1] += z[1:].sum(0)
        if i in chosen:
            count += torch.tensor([1.0, len(acts) - 1.0])
        even = np.array([(p.first.stop - p.first.start) / p.second.stop for p in pairs])
        weight.append(found)
        lift.append(found / even[:, None, None])
        where = read_positions(questions[i])
        rows.append((where, acts.at("resid_post", depth - 1, where).float().cpu().numpy()))
        if progress is not None:
            progress(0.6 * (i + 1) / len(questions), 1.0)
    mean = total / count.to(total.dtype).to(total.device)[None, :, None, None]
    return _Seen(weight, lift, rows, mean)


def _scores(questions: Sequence[Question], weight: list[NDArray], lift: list[NDArray]) -> tuple[NDArray, NDArray, NDArray]:
    """score and auroc [questions, relation, L, H], attention [questions, class, L, H]; NaN where a question lacks a class."""
    shape = weight[0].shape[1:]
    score, auroc = np.full((2, len(questions), len(RELATIONS), *shape), np.nan)
    mean = np.full((len(questions), len(CLASSES), *shape), np.nan)
    for i, question in enumerate(questions):
        labels = np.array([p.label for p in question.pairs])
        matched = np.array([p.matched for p in question.pairs])
        for c in set(labels.tolist()):
            mean[i, c] = weight[i][labels == c].mean(0)
        for r in range(len(RELATIONS)):
            here, other = labels == r, (labels == 2) & ((matched == r) | (matched < 0))
            if here.any() and other.any():
                score[i, r] = weight[i][here].mean(0) - weight[i][other].mean(0)
                a, b = lift[i][here][:, None], lift[i][other][None]
                auroc[i, r] = ((a > b) + 0.5 * (a == b)).mean((0, 1))
    return score, auroc, mean


def cost(
    cfg: ModelConfig,
    workload: Workload,
    *,
    questions: int = QUESTIONS,
    length: float | None = None,
    shots: int = 0,
    depth: int | None = None,
    random_sets: int = RANDOM_SETS,
) -> Cost:
    """Predicted, heads being selected. length: mean tokens of a question after the demonstrations; None: as long as an
    example with two hops."""
    length = question_length(workload) if length is None else length
    at = max(1, round(14 / 32 * cfg.n_layers)) if depth is None else depth
    shared = workload.shared if shots else 0
    again = (shared + (questions - questions // 2) * length) * (1 + random_sets) * at / cfg.n_layers
    return rows_cost(cfg, shared + questions * length + again, forwards=questions)


def authors_cost(
    cfg: ModelConfig, workload: Workload, *, questions: int = QUESTIONS, length: float | None = None, shots: int = 0
) -> Cost:
    """One forward of the full prompt for each question (the authors released no code)."""
    return every_forward(cfg, workload, questions, length, shots)


ANALYSIS = Description(RelationHeads, relation_heads, cost=cost, authors=authors_cost, claims=("movers",), steps=False)
