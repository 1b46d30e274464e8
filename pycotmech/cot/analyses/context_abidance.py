"""Measures whether what heads write occurs in the prompt, by layer (docs/protocol.md, E8, context-abidance).

A head whose output says a word of the prompt works with the context. One that says another word works from memory, or says
nothing in particular. The authors count this over the tokens passed between the nodes of their graphs. It needs no graph: the
likeliest token of each head's output, where the answer is predicted, is in the prompt or is not.

Many heads say nearly the same token in every prompt, and a token that all prompts have in common is in each. The share is
therefore compared with that of the same tokens in the prompts of other examples at the same step; the difference is the excess.
The words of the demonstrations, which all prompts share, cancel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pycotmech._choices import check_choice
from pycotmech.cot.analyses import answer_writers, information_flow
from pycotmech.cot.tools.activations import by_example, text_activations, texts_of
from pycotmech.cot.tools.cells import choose
from pycotmech.cot.tools.cost import Cost, Workload, metered
from pycotmech.cot.tools.flow_graph import Graph
from pycotmech.cot.tools.registry import Description
from pycotmech.cot.tools.result import Analysis, Progress, counting
from pycotmech.cot.tools.written import written
from pycotmech.model.arguments import check_common
from pycotmech.model.config import ModelConfig
from pycotmech.stats import bootstrap
from pycotmech.stats.change import change_point, rise_interval
from pycotmech.stats.crossed import LayerMeans

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.cot.analyses.information_flow import InformationFlow
    from pycotmech.cot.task.examples import Examples
    from pycotmech.cot.task.steps import Graded
    from pycotmech.model import Model

Depth0 = Literal["context", "leave_out"]
Share = Literal["own", "elsewhere", "excess"]
_EVEN = 1e-4
"""By so much, relative to an even share, a token has to be likelier than the others to be the likeliest one."""


class Spelling:
    """Tokens as written, without space and case, so that a word is itself at the beginning of a line too."""

    def __init__(self, tokenizer, size: int) -> None:
        self.tokenizer, self.size = tokenizer, size
        self._written: dict[int, str] = {}
        self._all: list[str] | None = None

    def of(self, token: int) -> str:
        if self.tokenizer is None:
            return str(token)
        if token not in self._written:
            self._written[token] = self.tokenizer.decode([token]).strip().lower()
        return self._written[token]

    def context(self, tokens: Tensor) -> set[str]:
        """The words of a prompt."""
        return {self.of(int(t)) for t in tokens} - {""}

    def chance(self, context: set[str]) -> float:
        """Share of the vocabulary that a context covers."""
        if self._all is None:
            self._all = [self.of(t) for t in range(self.size)]
        return sum(word in context for word in self._all) / self.size


class Contexts:
    """The words of the prompts of all cells. A cell is (example, step), by its numbers along the axes.

    prompts: each cell with its prompt's tokens.
    """

    def __init__(self, prompts: Iterable[tuple[tuple[int, int], Tensor]], spelling: Spelling) -> None:
        self._words = {at: spelling.context(tokens) for at, tokens in prompts}
        self._prompts: dict[int, int] = Counter(s for _, s in self._words)
        self._having = Counter((s, word) for (_, s), words in self._words.items() for word in words)

    def words(self, at: tuple[int, int]) -> set[str]:
        """Of one cell's prompt."""
        return self._words[at]

    def elsewhere(self, at: tuple[int, int], word: str) -> float:
        """Share of the other examples' prompts of the same step in which a word occurs; NaN if there are none."""
        others = self._prompts[at[1]] - 1
        return (self._having[at[1], word] - (word in self._words[at])) / others if others else np.nan


def of_graph(
    graph: Graph,
    at: tuple[int, int],
    contexts: Contexts,
    spelling: Spelling,
    shape: tuple[int, int],
    depth0: Depth0,
    answer: int,
) -> NDArray:
    """[3, L, H]: how often each head occurs in the graph of a cell with a token that it hands over, how often that token
    occurs in the prompt, and in how many of other examples' prompts, as a share of these. A writer hands over the answer
    and counts as in context (as the authors count) or is left out."""
    out = np.zeros((3, *shape))
    context = contexts.words(at)
    if depth0 == "context":
        also = contexts.elsewhere(at, spelling.of(answer))
        for w in graph.writers:
            out[:, graph.nodes[w].layer, graph.nodes[w].head] += (1, 1, also)
    for edge in graph.edges:
        if edge.child >= 0:
            child, word = graph.nodes[edge.child], spelling.of(edge.token)
            out[:, child.layer, child.head] += (1, word in context, contexts.elsewhere(at, word))
    return out


@dataclass(frozen=True, eq=False)
class ContextAbidance(Analysis):
    """Whether the tokens that heads write occur in their own prompt and in others.

    data [example, step, layer, head]:

    * abides: 1 if the likeliest token of the head's output occurs in the prompt, otherwise 0; NaN if the output makes no token
      likelier than another.
    * elsewhere: share of other examples' prompts of the same step in which that token occurs; NaN without any.
    * peak: that token's probability.
    * With graphs also occurs, how often the head is in the graph; in_context, how often with a token of the prompt; in_others,
      the sum of the shares of other examples' prompts in which its tokens occur.

    chance [example, step]: share of the vocabulary that occurs in the prompt.

    The excess is own minus elsewhere: 0 on average for a head whose token does not depend on the prompt. It is counted over
    graphs if there are any. Intervals resample examples and heads (`pycotmech.stats.crossed`).
    """

    name = "context_abidance"
    title = "Whether what heads write occurs in the prompt"
    source = "E8, context-abidance"
    label, share, by_size = "share of examples in which the head writes a token of the prompt", True, False
    ranges: ClassVar = {
        **dict.fromkeys(("abides", "elsewhere", "peak", "chance"), bootstrap.SHARE),
        **dict.fromkeys(("occurs", "in_context", "in_others"), bootstrap.COUNT),
    }

    @property
    def of_graphs(self) -> bool:
        return "occurs" in self.data

    def shares(self, of: Share, *, heads: bool = True, draws: int = bootstrap.DRAWS, seed: int = 0) -> LayerMeans:
        """Returns by layer the share of tokens that occur in the "own" prompt, "elsewhere", or the "excess" of one over the
        other, pooled over steps and heads, of the tokens that could be compared. heads: whether heads are resampled too."""
        return LayerMeans.of(*self._sums(of), heads=heads, draws=draws, seed=seed)

    def _sums(self, of: Share) -> tuple[NDArray, NDArray]:
        """Sums over steps [example, layer, head]: of what is asked for, and how many tokens they are of."""
        if self.of_graphs:
            own, other, counted = (self.data[k] for k in ("in_context", "in_others", "occurs"))
        else:
            own, other = self.data["abides"], self.data["elsewhere"]
            counted = own.notnull().astype(float)
        known = own.notnull() & other.notnull()
        top = {"own": own, "elsewhere": other, "excess": own - other}[of]
        top, below = (x.where(known, 0.0).sum("step").transpose("example", "layer", "head").values for x in (top, counted))
        return top, below

    def by_layer(self) -> xr.Dataset:
        """The excess by layer with its interval, and what it is the difference of: mean, low, high, n, own, elsewhere
        [layer]."""
        found = self.shares("excess").by_layer(within=bootstrap.SHARES_APART)
        out: dict[str, Any] = {k: ("layer", v) for k, v in found._asdict().items()}
        out |= {k: ("layer", self.shares(k, draws=1).curve) for k in ("own", "elsewhere")}
        return xr.Dataset(out, coords={"layer": self.data["layer"]})

    def rise(self) -> bootstrap.Interval:
        """Returns the excess in the upper half of the layers minus that in the lower, with its interval; NaN with one layer."""
        L = self.data.sizes["layer"]
        if L == 1:
            nan = np.array(np.nan)
            return bootstrap.Interval(nan, nan, nan, np.array(0))
        return self.shares("excess").rise(L // 2, within=(-2.0, 2.0))

    def rises(self) -> NDArray[np.float64]:
        """Returns `rise` of each example by itself, [example]; NaN if it has nothing to compare in one of the halves."""
        top, below = self._sums("excess")
        half = self.data.sizes["layer"] // 2
        with np.errstate(invalid="ignore", divide="ignore"):
            lower, upper = (
                top[:, part].sum((1, 2)) / below[:, part].sum((1, 2)) for part in (slice(0, half), slice(half, None))
            )
        return upper - lower

    def jump(self, *, draws: int = 500, seed: int = 0) -> bootstrap.Interval:
        """Returns the first layer of the upper part in the best split into lower and higher excess (the upward least-squares
        change point). Its interval resamples examples alone, since it is about the heads of this model.

        NaN if the excess rises nowhere, or by no more than chance (`pycotmech.stats.change.rise_interval` contains 0).
        """
        found = self.shares("excess", heads=False, draws=draws, seed=seed)
        n, layers = int(found.counts.any(-1).sum()), (1.0, self.data.sizes["layer"] - 1.0)
        at = np.array([change_point(curve) for curve in (found.curve, *found.drawn)])
        jump = found.interval(at, n, within=layers)
        if np.isnan(jump.mean) or (n > 1 and rise_interval(found.curve, found.drawn, n)[1] <= 0):
            nan = np.array(np.nan)
            return bootstrap.Interval(nan, nan, nan, jump.n)
        return jump

    def shown(self) -> xr.Dataset:
        return self.interval("abides")

    def table(self) -> pd.DataFrame:
        """One row per layer: the excess (mean) with low, high and n, and the shares own and elsewhere."""
        return self.by_layer().to_dataframe().reset_index()

    def plot(self, *, path: str | PathLike | None = None) -> Figure:
        """By layer, and by head."""
        from pycotmech.figures.curves import layer_line
        from pycotmech.figures.frame import PALETTE, framed, saved
        from pycotmech.figures.heatmap import map_of_heads

        found, title = self.by_layer(), f"{self.about['model']}: {self.title.lower()}"
        figure, axes = framed(1, 2, title, self.small_print("abides", marks="band"), width=4.6, height=3.3)
        axis, layers = axes[0, 0], np.arange(found.sizes["layer"])
        layer_line(axis, *(found[k].values for k in ("mean", "low", "high")), title="by layer", up="share of tokens")
        axis.lines[0].set_label("excess")
        for name, words, style in (("own", "in the own prompt", "-"), ("elsewhere", "in other examples' prompts", "--")):
            axis.plot(layers, found[name].values, color=PALETTE[0], linewidth=1.0, linestyle=style, label=words)
        axis.legend(fontsize=7, frameon=False)
        parts = {k: self.data[k].sum(("example", "step")) for k in ("in_context", "in_others", "occurs") if self.of_graphs}
        if self.of_graphs:
            grid = (parts["in_context"] - parts["in_others"]) / parts["occurs"].where(parts["occurs"] > 0)
        else:
            grid = (self.data["abides"] - self.data["elsewhere"]).mean(("example", "step"))
        map_of_heads(figure, axes[0, 1], grid.transpose("layer", "head").values, title="by head", label="excess")
        return saved(figure, path)

    def findings(self) -> list[str]:
        """The shares in the lower and in the upper half, the excess, and where it rises; of a model of one layer, the share."""
        L = self.data.sizes["layer"]
        what = "tokens handed over in the graphs occur" if self.of_graphs else "likeliest tokens of heads' outputs occur"
        excess = self.shares("excess").over(slice(None), within=bootstrap.SHARES_APART)
        if not excess.n:
            counted = self.data["occurs"] if self.of_graphs else self.data["abides"].notnull()
            own = float(self.data["in_context" if self.of_graphs else "abides"].sum() / counted.sum())
            if np.isnan(own):
                return ["no head's output makes any token likelier than another"]
            return [f"{what} in the prompt in {own:.1%} of cases; there is no other example's prompt of a step to compare with"]
        own, other = (self.shares(k, draws=1) for k in ("own", "elsewhere"))
        if L == 1:
            here, there = (float(x.over(slice(None)).mean) for x in (own, other))
            return [
                f"{what} in the own prompt in {here:.1%} of cases in the only layer, in other examples' prompts in "
                f"{there:.1%}: excess {excess.words('{:.1%}')} (n = {int(excess.n)} examples)"
            ]
        parts = (slice(0, L // 2), slice(L // 2, None))
        mine, theirs = ([f"{float(x.over(part).mean):.1%}" for part in parts] for x in (own, other))
        lower, upper = (self.shares("excess").over(part, within=bootstrap.SHARES_APART).words("{:.1%}") for part in parts)
        jump = self.jump()
        inside = f" [{float(jump.low):.0f}, {float(jump.high):.0f}]" if np.isfinite(jump.low) else ""
        where = f"the change between layers is clearest at layer {float(jump.mean):.0f}{inside} of {L}"
        where = where if np.isfinite(jump.mean) else "it rises at no layer beyond chance"
        return [
            f"{what} in the own prompt in {mine[0]} of cases in the lower half of the layers, {mine[1]} in the upper; in the "
            f"prompts of other examples at the same step in {theirs[0]} and {theirs[1]} (n = {int(excess.n)} examples)",
            f"the excess over others is {lower} in the lower half, {upper} in the upper; {where}",
        ]


def context_abidance(
    model: Model,
    examples: Examples,
    *,
    steps: Sequence[int] | None = None,
    right: Graded | Tensor | None = None,
    definition: Literal["heads", "graph", "paper"] = "heads",
    flow: InformationFlow | None = None,
    depth0: Depth0 | None = None,
    seed: int = 0,
    memory_gb: float | None = None,
    progress: Progress | None = None,
) -> ContextAbidance:
    """By layer and head, how often what is written occurs in the prompt, and in the prompts of other examples at the step.

    steps, right: which cells, as in `cells.choose`.
    definition: "heads": the likeliest token of every head's output where the answer is predicted; needs no graph, and an
        untouched majority of heads that write nothing in particular counts too. "paper": also over the occurrences of heads
        in the authors' graphs. "graph": the same in graphs of definition "projection".
    flow: graphs that `information_flow` made by "paper" or "projection" of the same examples; None: made here.
    depth0: answer writers count as in "context" (the authors; default of "paper"), or are left out ("leave_out", default of
        "graph"): their token is the answer because they were chosen for it.
    Tokens are compared as written, without space and case. With one example at a step there is nothing to compare with.
    Returns `ContextAbidance`. Raises ValueError naming the argument.
    Cost: that of `answer_writers`; with graphs, theirs in addition.
    """
    check_common(model, seed=seed, memory_gb=memory_gb)
    check_choice("definition", definition, ("heads", "graph", "paper"))
    check_choice("depth0", depth0, ("context", "leave_out", None))
    kind = {"heads": None, "graph": "projection", "paper": "paper"}[definition]
    if flow is not None and flow.about["settings"]["definition"] != kind:
        got = flow.about["settings"]["definition"]
        raise ValueError(f"flow: got graphs of definition {got!r}; expected {kind!r} for definition={definition!r}")
    rule: Depth0 = depth0 or ("context" if definition == "paper" else "leave_out")
    cells = choose(model, examples, steps=steps, right=right)
    L, H = model.cfg.n_layers, model.cfg.n_heads
    spelling = Spelling(model.tokenizer, model.cfg.d_vocab)
    data = {k: cells.empty(L, H) for k in ("abides", "elsewhere", "peak")} | {"chance": cells.empty()}
    counted = cells.empty(3, L, H)
    groups = by_example(cells, model.tokenizer)
    contexts = Contexts((((cell.e, cell.s), prompt.tokens) for group in groups for cell, prompt in group), spelling)
    texts, first = texts_of(groups)
    tick = counting(progress, len(cells))
    with metered(model) as meter:
        if kind is not None and flow is None:
            flow = information_flow.information_flow(
                model, examples, steps=steps, right=right, definition=kind, memory_gb=memory_gb  # type: ignore[arg-type]
            )  # fmt: skip
        for batch in text_activations(model, texts, ("z", "q"), first=first, memory_gb=memory_gb):
            for i, acts in batch:
                for cell, prompt in groups[i]:
                    found, at = written(model.family, acts, prompt), (cell.e, cell.s)
                    context, words = contexts.words(at), [[spelling.of(t) for t in row] for row in found.top.tolist()]
                    peak = data["peak"][at] = found.peak.cpu().numpy()
                    says = peak * model.cfg.d_vocab > 1 + _EVEN
                    data["abides"][at] = np.where(says, [[w in context for w in row] for row in words], np.nan)
                    also = [[contexts.elsewhere(at, w) for w in row] for row in words]
                    data["elsewhere"][at] = np.where(says, also, np.nan)
                    data["chance"][at] = spelling.chance(context)
                    if flow is not None:
                        graph = flow.graph(cell.example.index, cell.step.index)
                        counted[at] = of_graph(graph, at, contexts, spelling, (L, H), rule, prompt.answer)
                    tick()
    if flow is not None:
        data |= {name: counted[:, :, i] for i, name in enumerate(("occurs", "in_context", "in_others"))}
    depth0 = rule if flow is not None else None
    settings = {"steps": list(cells.steps), "definition": definition, "depth0": depth0, "seed": seed}
    words = {
        "heads": "likeliest token of z W_O where the answer is predicted",
        "graph": "tokens passed in graphs made by projection, writers " + ("counted" if rule == "context" else "left out"),
        "paper": "tokens passed in the authors' graphs, writers "
        + ("counted as in context" if rule == "context" else "left out"),
    }[definition]
    return ContextAbidance.made(model, cells, data, {"layer": L, "head": H}, words, settings, meter)


def cost(cfg: ModelConfig, workload: Workload, *, definition: str = "heads", flow: object = None, **options) -> Cost:
    """Predicted: the projections of `answer_writers`, and the graphs where they are asked for and not given."""
    out = answer_writers.projections_cost(cfg, workload)
    if definition != "heads" and flow is None:
        out = out + information_flow.cost(cfg, workload, definition="paper")
    return out


def authors_cost(cfg: ModelConfig, workload: Workload, **options) -> Cost:
    """Nothing: the authors read it off the graphs that they have. What these took is counted once, by
    `information_flow.authors_cost`."""
    return Cost()


ANALYSIS = Description(ContextAbidance, context_abidance, cost=cost, authors=authors_cost, claims=("abidance",), order=3)
