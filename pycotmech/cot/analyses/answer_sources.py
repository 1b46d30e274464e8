"""Finds where each pathway takes the answer from: question, generated text or few-shot block (docs/protocol.md, E8).

A place counts if the answer's word is there, in any number or case, rather than its token id: at the beginning of a line or a
sentence the word has another id. A pathway is followed along values, by which content moves; queries and keys only decide where
a head looks. To measure whether the places matter, heads are then kept from looking at them.

Both have a control, the places beside: in the same part of the prompt, the nearest places of other words of the question, as
many as those of the answer's word, and of the same kind of word if there is one. A pathway leads somewhere whatever it carries,
so a place is a source only if it is reached more often than the places beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pycotmech._choices import check_choice
from pycotmech.cot.analyses import information_flow
from pycotmech.cot.task.other_words import beside
from pycotmech.cot.tools.activations import SEGMENTS, Prompt, by_example
from pycotmech.cot.tools.cells import choose
from pycotmech.cot.tools.cost import Cost, Workload, metered, rows_cost
from pycotmech.cot.tools.flow_graph import Graph
from pycotmech.cot.tools.registry import Description
from pycotmech.cot.tools.result import Analysis, Progress, columns, counting, headline, labelled
from pycotmech.engine.joins import N_CONTROLS, N_JITTERED, N_SELF_PATCHES
from pycotmech.model.arguments import check_common
from pycotmech.model.config import ModelConfig
from pycotmech.model.prompts import ranges_of
from pycotmech.patching import Edit, Variant, sweep
from pycotmech.stats import bootstrap

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.cot.analyses.information_flow import InformationFlow
    from pycotmech.cot.task.examples import Examples
    from pycotmech.cot.task.steps import Graded
    from pycotmech.model import Model

NONE = "none"
PLACES = (*SEGMENTS, NONE)
SCOPES = ("writers", "read", "everywhere")
OTHER_WORDS = "by construction: its words are others"


def pathway_source(graph: Graph, writer: int, prompt: Prompt, spans: Sequence[slice] | None = None) -> str:
    """The part of the prompt from which a writer (or any node, by its number) has most of the answer, by the weights of the
    edges that end at the answer's word; "none" if its pathway reaches no such place or two parts tie.

    Only this pathway's own edges count, those by queries and keys left out. spans: other places to ask of; None: where the
    answer's word stands.
    """
    spans = prompt.occurrences if spans is None else spans
    sums: dict[str, float] = {}
    todo, seen = [writer], {writer}
    while todo:
        for edge in graph.of(todo.pop()):
            if edge.input not in ("v", ""):
                continue
            if any(span.start <= edge.position < span.stop for span in spans):
                name = prompt.segment_of(edge.position)
                weight = abs(edge.weight) if np.isfinite(edge.weight) else edge.attention
                sums[name] = sums.get(name, 0.0) + weight
            if edge.child >= 0 and edge.child not in seen:
                seen.add(edge.child)
                todo.append(edge.child)
    best = sorted(sums.values(), reverse=True)
    if not best or (len(best) > 1 and best[0] == best[1]):
        return NONE
    return max(sums, key=lambda name: sums[name])


def controls(prompt: Prompt, part: str) -> list[slice]:
    """The places beside the answer's word in one part of the prompt: of other words, as near and as many (`beside`)."""
    where = prompt.segments[part]
    at = [span for span in prompt.occurrences if prompt.segment_of(span.start) == part]
    return beside(at, prompt.others, range(where.start, min(where.stop, prompt.read)))


def cuts(
    prompt: Prompt, writers: Sequence[tuple[int, int]], n_layers: int, *, seed: int = 0
) -> list[tuple[str, str, str, Variant]]:
    """Edits that keep heads from looking at the answer's word in one part of the prompt: [(scope, part, kind, variant), ...].

    scope: "writers", these heads where the answer is predicted; "read", all heads there; "everywhere", all heads at all
    positions after each occurrence. kind: "answer", or "control": the places beside it (`controls`), or as many other
    positions of the same part, drawn with the seed, where the question's other words are not known.
    """
    out = []
    rng = np.random.default_rng(seed)
    for name, where in prompt.segments.items():
        at = [p for span in prompt.occurrences for p in range(span.start, span.stop) if prompt.segment_of(p) == name]
        others = [p for p in range(where.start, where.stop) if not prompt.holds_answer(p) and 0 < p < prompt.read]
        at = [p for p in at if p < prompt.read]
        if not at:
            continue
        drawn = sorted(int(p) for p in rng.choice(others, size=min(len(at), len(others)), replace=False)) if others else []
        if prompt.others:
            drawn = sorted(p for span in controls(prompt, name) for p in range(span.start, span.stop))
        for kind, keys in (("answer", at), ("control", drawn)):
            if not keys:
                continue
            made: dict[str, list[Edit]] = {"writers": [], "read": [], "everywhere": []}
            made["writers"] = [Edit("edge", l, head=h, positions=[prompt.read], keys=keys) for l, h in writers]
            for l in range(n_layers):
                made["read"].append(Edit("edge", l, positions=[prompt.read], keys=keys))
                made["everywhere"] += [
                    Edit("edge", l, positions=range(b, prompt.read + 1), keys=range(a, b)) for a, b in ranges_of(keys)
                ]
            out += [(scope, name, kind, Variant(tuple(e), f"{scope} {name} {kind}")) for scope, e in made.items() if e]
    return out


@dataclass(frozen=True, eq=False)
class AnswerSources(Analysis):
    """Places from which pathways take the answer, and what cutting these places off costs.

    data:

    * pathways [example, step, place]: number of writers that have the answer from few_shot, question, generated, or "none".
      control_pathways, same axes: the number that reach the words beside the answer's.
    * by_head [example, step, layer, head, place]: number of nodes of each head, at any position and depth, that have
      the answer from each place, by their own pathways.
    * occurrences [example, step, segment]: how often the answer's word occurs in each part.
    * drop, control_drop [example, step, scope, segment]: by how much the answer's probability falls if heads cannot look at the
      word there, or at as many words beside it; NaN if the word does not occur there. scope: the writers where the answer is
      predicted, all heads there, or all heads anywhere after the word.
    * probability [example, step]: of the answer.
    """

    name = "answer_sources"
    title = "Where the answer is taken from"
    source = "E8, answer sources"
    label, share, by_size = "share of pathways", True, False
    ranges: ClassVar = {
        **dict.fromkeys(("pathways", "control_pathways", "occurrences"), bootstrap.COUNT),
        **dict.fromkeys(("drop", "control_drop"), bootstrap.SHARES_APART),
        "probability": bootstrap.SHARE,
    }

    def shares(self, variable: str = "pathways") -> xr.Dataset:
        """Share of pathways by place: mean, low, high, n [step, place], a ratio of means over examples.

        variable: "pathways", or "control_pathways" for the words beside the answer's.
        """
        check_choice("variable", variable, ("pathways", "control_pathways"))
        number = self.data[variable].transpose("example", "step", "place")
        total = number.sum("place", skipna=False).values[..., None] + 0 * number.values
        return labelled(bootstrap.ratio_interval(number.values, total, within=bootstrap.SHARE), number)

    def beyond(self, of: str = "difference", *, level: float = bootstrap.LEVEL) -> xr.Dataset:
        """By how much the share of pathways that lead to a part exceeds the share that lead beside the word there: mean, low,
        high, n [step, segment], over the examples with pathways in which the word stands in the question and in the generated
        text; where it does not stand in both, there is no choice of a source.

        of: "difference"; or "pathways" or "control_pathways", the one share or the other. level: of the intervals.
        """
        check_choice("of", of, ("difference", "pathways", "control_pathways"))
        d = self.data.transpose("example", "step", ...)
        total = d["pathways"].sum("place", skipna=False)
        counts = (d["occurrences"].sel(segment=["question", "generated"]) > 0).all("segment") & (total > 0)
        number = d["pathways"] - d["control_pathways"] if of == "difference" else d[of]
        number = number.sel(place=list(SEGMENTS)).rename(place="segment").where(counts)
        within = None if of == "difference" else bootstrap.SHARE  # examples that agree on a difference decide its sign
        below = total.values[..., None] + 0 * number.values
        return labelled(bootstrap.ratio_interval(number.values, below, within=within, level=level), number)

    def beyond_in_each(self, places: Sequence[str]) -> NDArray[np.float64]:
        """`beyond` of each example by itself, in the one of these places that has least on average: [example], over the steps
        that count there; NaN without any."""
        d = self.data.transpose("example", "step", ...)
        total = d["pathways"].sum("place", skipna=False)
        counts = (d["occurrences"].sel(segment=["question", "generated"]) > 0).all("segment") & (total > 0)
        share = ((d["pathways"] - d["control_pathways"]) / total.where(counts)).sel(place=list(places))
        by_place = share.mean("step")
        return by_place.isel(place=int(by_place.mean("example").fillna(np.inf).argmin("place"))).values

    def majority(self) -> xr.DataArray:
        """The part of the prompt that most of a head's nodes have the answer from, over all examples: [step, layer, head] of
        few_shot, question, generated; "none" where the head is in no graph, reaches no place with the answer's word, or two
        parts tie."""
        number = self.data["by_head"].sel(place=list(SEGMENTS)).sum("example").transpose("step", "layer", "head", "place")
        most = number.max("place")
        alone = (most > 0) & ((number == most).sum("place") == 1)
        names = np.array(SEGMENTS)[number.argmax("place").values]
        return most.copy(data=np.where(alone.values, names, NONE))

    @property
    def in_shots(self) -> bool:
        """Whether the answer's word occurs in the few-shot block of any prompt; in prompts of the task it does not."""
        return bool(self.data["occurrences"].sel(segment="few_shot").sum() > 0)

    def map(self, *, path: str | PathLike | None = None) -> Figure:
        """For each step a map of the heads, coloured by `majority`: red few-shot, blue question, green generated, white none or
        a tie (docs/protocol.md, E8, the paper's colours)."""
        from pycotmech.cot.analyses.answer_sources_figure import source_maps

        n = self.data["pathways"].isel(place=0).notnull().sum("example").transpose("step").values
        shown = np.flatnonzero(n > 0)
        steps, kinds = self.data["step"].values, self.data["kind"].values
        about = "for each head the part of the prompt that most of its nodes have the answer from, white: none or a tie; "
        return source_maps(
            self.majority().transpose("step", "layer", "head").values[shown],
            SEGMENTS,
            titles=[f"{steps[i]} {kinds[i]}\nn = {n[i]}" for i in shown],
            title=f"{self.about['model']}: where each head gets the answer from",
            lines=self.small_print("probability", about),
            path=path,
        )

    def figures(self) -> Mapping[str, Callable[..., Figure]]:
        return {"map": self.map}

    def shown(self) -> xr.Dataset:
        return self.shares()

    def table(self) -> pd.DataFrame:
        """One row per step and part: pathways, share, beside (the share of pathways to the words beside it), occurrences,
        drop by scope, control (control_drop) by scope, n. The interval of share is low and high, that of the others has their
        name as a prefix."""
        import pandas as pd

        share, null = self.shares(), self.shares("control_pathways")
        number, occurs = self.interval("pathways"), self.interval("occurrences")
        cut = {"drop": self.interval("drop"), "control": self.interval("control_drop")}
        rows = []
        for i, step in enumerate(self.data["step"].values):
            for name in PLACES:
                one = share.isel(step=i).sel(place=name)
                row: dict[str, Any] = {"step": int(step), "kind": str(self.data["kind"].values[i]), "place": name}
                row |= columns("pathways", number.isel(step=i).sel(place=name))
                row |= headline("share", one)
                row |= columns("beside", null.isel(step=i).sel(place=name))
                if name != NONE:
                    row |= columns("occurrences", occurs.isel(step=i).sel(segment=name))
                    for scope in SCOPES:
                        for what, found in cut.items():
                            row |= columns(f"{what}_{scope}", found.isel(step=i).sel(scope=scope, segment=name))
                rows.append(row | {"n": int(one["n"])})
        return pd.DataFrame(rows)

    def plot(self, *, path: str | PathLike | None = None) -> Figure:
        """Pathways by source at each step, and what cutting each part off costs the answer."""
        from pycotmech.figures.bars import bars_with_intervals, stacked_bars
        from pycotmech.figures.frame import PALETTE, framed, saved

        steps, title = self.step_ticks(), f"{self.about['model']}: {self.title.lower()}"
        figure, axes = framed(1, 4, title, self.small_print("probability", marks="bars"), width=3.5, height=3.0)
        shares = self.shares()["mean"].transpose("step", "place").values
        stacked_bars(axes[0, 0], shares, steps, PLACES, title="pathways by source", across="step", up="share of writers")
        axes[0, 0].legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=2)
        found = self.interval("drop")
        words = {
            "writers": "writers cannot attend there",
            "read": "no head can, at the end",
            "everywhere": "no head can, anywhere",
        }
        for j, scope in enumerate(SCOPES):
            grids = found.sel(scope=scope).transpose("segment", "step")
            title = f"{words[scope]}:\nfall of the answer's probability"
            bars_with_intervals(axes[0, j + 1], grids, steps, names=SEGMENTS, colours=PALETTE, title=title, across="step")
            axes[0, j + 1].set_ylim(-0.1, 1.05)
        handles, names = axes[0, 1].get_legend_handles_labels()
        axes[0, 1].legend(handles, [x.replace("_", "-") for x in names], fontsize=7, frameon=False)
        return saved(figure, path)

    def findings(self) -> list[str]:
        """For each kind of step, the sources of the pathways and what cutting them off costs."""
        out = []
        for kind in dict.fromkeys(map(str, self.data["kind"].values)):
            here = self.data.isel(step=[i for i, k in enumerate(self.data["kind"].values) if str(k) == kind])
            number = here["pathways"].sum("step", min_count=1).transpose("example", "place").values
            share = bootstrap.ratio_interval(number, number.sum(-1, keepdims=True) + 0 * number, within=bootstrap.SHARE)
            words = [
                f"{p.replace('_', '-')} {_percent(share, i)}" for i, p in enumerate(PLACES) if p != "few_shot" or self.in_shots
            ]
            if not self.in_shots:
                words.append(f"few-shot block none, {OTHER_WORDS}")
            n = int(share.n.max())
            line = f"{kind} steps (n = {n} examples): writers have the answer from {', '.join(words)}"
            cut = here["drop"].sel(scope="everywhere").mean("step").transpose("example", "segment").values
            aside = here["control_pathways"].sum("step", min_count=1).transpose("example", "place").values
            null = bootstrap.ratio_interval(aside, number.sum(-1, keepdims=True) + 0 * aside, within=bootstrap.SHARE)
            reached = ", ".join(
                f"{p.replace('_', '-')} {_percent(null, i)}" for i, p in enumerate(PLACES) if p in ("question", "generated")
            )
            line += f"; by the same count from the words beside it: {reached}" if null.n.any() else ""
            other = here["control_drop"].sel(scope="everywhere").mean("step").transpose("example", "segment").values
            fall, control = (bootstrap.mean_interval(x, within=bootstrap.SHARES_APART) for x in (cut, other))
            costs = [
                f"{_points(fall, i)} in the {s.replace('_', '-')} text (the words beside it: {_points(control, i)})"
                for i, s in enumerate(SEGMENTS)
                if fall.n[i]
            ]
            out.append(
                line
                + (
                    f"; if attention to its word is blocked in all heads, its probability falls by {', '.join(costs)}"
                    if costs
                    else ""
                )
            )
        return out


def _points(found: bootstrap.Interval, i: int) -> str:
    """A difference of two shares."""
    if not np.isfinite(found.mean[i]):
        return "-"
    ends = bootstrap.ends(100 * found.low[i], 100 * found.high[i], "{:.0f}")
    return f"{100 * found.mean[i]:.0f}{ends} percentage points"


def _percent(found: bootstrap.Interval, i: int) -> str:
    if not np.isfinite(found.mean[i]):
        return "-"
    return f"{found.mean[i]:.0%}{bootstrap.ends(found.low[i], found.high[i])}"


def answer_sources(
    model: Model,
    examples: Examples,
    *,
    steps: Sequence[int] | None = None,
    right: Graded | Tensor | None = None,
    flow: InformationFlow | None = None,
    seed: int = 0,
    memory_gb: float | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> AnswerSources:
    """From which part of the prompt the writers have the answer, and what it costs to cut each part off.

    steps, right: which cells, as in `cells.choose`. flow: graphs that `information_flow` made of the same examples; None:
    they are made here, with `options`. seed: of the control positions.
    Returns `AnswerSources`. Raises ValueError naming the argument.
    Cost: that of the graphs, and for each cell up to 18 variants, half of them from the word's first occurrence on.
    """
    check_common(model, seed=seed, memory_gb=memory_gb)
    if flow is not None and options:
        raise ValueError(f"{', '.join(options)}: only used without flow=; expected none of them")
    cells = choose(model, examples, steps=steps, right=right)
    if flow is not None:
        have = set(flow.cells())
        missing = [(c.example.index, c.step.index) for c in cells if (c.example.index, c.step.index) not in have]
        if missing:
            raise ValueError(
                f"flow: holds no graph of (example, step) {missing[:3]}; expected graphs of these examples and steps"
            )
    S = len(SEGMENTS)
    data = {
        "pathways": cells.empty(len(PLACES)),
        "control_pathways": cells.empty(len(PLACES)),
        "occurrences": cells.empty(S),
        "probability": cells.empty(),
    }
    data["by_head"] = cells.empty(model.cfg.n_layers, model.cfg.n_heads, len(PLACES))
    data |= {"drop": cells.empty(len(SCOPES), S), "control_drop": cells.empty(len(SCOPES), S)}
    tick = counting(progress, len(cells))
    with metered(model) as meter:
        if flow is None:
            flow = information_flow.information_flow(
                model, examples, steps=steps, right=right, total=False, seed=seed, memory_gb=memory_gb, **options
            )
        for group in by_example(cells, model.tokenizer):
            for cell, prompt in group:
                graph, at = flow.graph(cell.example.index, cell.step.index), (cell.e, cell.s)
                found = [pathway_source(graph, w, prompt) for w in graph.writers]
                data["pathways"][at] = [found.count(name) for name in PLACES]
                aside = [span for name in prompt.segments for span in controls(prompt, name)]
                found = [pathway_source(graph, w, prompt, aside) for w in graph.writers]
                data["control_pathways"][at] = [found.count(name) for name in PLACES]
                data["by_head"][at] = 0
                for i, node in enumerate(graph.nodes):
                    data["by_head"][(*at, node.layer, node.head, PLACES.index(pathway_source(graph, i, prompt)))] += 1
                data["occurrences"][at] = [
                    sum(prompt.segment_of(span.start) == name for span in prompt.occurrences) for name in SEGMENTS
                ]
                writers = [(graph.nodes[w].layer, graph.nodes[w].head) for w in graph.writers]
                made = cuts(prompt, writers, model.cfg.n_layers, seed=seed + 1000 * cell.example.index + cell.step.index)
                if made:
                    variants = [variant for *_, variant in made]
                    result = sweep(
                        model, prompt.tokens, variants, metric="prob", answer=prompt.answer, memory_gb=memory_gb, seed=seed
                    )
                    data["probability"][at] = result.base_metric
                    for (scope, name, kind, _), effect in zip(made, result.effect, strict=True):
                        which = "drop" if kind == "answer" else "control_drop"
                        data[which][(*at, SCOPES.index(scope), SEGMENTS.index(name))] = -effect
                tick()
    dims = {
        "pathways": ("place",),
        "control_pathways": ("place",),
        "by_head": ("layer", "head", "place"),
        "occurrences": ("segment",),
        "probability": (),
    }
    dims |= dict.fromkeys(("drop", "control_drop"), ("scope", "segment"))
    variables = {name: (("example", "step", *dims[name]), value) for name, value in data.items()}
    axes = {"place": PLACES, "segment": SEGMENTS, "scope": SCOPES, "layer": model.cfg.n_layers, "head": model.cfg.n_heads}
    settings = {"steps": list(cells.steps), "flow": flow.about["settings"], "seed": seed}
    words = f"graphs: {flow.about['definition']}; places by word"
    return AnswerSources.made(model, cells, variables, axes, words, settings, meter)


def cost(cfg: ModelConfig, workload: Workload, *, flow: object = None, **options) -> Cost:
    """Predicted: the graphs without their sweeps, and for two parts of the prompt the variants of each cell: those that
    reach everywhere take rows from the first occurrence on."""
    out = Cost() if flow is not None else information_flow.cost(cfg, workload, total=False, **options)
    controls = N_SELF_PATCHES / 2 + N_JITTERED  # self-patches join at all layers, jittered copies at the first
    rows = workload.cells * (workload.suffix * (1 + 3.0 + controls) + N_CONTROLS)
    return out + rows_cost(cfg, rows, read=workload.cells * 20, passes=8 * workload.cells)  # both runs, two parts, controls


def authors_cost(cfg: ModelConfig, workload: Workload, **options) -> Cost:
    """Nothing: the authors read sources off the graphs that they have, and cut nothing. What the graphs took is counted once,
    by `information_flow.authors_cost`."""
    return Cost()


ANALYSIS = Description(
    AnswerSources,
    answer_sources,
    cost=lambda cfg, w: cost(cfg, w, flow=True),
    authors=authors_cost,
    needs=("information_flow",),
    claims=("sources",),
    order=2,
    how=lambda given, progress: given.call(answer_sources, progress, flow=given.done["information_flow"]),
)
