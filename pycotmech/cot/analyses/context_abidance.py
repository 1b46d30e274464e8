"""Whether what heads write occurs in the prompt, by layer (docs/protocol.md, E8, context-abidance).

A head whose output says a word of the prompt works with the context; one that says another word works from memory, or says
nothing in particular. The authors count this over the nodes of their graphs, as the token passed; it needs no graph: the
likeliest token of each head's output where the answer is predicted is in the prompt or is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pycotmech.cot.analyses import answer_writers, information_flow
from pycotmech.cot.tools.activations import Prompt, by_example, text_activations, texts_of
from pycotmech.cot.tools.cells import choose
from pycotmech.cot.tools.checks import one_of
from pycotmech.cot.tools.cost import Cost, Workload, metered
from pycotmech.cot.tools.flow_graph import Graph
from pycotmech.cot.tools.registry import Description
from pycotmech.cot.tools.result import Analysis, Progress, counting
from pycotmech.model.arguments import check_common
from pycotmech.model.config import ModelConfig
from pycotmech.stats import bootstrap
from pycotmech.stats.change import change_point, rise_interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.cot.analyses.information_flow import InformationFlow
    from pycotmech.cot.task.examples import Examples
    from pycotmech.cot.task.steps import Graded
    from pycotmech.model import Model

Depth0 = Literal["context", "leave_out"]
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


def of_graph(graph: Graph, prompt: Prompt, spelling: Spelling, shape: tuple[int, int], depth0: Depth0) -> NDArray:
    """[2, L, H]: how often each head occurs in a graph with a token that it hands over, and how often that token occurs in
    the prompt. A writer hands over the answer and counts as in context (as the authors count) or is left out."""
    out = np.zeros((2, *shape))
    context = spelling.context(prompt.tokens)
    if depth0 == "context":
        for w in graph.writers:
            out[:, graph.nodes[w].layer, graph.nodes[w].head] += 1
    for edge in graph.edges:
        if edge.child >= 0:
            child = graph.nodes[edge.child]
            out[0, child.layer, child.head] += 1
            out[1, child.layer, child.head] += spelling.of(edge.token) in context
    return out


@dataclass(frozen=True, eq=False)
class ContextAbidance(Analysis):
    """abides [example, step, layer, head]: 1 where the likeliest token of the head's output occurs in the prompt, else 0; NaN
    where its output makes no token likelier than another. peak, same axes: that token's probability. chance [example, step]:
    share of the vocabulary that occurs in the prompt.
    With graphs also occurs and in_context, same axes: how often the head is in the graph, and with a token of the prompt.
    """

    name = "context_abidance"
    title = "Whether what heads write occurs in the prompt"
    source = "E8, context-abidance"
    ranges: ClassVar = {
        **dict.fromkeys(("abides", "peak", "chance"), bootstrap.SHARE),
        **dict.fromkeys(("occurs", "in_context"), bootstrap.COUNT),
    }

    @property
    def of_graphs(self) -> bool:
        return "occurs" in self.data

    def by_layer(self) -> xr.Dataset:
        """Share by layer with its interval: mean, low, high, n [layer]; graph_mean, ... where there are graphs."""
        share = self.data["abides"].mean("head").mean("step").transpose("example", "layer")
        found = bootstrap.mean_interval(share.values, within=bootstrap.SHARE)
        out: dict[str, Any] = {k: ("layer", v) for k, v in found._asdict().items()}
        if self.of_graphs:
            top, below = (
                self.data[k].sum(("step", "head"), min_count=1).transpose("example", "layer").values
                for k in ("in_context", "occurs")
            )
            ratio = bootstrap.ratio_interval(top, below, within=bootstrap.SHARE)
            out |= {f"graph_{k}": ("layer", v) for k, v in ratio._asdict().items()}
        return xr.Dataset(out, coords={"layer": self.data["layer"]})

    def jump(self, *, draws: int = 500, seed: int = 0) -> bootstrap.Interval:
        """The first layer of the upper part where the layers fall into a lower and a higher one best (the upward
        least-squares change point), with its interval over resampled examples. By graphs where there are any.

        NaN where the share rises nowhere, or no more than chance lets it (`pycotmech.stats.change.rise_interval` holds 0).
        """
        counted = self.data["occurs"] if self.of_graphs else self.data["abides"].notnull()
        share = self.data["in_context"] if self.of_graphs else self.data["abides"]
        parts = [x.sum(("step", "head")).transpose("example", "layer").values.astype(float) for x in (share, counted)]

        def shares(weights: NDArray) -> NDArray:
            top, below = (weights @ p for p in parts)
            with np.errstate(invalid="ignore", divide="ignore"):
                return top / np.where(below > 0, below, np.nan)

        n, layers = len(parts[0]), (1.0, self.data.sizes["layer"] - 1.0)  # of the first layer of an upper part
        found = bootstrap.statistic_interval(
            lambda index: change_point(shares(np.bincount(index, minlength=n).astype(float))),
            n,
            within=layers,
            draws=draws,
            seed=seed,
        )
        drawn = shares(bootstrap.resampled(n, draws=draws, seed=seed))
        if np.isnan(found.mean) or (n > 1 and rise_interval(shares(np.ones(n)), drawn, n)[1] <= 0):
            nan = np.full_like(found.mean, np.nan)
            return bootstrap.Interval(nan, nan, nan, found.n)
        return found

    def table(self) -> pd.DataFrame:
        """One row per layer: share with low, high and n, and by graphs where there are any."""
        return self.by_layer().to_dataframe().reset_index()

    def plot(self, *, path: str | PathLike | None = None) -> Figure:
        """By layer, and by head."""
        from pycotmech.figures.curves import layer_line
        from pycotmech.figures.frame import PALETTE, framed, saved
        from pycotmech.figures.heatmap import map_of_heads

        found, title = self.by_layer(), f"{self.about['model']}: {self.title.lower()}"
        figure, axes = framed(1, 2, title, self.small_print("chance"), width=4.6, height=3.3)
        prefix = "graph_" if self.of_graphs else ""
        line = (found[f"{prefix}{k}"].values for k in ("mean", "low", "high"))
        layer_line(axes[0, 0], *line, title="share in the prompt, by layer", up="share")
        axes[0, 0].axhline(float(self.data["chance"].mean()), color=PALETTE[0], linewidth=0.8, linestyle="--", label="chance")
        axes[0, 0].set_ylim(-0.03, 1.03)
        axes[0, 0].legend(fontsize=7, frameon=False)
        if self.of_graphs:
            total = self.data["occurs"].sum(("example", "step"))
            grid = self.data["in_context"].sum(("example", "step")) / total.where(total > 0)
        else:
            grid = self.data["abides"].mean(("example", "step"))
        map_of_heads(figure, axes[0, 1], grid.transpose("layer", "head").values, title="by head", label="share in the prompt")
        return saved(figure, path)

    def findings(self) -> list[str]:
        """The share in the lower and in the upper half, and where it rises; of a model of one layer, the share."""
        L = self.data.sizes["layer"]
        overall = self._share(slice(None))
        if not overall.n:
            return ["no head's output makes any token likelier than another"]
        what = "tokens handed over in the graphs occur" if self.of_graphs else "likeliest tokens of heads' outputs occur"
        if L == 1:
            chance = float(self.data["chance"].mean())
            return [
                f"{what} in the prompt in {overall.words()} of cases in the only layer (n = {int(overall.n)} examples; "
                f"{chance:.1%} of the vocabulary occurs there)"
            ]
        lower, upper = (self._share(part) for part in (slice(0, L // 2), slice(L // 2, None)))
        jump = self.jump()
        inside = f" [{float(jump.low):.0f}, {float(jump.high):.0f}]" if np.isfinite(jump.low) else ""
        where = f"; the change between layers is clearest at layer {float(jump.mean):.0f}{inside} of {L}"
        where = where if np.isfinite(jump.mean) else "; it rises at no layer beyond chance"
        chance = float(self.data["chance"].mean())
        return [
            f"{what} in the prompt in {lower.words()} of cases in the lower half of the layers, {upper.words()} in the "
            f"upper (n = {int(max(lower.n, upper.n))} examples; {chance:.1%} of the vocabulary occurs there){where}"
        ]

    def _share(self, layers: slice) -> bootstrap.Interval:
        """Share in the prompt over some layers, with its interval."""
        here = self.data.isel(layer=layers)
        if not self.of_graphs:
            by_example = here["abides"].mean(("layer", "head")).mean("step").values
            return bootstrap.mean_interval(by_example, within=bootstrap.SHARE)
        sums = [here[k].sum(("step", "layer", "head"), min_count=1).values for k in ("in_context", "occurs")]
        return bootstrap.ratio_interval(*sums, within=bootstrap.SHARE)


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
    """By layer and head, how often what is written occurs in the prompt.

    steps, right: which cells, as in `cells.choose`.
    definition: "heads": the likeliest token of every head's output where the answer is predicted; needs no graph, and an
        untouched majority of heads that write nothing in particular counts too. "paper": also over the occurrences of heads
        in the authors' graphs. "graph": the same in graphs of definition "projection".
    flow: graphs that `information_flow` made by "paper" or "projection" of the same examples; None: made here.
    depth0: answer writers count as in "context" (the authors; default of "paper"), or are left out ("leave_out", default of
        "graph"): their token is the answer because they were chosen for it.
    Tokens are compared as written, without space and case.
    Returns `ContextAbidance`. Raises ValueError naming the argument.
    Cost: that of `answer_writers`; with graphs, theirs in addition.
    """
    check_common(model, seed=seed, memory_gb=memory_gb)
    one_of("definition", definition, ("heads", "graph", "paper"))
    one_of("depth0", depth0, ("context", "leave_out", None))
    kind = {"heads": None, "graph": "projection", "paper": "paper"}[definition]
    if flow is not None and flow.about["settings"]["definition"] != kind:
        got = flow.about["settings"]["definition"]
        raise ValueError(f"flow: got graphs of definition {got!r}; expected {kind!r} for definition={definition!r}")
    rule: Depth0 = depth0 or ("context" if definition == "paper" else "leave_out")
    cells = choose(model, examples, steps=steps, right=right)
    L, H = model.cfg.n_layers, model.cfg.n_heads
    spelling = Spelling(model.tokenizer, model.cfg.d_vocab)
    data = {"abides": cells.empty(L, H), "peak": cells.empty(L, H), "chance": cells.empty()}
    counted = cells.empty(2, L, H)
    groups = by_example(cells, model.tokenizer)
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
                    found, at = answer_writers.written(model.family, acts, prompt), (cell.e, cell.s)
                    context = spelling.context(prompt.tokens)
                    inside = [[spelling.of(t) in context for t in row] for row in found.top.tolist()]
                    peak = data["peak"][at] = found.peak.cpu().numpy()
                    data["abides"][at] = np.where(peak * model.cfg.d_vocab > 1 + _EVEN, inside, np.nan)
                    data["chance"][at] = spelling.chance(context)
                    if flow is not None:
                        graph = flow.graph(cell.example.index, cell.step.index)
                        counted[at] = of_graph(graph, prompt, spelling, (L, H), rule)
                    tick()
    if flow is not None:
        data |= {"occurs": counted[:, :, 0], "in_context": counted[:, :, 1]}
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
    """Predicted: as `answer_writers`, and the graphs where they are asked for and not given."""
    out = answer_writers.cost(cfg, workload)
    if definition != "heads" and flow is None:
        out = out + information_flow.cost(cfg, workload, definition="paper")
    return out


def authors_cost(cfg: ModelConfig, workload: Workload, **options) -> Cost:
    """Nothing: the authors read it off the graphs that they have. What these took is counted once, by
    `information_flow.authors_cost`."""
    return Cost()


ANALYSIS = Description(ContextAbidance, context_abidance, cost=cost, authors=authors_cost, claims=("abidance",), order=3)
