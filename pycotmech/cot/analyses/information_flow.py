"""Follows the answer from the heads that write it back to the tokens it came from (docs/protocol.md, E8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pycotmech._choices import check_choice
from pycotmech._words import plural
from pycotmech.cot.tools import flow_exact, flow_paper
from pycotmech.cot.tools.activations import (
    SEGMENTS,
    Prompt,
    TextActivations,
    by_example,
    head_mask,
    text_activations,
    text_activations_cost,
    texts_of,
)
from pycotmech.cot.tools.cells import Cells, choose
from pycotmech.cot.tools.cost import Cost, Workload, metered, rows_cost
from pycotmech.cot.tools.flow_graph import Edge, Graph, Node, sources
from pycotmech.cot.tools.registry import Description
from pycotmech.cot.tools.result import Analysis, Progress, headline, interval_table, top_cells
from pycotmech.model.arguments import check_common
from pycotmech.model.config import ModelConfig
from pycotmech.stats import bootstrap

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.cot.task.examples import Examples
    from pycotmech.cot.task.steps import Graded
    from pycotmech.model import Model

Definition = Literal["exact", "projection", "paper"]
_WORDS = {
    "exact": "edges are paths whose sender is replaced, heads off the path frozen",
    "projection": "unembedded head outputs and residual streams, gold word, threshold, first token left out",
    "paper": "the authors' construction: top 4 writers, top 1 position, top 1 token",
}
_PROJECTIONS, _SLICE = 21355 / 1024, 11
"""Of the authors: how often a head is projected for one graph, and prompts whose activations are held and projected at once."""
_COUNTS = ("writers", "nodes", "edges", "with_source", "sources", "segments", "first_token")
_NODE = ("layer", "head", "position", "depth", "weight", "total")
_EDGE = ("parent", "child", "position", "token", "input", "attention", "weight", "total")


@dataclass(frozen=True, eq=False)
class InformationFlow(Analysis):
    """The graphs, and by example and step (NaN where a step does not count): writers, nodes, edges; with_source, the
    writers from which an occurrence of the answer's word is reached; sources and segments, distinct occurrences, and parts
    of the prompt that hold them, reached in all; first_token, mean attention of the nodes to the first token.
    depth_map [example, step, depth, layer, head]: 1 where a head occurs at a depth.

    node_* and edge_*: the graphs themselves, as tables; `graph(example, step)` puts one together.
    """

    name = "information_flow"
    title = "Information flow from the tokens to the answer"
    source = "E8, stages I to III"
    label, share, by_size = "share of examples in whose graph the head occurs", True, False
    ranges: ClassVar = {
        **dict.fromkeys(("writers", "nodes", "edges", "with_source", "sources"), bootstrap.COUNT),
        **dict.fromkeys(("first_token", "depth_map"), bootstrap.SHARE),
        "segments": (0.0, float(len(SEGMENTS))),
    }

    def graph(self, example: int, step: int) -> Graph:
        """The graph of one cell, by the labels on the axes example and step; empty where the step does not count."""
        d = self.data
        e, s = self._place(example, step)
        rows = {k: np.flatnonzero((d[f"{k}_e"].values == e) & (d[f"{k}_s"].values == s)) for k in ("node", "edge")}
        nodes = [Node(*(d[f"node_{k}"].values[i].item() for k in _NODE)) for i in rows["node"]]
        edges = [Edge(*(_number(d[f"edge_{k}"].values[i]) for k in _EDGE)) for i in rows["edge"]]
        return Graph(nodes, edges)

    def cells(self) -> Iterator[tuple[int, int]]:
        """The labels (example, step) of the cells that count."""
        for e, example in enumerate(self.data["example"].values):
            for s, step in enumerate(self.data["step"].values):
                if np.isfinite(self.data["writers"].values[e, s]):
                    yield int(example), int(step)

    def shown(self) -> xr.Dataset:
        return self.interval("depth_map")

    def to_dataframe(self) -> pd.DataFrame:
        """All edges, as in `Graph.to_dataframe`, with example and step first."""
        import pandas as pd

        frames = []
        for example, step in self.cells():
            frame = self.graph(example, step).to_dataframe()
            frame.insert(0, "example", example)
            frame.insert(1, "step", step)
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)

    def table(self) -> pd.DataFrame:
        """One row per step: each of writers, with_source, sources, segments, nodes, edges, first_token with low and high, n."""
        return interval_table({name: self.interval(name) for name in _COUNTS}, ("step",))

    def writers(self, step: int | None = None, k: int = 5, *, held_out: bool = True) -> pd.DataFrame:
        """The k heads of each step (or of one) that write the answer in most examples: step, kind, rank, layer, head, share
        (of examples, with low and high), n, held_out.

        held_out: heads are ranked on one half of the examples that count at the step, and their shares are of the other, n
        examples; with fewer than four that count, and with False, both are of all of them. The column says which it was.
        """
        import pandas as pd

        steps = self.data["step"].values.tolist()
        rows = []
        for here in steps if step is None else [step]:
            parts = self.at_step("writers", here, held_out=held_out)
            if parts is None:
                continue
            chosen, reported = (part.data["depth_map"].sel(step=here, depth=0) for part in (parts.choosing, parts.reporting))
            heads = [(l, h) for l, h, share in top_cells(chosen.mean("example"), k) if share > 0]
            for rank, (l, h) in enumerate(heads, 1):
                found = bootstrap.mean_interval(reported.sel(layer=l, head=h).values, within=bootstrap.SHARE)
                row = {"step": here, "kind": str(self.data["kind"].values[steps.index(here)]), "rank": rank}
                row |= {"layer": int(l), "head": int(h), **headline("share", found._asdict()), "n": int(found.n)}
                rows.append(row | {"held_out": parts.held_out})
        names = ("step", "kind", "rank", "layer", "head", "share", "low", "high", "n", "held_out")
        return pd.DataFrame(rows, columns=list(names))

    def plot(self, *, example: int | None = None, step: int | None = None, path: str | PathLike | None = None) -> Figure:
        """One graph, layer by position, and below it how often each head occurs at each depth, over all cells.

        example, step: which; None: a cell with a middling number of edges.
        """
        from pycotmech.cot.analyses.information_flow_figure import Token, flow_figure

        example, step = self._middling(example, step)
        e, s = self._place(example, step)
        d = self.data
        tokens: dict[int, Token] = {}
        for name in ("node", "edge"):
            for i in np.flatnonzero((d[f"{name}_e"].values == e) & (d[f"{name}_s"].values == s)):
                position, word = int(d[f"{name}_position"].values[i]), str(d[f"{name}_word"].values[i])
                if name == "edge":
                    held = bool(d["edge_answer"].values[i])
                    tokens[position] = Token(word, str(d["edge_segment"].values[i]), held)
                else:
                    tokens.setdefault(position, Token(word))
        n = int(d["writers"].notnull().any("step").sum())
        made = f"{plural(n, 'example')}, {len(list(self.cells()))} steps that are right; {self.about['definition']}"
        return flow_figure(
            self.graph(example, step),
            tokens,
            d["depth_map"].mean(("example", "step")).transpose("depth", "layer", "head").values,
            about=f"example {example}, step {step} ({d['kind'].sel(step=step).values})",
            title=f"{self.about['model']}: {self.title.lower()}",
            lines=[made, *self.about["notes"]],
            path=path,
        )

    def _middling(self, example: int | None, step: int | None) -> tuple[int, int]:
        """The cell asked for, or of several one with a middling number of edges."""
        cells = [c for c in self.cells() if (example is None or c[0] == example) and (step is None or c[1] == step)]
        if not cells:
            raise ValueError(f"example, step: got {example}, {step}; expected a cell that counts, as in .cells()")
        edges = [float(self.data["edges"].sel(example=e, step=s)) for e, s in cells]
        return cells[int(np.argsort(edges, kind="stable")[len(edges) // 2])]

    def _place(self, example: int, step: int) -> tuple[int, int]:
        """The numbers of a cell's labels along the axes."""
        e, s = (int(np.flatnonzero(self.data[k].values == v)[0]) for k, v in (("example", example), ("step", step)))
        return e, s

    def findings(self) -> list[str]:
        """Pathways, sources, depths, and how far effects with everything recomputed go with them."""
        mean = {
            name: bootstrap.mean_interval(self.data[name].mean("step").values, within=self.ranges[name]) for name in _COUNTS
        }
        n = int(mean["writers"].n)
        out = [
            f"{mean['writers'].words('{:.1f}')} heads at a time write the answer (n = {n} examples); the pathways of "
            f"{mean['with_source'].words('{:.1f}')} of them reach its word: {mean['sources'].words('{:.1f}')} different "
            f"occurrences, in {mean['segments'].words('{:.1f}')} of the three parts of the prompt"
        ]
        d, N = self.data, self.data.sizes["example"]
        layer, depth, owner = (d[f"node_{k}"].values for k in ("layer", "depth", "e"))
        if len(layer):
            words, layers = [], (0.0, d.sizes["layer"] - 1.0)
            for at in range(int(depth.max()) + 1):
                means = [_mean(layer[(depth == at) & (owner == e)]) for e in range(N)]
                words.append(f"{bootstrap.mean_interval(means, within=layers).words('{:.1f}')} at depth {at}")
            out.append(
                f"mean layer of the heads in the {len(list(self.cells()))} graphs (n = {n} examples): {', '.join(words)}"
            )
        weight, total, owner = (d[f"edge_{k}"].values for k in ("weight", "total", "e"))
        both = np.isfinite(weight) & np.isfinite(total)
        if both.sum() > 2:
            same = np.sign(weight) == np.sign(total)
            by_example = [_mean(same[both & (owner == e)]) for e in range(N)]
            share = bootstrap.mean_interval(by_example, within=bootstrap.SHARE)
            out.append(
                f"{share.words()} of an example's edges act in the same direction when everything above is "
                f"recomputed (n = {int(share.n)} examples, {int(both.sum())} edges)"
            )
        return out


def _mean(values: NDArray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def information_flow(
    model: Model,
    examples: Examples,
    *,
    steps: Sequence[int] | None = None,
    right: Graded | Tensor | None = None,
    definition: Definition = "exact",
    heads: Sequence[tuple[int, int]] | Tensor | None = None,
    replaced_by: Literal["mean", "counterfactual"] = "mean",
    limits: flow_exact.Limits | None = None,
    rules: flow_paper.Rules | None = None,
    total: bool = True,
    seed: int = 0,
    memory_gb: float | None = None,
    progress: Progress | None = None,
) -> InformationFlow:
    """The graph from the answer's writers back to the tokens, of every example and step.

    steps, right: which cells, as in `cells.choose`.
    definition: "exact": by intervention (see `flow_exact`). "paper": as the authors, by unembedding what heads write and
        what residual streams say, always four writers; its links are likenesses. "projection": the same construction with
        the gold word, a threshold instead of a number, the first token left out, and chains that end where the residual
        stream says nothing in particular.
    heads: the only heads that may be in the graph, (layer, head) pairs or bool [L, H]; None: all. The authors: those that
        a knock-out had found important.
    replaced_by: of "exact": what a sender's output is replaced by, its "mean" over the text, or what it is in the step's
        "counterfactual" (what only routes, such as a previous-token head, is the same there and is not found).
    limits: of "exact"; rules: of "paper" and "projection". None: their defaults.
    total: of "exact": also measure every writer and edge with everything above it recomputed.
    Returns `InformationFlow`. Raises ValueError naming the argument.
    Cost: "exact": the prompts once; for each node a few hundred rows of one projection; with `total` one row or some tens
    through the layers above, for each edge. "paper": the unembedding of a row for every head at every position visited.
    """
    check_common(model, seed=seed, memory_gb=memory_gb)
    check_choice("definition", definition, tuple(_WORDS))
    check_choice("replaced_by", replaced_by, ("mean", "counterfactual"))
    unused = {"rules": rules} if definition == "exact" else {"limits": limits}
    for name, value in unused.items():
        if value is not None:
            raise ValueError(f"{name}: not used with definition={definition!r}; expected None")
    allowed = None if heads is None else head_mask(model.cfg, heads, argument="heads")
    cells = choose(model, examples, steps=steps, right=right)
    groups = by_example(cells, model.tokenizer)
    texts, first = texts_of(groups)
    rules = rules or (flow_paper.Rules.paper() if definition == "paper" else flow_paper.Rules())
    grower = _Grower(model, definition, allowed, replaced_by, limits or flow_exact.Limits(), rules, total, memory_gb)
    found: dict[tuple[int, int], tuple[Graph, Prompt, float]] = {}
    with metered(model) as meter:
        sites = flow_exact.sites(model.cfg)
        for batch in text_activations(model, texts, sites, first=first, whole=True, memory_gb=memory_gb):
            for i, acts in batch:
                for (cell, prompt), graph in zip(groups[i], grower.graphs(acts, [p for _, p in groups[i]]), strict=True):
                    found[cell.e, cell.s] = (graph, prompt, first_token(acts, graph))
                    if progress is not None:
                        progress(len(found), len(cells))
    settings = {"steps": list(cells.steps), "definition": definition, "replaced_by": replaced_by, "total": total, "seed": seed}
    settings["heads"] = "all" if allowed is None else int(allowed.sum())
    settings |= vars(grower.limits if definition == "exact" else rules)
    words = _WORDS[definition] + (f", by its {replaced_by}" if definition == "exact" else "")
    data = dataset(cells, model.cfg, found, model.tokenizer)
    return InformationFlow.made(model, cells, data, None, words, settings, meter)


@dataclass
class _Grower:
    """Makes the graphs of one text's prompts."""

    model: Model
    definition: str
    allowed: Tensor | None
    replaced_by: str
    limits: flow_exact.Limits
    rules: flow_paper.Rules
    total: bool
    memory_gb: float | None

    def __post_init__(self) -> None:
        self.shared: dict = {}  # what was seen at positions that all texts share

    def graphs(self, acts: TextActivations, prompts: Sequence[Prompt]) -> Iterator[Graph]:
        family = self.model.family
        if self.definition != "exact":
            lens = flow_paper.Lens(family, acts, self.shared)
            for prompt in prompts:
                yield flow_paper.grow(lens, prompt, self.rules, self.allowed)
            return
        others: list[TextActivations | None] = [None] * len(prompts)
        if self.replaced_by == "counterfactual":
            corrupted = [p.corrupted for p in prompts]
            batches = text_activations(self.model, corrupted, ("z",), whole=True, memory_gb=self.memory_gb)  # type: ignore[arg-type]
            others = [t for batch in batches for _, t in batch]
        for prompt, other in zip(prompts, others, strict=True):
            flow = flow_exact.Flow(family, acts, prompt, flow_exact.Sources(family, acts, other), self.limits.freeze_mlps)
            graph, variants = flow_exact.grow(flow, self.limits, self.allowed)
            yield self._measured(graph, variants, prompt) if self.total and variants else graph

    def _measured(self, graph: Graph, variants: list, prompt: Prompt) -> Graph:
        from pycotmech.patching import sweep

        found = sweep(
            self.model, prompt.tokens, variants, metric="logit_diff", answer=prompt.answer, wrong=prompt.wrong,
            memory_gb=self.memory_gb,
        )  # fmt: skip
        share = -found.effect / found.base_metric
        n = len(graph.writers)
        nodes = [node._replace(total=float(share[i])) if i < n else node for i, node in enumerate(graph.nodes)]
        edges = [edge._replace(total=float(s)) for edge, s in zip(graph.edges, share[n:], strict=True)]
        return Graph(nodes, edges)


def first_token(acts: TextActivations, graph: Graph) -> float:
    """Mean attention of the graph's nodes to the first token; NaN without nodes."""
    return float(np.mean([float(acts.pattern(n.layer, [n.position])[0, n.head, 0]) for n in graph.nodes] or [np.nan]))


def counts(graph: Graph, prompt: Prompt) -> dict[str, float]:
    """How many writers, nodes, edges; writers with a source, distinct sources, and segments they lie in."""
    reached = [sources(graph, w, prompt.occurrences) for w in graph.writers]
    spans = {i for r in reached for i in r}
    segments = {prompt.segment_of(prompt.occurrences[i].start) for i in spans}
    values = (len(reached), len(graph.nodes), len(graph.edges), sum(map(bool, reached)), len(spans), len(segments))
    return dict(zip(_COUNTS, map(float, values)))


def dataset(cells: Cells, cfg: ModelConfig, found: dict[tuple[int, int], tuple[Graph, Prompt, float]], tokenizer) -> xr.Dataset:
    depths = max(4, *(1 + node.depth for graph, _, _ in found.values() for node in graph.nodes), 4)
    data = {name: cells.empty() for name in _COUNTS}
    maps = cells.empty(depths, cfg.n_layers, cfg.n_heads)
    nodes: list[tuple] = []
    edges: list[tuple] = []
    for (e, s), (graph, prompt, first) in found.items():
        for name, value in counts(graph, prompt).items():
            data[name][e, s] = value
        data["first_token"][e, s] = first
        maps[e, s] = graph.depth_map(depths, cfg.n_layers, cfg.n_heads)
        words = _words(prompt.tokens, tokenizer)
        nodes += [(e, s, *node, words(node.position)) for node in graph.nodes]
        edges += [
            (e, s, *edge, words(edge.position), prompt.segment_of(edge.position), prompt.holds_answer(edge.position))
            for edge in graph.edges
        ]
    variables: dict[str, Any] = {name: (("example", "step"), value) for name, value in data.items()}
    variables["depth_map"] = (("example", "step", "depth", "layer", "head"), maps)
    kinds = {"weight": float, "total": float, "attention": float, "input": str, "word": str, "segment": str, "answer": bool}
    for name, rows, columns in (
        ("node", nodes, ("e", "s", *_NODE, "word")),
        ("edge", edges, ("e", "s", *_EDGE, "word", "segment", "answer")),
    ):
        for j, column in enumerate(columns):
            variables[f"{name}_{column}"] = (name, _column([row[j] for row in rows], kinds.get(column, np.int64)))
    coords = {**cells.coords, "depth": range(depths), "layer": range(cfg.n_layers), "head": range(cfg.n_heads)}
    return xr.Dataset(variables, coords=coords)


def _column(values: list, kind: Any) -> NDArray:
    return np.array(values, dtype=kind) if values or kind is not str else np.array([], dtype="U1")


def _words(tokens: Tensor, tokenizer) -> Callable[[int], str]:
    if tokenizer is None:
        return lambda position: str(int(tokens[position]))
    return lambda position: tokenizer.decode([int(tokens[position])])


def cost(cfg: ModelConfig, workload: Workload, *, definition: Definition = "exact", total: bool = True, **options) -> Cost:
    """Predicted. "exact": the prompts once, projections of senders, and the sweeps of the edges found; the number of nodes
    and edges is not known before: 8 and 20 for each cell, edges read from a third of the suffix on. "paper": 60 positions.
    A model whose heads look far back everywhere, as untrained ones do, needs several times that."""
    traces = text_activations_cost(cfg, workload, 3, whole=True)
    if definition != "exact":
        visited = 60 * workload.cells
        return traces + rows_cost(cfg, 0, read=visited * cfg.n_layers * cfg.n_heads)
    projections = 2.0 * cfg.d_model * cfg.d_head * (cfg.n_heads + 2 * cfg.n_key_value_heads)
    screened = workload.cells * 8 * 3 * cfg.n_layers * cfg.n_heads / 2 * projections
    out = traces + Cost(flop=screened)
    if total:
        rows = workload.cells * (workload.suffix * 1.5 + 20 * workload.suffix / 3 / 2 + 8 * workload.suffix / 2)
        out = out + rows_cost(cfg, rows, passes=14 * workload.cells)  # the edges of a node at a time
    return out


def authors_cost(cfg: ModelConfig, workload: Workload, **options) -> Cost:
    """Theirs, all of E8: three forwards for each example and step (the clean run, one for the means, the pruned one), and the
    projections of stage I, each of which takes every position of every prompt that is held with it through the unembedding
    (docs/protocol.md, Cost).

    Assumed for other models and runs: as many calls as in their graphs, each over as large a part of the heads (21,355
    projections with 1,024 heads), and slices of 11 prompts of a step, or of all if there are fewer.
    """
    forwards = 3.0 * workload.cells
    rows = forwards * workload.length
    projections = workload.cells * _PROJECTIONS * cfg.n_layers * cfg.n_heads
    batch = min(_SLICE, workload.examples) * workload.length
    return rows_cost(cfg, rows, forwards=forwards, read=rows + projections * batch)


ANALYSIS = Description(InformationFlow, information_flow, cost=cost, authors=authors_cost, order=1)
