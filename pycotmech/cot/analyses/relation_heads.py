"""Finds heads that attend along the relations of the ontology, and what a probe loses without them (docs/protocol.md, E10).

A head that looks back within a sentence attends from its object to its subject whatever the sentence says. The attention in the
same sentences with another verb ("Every lempus fears a tumpus.") is therefore subtracted: the same pairs of words then stand
in the same roles at the same distance, but are not related.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pycotmech._choices import check_choice
from pycotmech._words import plural
from pycotmech.cot.task.relations import CLASSES, Question
from pycotmech.cot.tools.checks import between
from pycotmech.cot.tools.cost import Cost, Workload, metered, rows_cost
from pycotmech.cot.tools.head_choice import lower_shares, placed_at_random, share_interval
from pycotmech.cot.tools.head_probe import head_sets, probed
from pycotmech.cot.tools.question_runs import every_forward, pair_table, question_length, questions_of
from pycotmech.cot.tools.registry import Description
from pycotmech.cot.tools.relation_tests import RELATIONS, RelationTests, differences, relation_scores
from pycotmech.cot.tools.result import Analysis, Progress, columns, in_words, labelled, top_cells
from pycotmech.cot.tools.word_attention import look, with_others
from pycotmech.model.arguments import check_common, check_integer
from pycotmech.model.config import ModelConfig
from pycotmech.stats import bootstrap
from pycotmech.stats.averages import nanmean

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.cot.task.examples import Examples
    from pycotmech.cot.task.steps import Graded
    from pycotmech.model import Model

QUESTIONS, HEADS, RANDOM_SETS, VERBS = 64, 10, 5, 2
_SHARE_DRAWS, _SHARE_FLIPS = 200, 500
LEAST = 0.05
"""Least excess of a head's attention along relations over that elsewhere. A difference far below may be significant but moves
nothing."""
Kind = Literal["mean", "zero"]


class RelationHeads(Analysis):
    """Attention from the last token of the later word to all tokens of the earlier one.

    data, by example (question):

    * `attention` [.., class, layer, head]: mean over the question's pairs.
    * `score` [.., relation, layer, head]: attention over related (or negated) pairs minus that over unrelated pairs at the same
      distance.
    * `auroc` [.., relation, layer, head]: how often a related pair gets more attention than an unrelated one. Attention is in
      multiples of even attention, so that the amount of text before does not matter.
    * `null` [.., verb, relation, layer, head]: the score of the same words in the same sentences with another verb, scaled as
      if that verb got as much attention as the question's own. The gain is the score minus the null.
    * `half`: "choose" or "report".
    * `accuracy`, `margin` [.., run]: of a probe on the residual stream, in the whole run and with heads ablated, with all
      classes weighted alike; NaN on the choosing half, on which the probe was trained. margin is the logit of the true class
      minus the mean of the others.

    `looks` [relation, layer, head]: whether, on the choosing half, the auroc is above chance and the score at least `least`.
    `selected`: whether the gain over each verb is too. `p`: the largest p-value of these tests, each over all heads together.
    `split` [split, relation], `drawn` [draw, relation]: the share of the selected heads' gain in the first half of the layers,
    for other halves and for resampled ones (`cot.tools.head_choice`).
    """

    name, title = "relation_heads", "Heads that attend along the relations of the ontology"
    source = "E10 (operational definition)"
    label = "score less its null"
    ranges: ClassVar = {
        **dict.fromkeys(("attention", "auroc", "accuracy"), bootstrap.SHARE),
        **dict.fromkeys(("score", "null"), bootstrap.SHARES_APART),
    }

    @property
    def verbs(self) -> str:
        """The other verbs, in words."""
        return " or ".join(map(str, self.data["verb"].values))

    @property
    def gain(self) -> xr.DataArray:
        """The score minus the mean of its nulls [example, relation, layer, head]."""
        return (self.data["score"] - self.data["null"].mean("verb")).transpose("example", "relation", "layer", "head")

    def reported(self, variable: str) -> xr.DataArray:
        """Returns a variable, or the "gain", on the reporting half."""
        values = self.gain if variable == "gain" else self.data[variable]
        return values.isel(example=np.flatnonzero(self.data["half"].values == "report"))

    def scores(self, variable: str = "score") -> xr.Dataset:
        """Returns the mean over the reporting half with its interval: mean, low, high, n [relation, layer, head]."""
        here = self.reported(variable).transpose("example", ...)
        return labelled(bootstrap.mean_interval(here.values, within=self.ranges.get(variable)), here)

    def heads(self, relation: str = "related") -> list[tuple[int, int]]:
        """Returns the selected heads [(layer, head), ...], those with the largest gain on the choosing half first."""
        chosen = self.data["selected"].sel(relation=relation)
        choosing = self.gain.sel(relation=relation).isel(example=np.flatnonzero(self.data["half"].values == "choose"))
        mean = choosing.mean("example").where(chosen)
        return [(int(l), int(h)) for l, h, _ in top_cells(mean, int(chosen.sum()))]

    def least_p(self, relation: str = "related") -> float:
        """Returns the smallest p-value that any head can have: 2^-n with n questions to choose on. Above the tests' level, that
        no head is found says nothing."""
        scores = self.data["score"].sel(relation=relation).isel(example=np.flatnonzero(self.data["half"].values == "choose"))
        return 2.0 ** -int(scores.notnull().any(("layer", "head")).sum())

    def first_half(self, relation: str = "related") -> bootstrap.Interval:
        """Returns the share of the selected heads' positive gain that lies in the first half of the layers.

        It is the mean over splits into halves to select and to report on. For its interval the halves are resampled and the
        selection is repeated. NaN without selected heads, and in a model of one layer.
        """
        if not self.heads(relation) or self.data.sizes["layer"] == 1:
            nan = np.array(np.nan)
            return bootstrap.Interval(nan, nan, nan, np.array(0))
        split, drawn = (self.data[name].sel(relation=relation).values for name in ("split", "drawn"))
        return share_interval(split, drawn, self.data.sizes["example"])

    def anywhere(self, relation: str = "related") -> NDArray[np.float64]:
        """Returns the share of `first_half` if the selected heads, with their gains, were placed at random among all heads:
        [draws]; empty without selected heads."""
        gain = self.reported("gain").mean("example").sel(relation=relation)
        weights = np.array([max(float(gain.sel(layer=l, head=h)), 0.0) for l, h in self.heads(relation)])
        if not weights.sum() > 0:
            return np.zeros(0)
        return placed_at_random(weights, (gain.sizes["layer"], gain.sizes["head"]))

    def stays(self, relation: str = "related") -> bootstrap.Interval:
        """Returns what share of the score of the heads in `looks` remains with other verbs, on the reporting half with its
        interval; NaN without such heads."""
        looks = self.data["looks"].sel(relation=relation)
        score, gain = (self.reported(k).sel(relation=relation).where(looks).sum(("layer", "head")) for k in ("score", "gain"))
        if not bool(looks.any()):
            nan = np.array(np.nan)
            return bootstrap.Interval(nan, nan, nan, np.array(0))
        return bootstrap.ratio_interval((score - gain).values, score.values)

    def shown(self) -> xr.Dataset:
        return type(self)(self.data.assign(gain=self.gain), self.about).interval("gain")

    def table(self, k: int = 10) -> pd.DataFrame:
        """The k strongest selected heads of each relation: relation, rank (on the choosing half), layer, head, score, gain and
        auroc on the reporting half with their intervals, p, n."""
        import pandas as pd

        score, gain, auroc, rows = self.scores(), self.scores("gain"), self.scores("auroc"), []
        for relation in RELATIONS:
            for rank, (l, h) in enumerate(self.heads(relation)[:k], 1):
                at = {"relation": relation, "layer": l, "head": h}
                row: dict[str, object] = {"relation": relation, "rank": rank, "layer": l, "head": h}
                for name, found in (("score", score), ("gain", gain), ("auroc", auroc)):
                    row |= columns(name, found.sel(at))
                rows.append({**row, "p": float(self.data["p"].sel(at)), "n": int(score["n"].sel(at))})
        numbers = [f"{name}{end}" for name in ("score", "gain", "auroc") for end in ("", "_low", "_high")]
        return pd.DataFrame(rows, columns=["relation", "rank", "layer", "head", *numbers, "p", "n"])

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
            looking, verbs = int(self.data["looks"].sel(relation=relation).sum()), self.verbs
            text = f"{relation} pairs (n = {n}): {looking} of {count} heads attend along them"
            if (least := self.least_p(relation)) >= s["level"]:
                lines.append(f"{text}, but with so few questions to choose on no p-value can be below {least:.2g}")
                continue
            if looking:
                text += f"; with {verbs} as the verb, {self.stays(relation).words()} of their score remains"
            text += f"; {len(heads)} attend more than with each of these verbs (p < {s['level']}, by at least {s['least']})"
            if not rows:
                lines.append(text)
                continue
            best, share = rows[0], self.first_half(relation)
            lines.append(
                f"{text}; first L{best['layer']}H{best['head']}: gain over {verbs} {in_words(best, 'gain', '{:+.3f}')} of its "
                f"attention, score {in_words(best, 'score', '{:+.3f}')}, AUROC {in_words(best, 'auroc')}"
            )
            verdict = (
                "mostly there"
                if share.low > 0.5
                else "mostly in the second half"
                if share.high < 0.5
                else "not clearly in either half"
            )
            if L == 1:
                lines.append(f"{relation}: the model has one layer, so that no half of the layers can have more of the score")
                continue
            where = f"layers 0 to {L // 2 - 1} of {L}"
            lines.append(f"{relation}: {share.words()} of these heads' gain lies in {where}: {verdict}")
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
            "the probe loses more without them than without others" if more.high < 0 else
            "the probe loses less without them than without others" if more.low > 0 else "no difference beyond the interval"
        )  # fmt: skip
        changes = [in_words(row, "accuracy", "{:+.2f}") for row in (gone, other)]
        drawn = "one set" if len(randoms) == 1 else f"each question's median over {len(randoms)} sets"
        return [
            f"a probe at depth {s['depth']} has accuracy {untouched.words('{:.2f}')}; ablating "
            f"{plural(s['ablated'], 'selected head')} changes it by {changes[0]}, ablating as many random heads of the same "
            f"layers ({drawn}) by {changes[1]}",
            f"its margin changes by {gone['margin']:+.2f} and {other['margin']:+.2f}, difference "
            f"{more.words('{:+.2f}')}: {verdict}",
        ]

    def _runs(self) -> dict[str, list[str]]:
        names = self.data["run"].values.tolist()
        found = {"selected": ["selected"], "random": [r for r in names if r.startswith("random")]}
        return {k: v for k, v in found.items() if set(v) & set(names)}

    def plot(self, *, path: str | PathLike | None = None) -> Figure:
        """Maps of the gain, the selected heads framed; score and null by layer; what the probe loses without the heads."""
        from pycotmech.cot.analyses.relation_heads_figure import relation_figure

        n = int((self.data["half"].values == "report").sum())
        gain = self.scores("gain")["mean"].transpose("relation", "layer", "head")
        related = (self.reported(k).sel(relation="related").sum("head") for k in ("score", "null"))
        score, null = (x.mean([d for d in x.dims if d == "verb"]).transpose("example", "layer").values for x in related)
        return relation_figure(
            f"{self.about['model']}: {self.title}",
            [
                f"n = {n} questions to report on; bands and bars: 95 % intervals over questions; {self.about['definition']}",
                *self.about["notes"],
            ],
            maps={r: (gain.sel(relation=r).values, self.heads(r)) for r in RELATIONS},
            score=bootstrap.mean_interval(score),
            null=bootstrap.mean_interval(null),
            verbs=self.verbs,
            ablation=self.ablation(),
            depth=self.about["settings"]["depth"],
            path=path,
        )


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
    verbs: int = VERBS,
    level: float = 0.05,
    least: float = LEAST,
    draws: int = 2000,
    right: Graded | Tensor | None = None,
    seed: int = 0,
    memory_gb: float | None = None,
    progress: Progress | None = None,
) -> RelationHeads:
    """Measures the attention of every head from a word to its related word, against unrelated words at the same distance, and
    against the same words in sentences with another verb.

    Heads are selected on one half of the questions and reported on the other. The selection uses permutation tests over all
    heads at once, of the auroc and of the gain over each verb: the sign of each question is drawn at random, and the largest
    standardised statistic of all heads is compared.

    Then the `heads` strongest of them below the probe's depth are ablated at all positions of the reporting half. A linear
    probe for how two words are related, trained on the choosing half, reads the residual stream with and without them, and
    without as many random heads of the same layers. The definition is operational, since the authors released none
    (docs/protocol.md, E10).

    examples: their style, ontology and demonstrations are used for the questions; None: the defaults of
        `cot.task.relations.make_questions`.
    questions: how many to make, or your own. shots: number of demonstrations before each.
    heads: the most heads that are ablated.
    depth: of the probe, 1 (after layer 0) .. n_layers; None: 14 of 32, in proportion.
    kind: replacement of an ablated head: its "mean" over the choosing half (the first position has its own), or "zero".
    random_sets: number of random sets of heads.
    verbs: the most other verbs; questions that have `others` keep these.
    level: of the tests. least: the smallest score, and the smallest gain, of a selected head. draws: number of sign draws.
    right: not used, since pairs are in the question and no answer is predicted.
    Raises TypeError or ValueError naming the argument.
    Cost: one pass of each question and one for each verb; half of the questions again, up to the probe's depth, for each set of
    heads. T attention weights for each head and row that is read, one layer at a time. Memory: a batch of queries, z and
    residual streams.
    """
    check_common(model, seed=seed, memory_gb=memory_gb)
    cfg = model.cfg
    check_choice("kind", kind, get_args(Kind))
    at = max(1, round(14 / 32 * cfg.n_layers)) if depth is None else int(depth)
    if not 1 <= at <= cfg.n_layers:
        raise ValueError(f"depth: got {depth}; expected a number in 1..{cfg.n_layers}")
    for name, value, lowest in (
        ("heads", heads, 1),
        ("random_sets", random_sets, 1),
        ("verbs", verbs, 1),
        ("draws", draws, 20),
    ):
        check_integer(value, name, lowest)
    between("level", level, 0, 1)
    kept = questions_of(model, examples, questions, shots=shots, least=8, seed=seed)
    names, kept = with_others(model, kept, verbs)
    choose, report = bootstrap.halves(len(kept), seed=seed)
    rng = np.random.default_rng(seed)
    with metered(model) as meter:
        seen = look(model, kept, at, choose, memory_gb, progress)
        score, auroc, mean = relation_scores(kept, seen.weight, seen.lift)
        null = np.stack([differences(kept, [x[v] for x in seen.null]) for v in range(len(names))], 1)
        gain = score - null.mean(1)
        tests = RelationTests(score, auroc, null, level, least)
        p, looks, selected = tests(choose, flips=draws, seed=seed)
        shares = lower_shares(gain, lambda at: tests.selected(at, flips=_SHARE_FLIPS, seed=seed), draws=_SHARE_DRAWS, seed=seed)
        strength = np.where(selected[0], nanmean(gain[choose])[0], -np.inf)[:at]
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
        "null": (("example", "verb", *axes[1:]), null),
        "p": (axes[1:], p),
        "looks": (axes[1:], looks),
        "selected": (axes[1:], selected),
        "split": (("split", "relation"), shares.split),
        "drawn": (("draw", "relation"), shares.drawn),
        "accuracy": (("example", "run"), accuracy),
        "margin": (("example", "run"), margin),
        "half": ("example", half.astype(str)),
        **pair_table(kept),
    }
    coords = {
        "example": np.arange(len(kept)),
        "relation": list(RELATIONS),
        "class": list(CLASSES),
        "verb": list(names),
        "layer": np.arange(cfg.n_layers),
        "head": np.arange(cfg.n_heads),
        "run": ["whole", *sets],
    }
    settings = {
        "questions": len(kept), "shots": shots, "heads": heads, "ablated": len(order), "depth": at, "kind": kind,
        "random_sets": random_sets, "verbs": len(names), "level": level, "least": least, "draws": draws, "seed": seed,
    }  # fmt: skip
    words = "attention from a word's last piece to all pieces of the earlier word, less that of unrelated words at the same "
    words += f"distance and that with {' or '.join(names)} in place of the verb; heads selected on the other half"
    n_pairs = sum(len(q.pairs) for q in kept)
    facts = RelationHeads.facts(model, examples, len(kept), n_pairs, words, settings, meter)
    return RelationHeads(xr.Dataset(data, coords=coords), facts)


def cost(
    cfg: ModelConfig,
    workload: Workload,
    *,
    questions: int = QUESTIONS,
    length: float | None = None,
    shots: int = 0,
    depth: int | None = None,
    random_sets: int = RANDOM_SETS,
    verbs: int = VERBS,
) -> Cost:
    """Predicted, heads being selected. length: mean tokens of a question after the demonstrations; None: as long as an
    example with two hops."""
    length = question_length(workload) if length is None else length
    at = max(1, round(14 / 32 * cfg.n_layers)) if depth is None else depth
    shared = workload.shared if shots else 0
    again = (shared + (questions - questions // 2) * length) * (1 + random_sets) * at / cfg.n_layers
    seen = questions * (1 + verbs)
    return rows_cost(cfg, shared + seen * length + again, forwards=seen)


def authors_cost(
    cfg: ModelConfig, workload: Workload, *, questions: int = QUESTIONS, length: float | None = None, shots: int = 0
) -> Cost:
    """One forward of the full prompt for each question (the authors released no code)."""
    return every_forward(cfg, workload, questions, length, shots)


ANALYSIS = Description(RelationHeads, relation_heads, cost=cost, authors=authors_cost, claims=("movers",), steps=False)
