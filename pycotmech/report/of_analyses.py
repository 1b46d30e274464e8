"""Charts of the paper's analyses: for each name the charts that show it, from its stored result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from pycotmech.cot.tools.by_head import HeadAnalysis
from pycotmech.files.text import printable
from pycotmech.report import charts
from pycotmech.report.charts import Chart
from pycotmech.stats import bootstrap

SOURCES = {
    "few_shot": "few-shot block",
    "question": "question",
    "generated": "generated text",
    "first": "first token",
    "itself": "itself",
    "none": "nowhere",
}


_TINTS = {
    SOURCES["question"]: 0,
    SOURCES["itself"]: 1,
    SOURCES["generated"]: 2,
    SOURCES["few_shot"]: 3,
    SOURCES["first"]: 4,
    SOURCES["none"]: 4,
}
"""Colours of the parts of a prompt, the same in every chart."""


def _source(name: object) -> str:
    return SOURCES.get(str(name), str(name))


def charts_of(name: str, result: Any, details: Mapping[str, Any] | None = None) -> list[Chart]:
    """The charts of an analysis, by its name; none for one that this page does not draw. details: of heads, for maps."""
    if name in _DRAWN:
        return [chart for chart in _DRAWN[name](result) if chart is not None]
    if isinstance(result, HeadAnalysis):
        return [head_chart(result, details)]
    return []


def _steps(data: xr.Dataset) -> list[str]:
    return [f"{s} {k}" for s, k in zip(data["step"].values, data["kind"].values)]


def _series(name: str, x: ArrayLike, found: xr.Dataset, *, dashed: bool = False) -> dict[str, Any]:
    """A line of means with their intervals."""
    return charts.series(name, x, *(found[k].values for k in ("mean", "low", "high")), dashed=dashed)


def _grid(values: xr.DataArray) -> np.ndarray:
    return values.transpose(..., "layer", "head").values


def head_chart(result: HeadAnalysis, details: Mapping[str, Any] | None = None, *, note: str = "") -> Chart:
    """The maps of an analysis with a score for each head, one of each step that counts; with rounding and controls where the
    result has them."""
    found, data = result.scores(), result.data
    floors = result.floors()
    is_patching = "control" in data and hasattr(result, "control")
    controls = result.control() if is_patching else None  # type: ignore[attr-defined]
    unit = "share" if "share" in result.label or "probability" in result.label else "number"
    maps = []
    for i, (step, kind) in enumerate(zip(data["step"].values.tolist(), data["kind"].values)):
        n = int(found["n"].isel(step=i).max())
        if n == 0:
            continue
        here = found.isel(step=i)
        maps.append(
            charts.head_map(
                f"Step {step}",
                _grid(here["mean"]),
                kind=str(kind),
                n=n,
                step=step,
                low=_grid(here["low"]),
                high=_grid(here["high"]),
                floor=None if floors is None else float(floors.isel(step=i)),
                control=None if controls is None else float(controls.isel(step=i)),
            )
        )
    shape = (data.sizes["layer"], data.sizes["head"])
    return charts.heads(result.title, result.label, shape, maps, unit=unit, views=True, details=details, note=note)


def _knock_out_curve(result: Any) -> list[Chart]:
    """Accuracy of the reporting half against the number of heads that are left, of all steps together."""
    half = "report" if "report" in result.data["half"].values else None
    found, size = result.overall(half=half), result.data.sizes["layer"] * result.data.sizes["head"]
    removed = result.data["removed"]
    removed = removed.mean("step") if "step" in removed.dims else removed
    words = {"least": "least important first", "most": "most important first"}
    drawn = []
    for order in result.data["order"].values.tolist():
        drawn.append(_series(words.get(str(order), str(order)), removed.sel(order=order).values, found.sel(order=order)))
    target = float(result.about["settings"].get("target", np.nan))
    level = (target, f"target {target:.0%}") if np.isfinite(target) else None
    return [
        charts.lines(
            "Accuracy against the number of heads ablated, all steps",
            "accuracy",
            f"heads ablated, of {size}",
            drawn,
            unit="share",
            limits=(0, 1),
            level=level,
        )
    ]


def knock_outs(result: Any) -> dict[str, Any]:
    """For each head "layer.head" what is left of the accuracy when it joins the heads that are ablated, in words: the curve is
    of nested sets, and no head was knocked out by itself."""
    half = "report" if "report" in result.data["half"].values else None
    order = str(result.data["order"].values[0])
    mean = result.overall(half=half)["mean"].sel(order=order).values
    ablated = result.data["ablated"].sel(order=order)
    if "step" in ablated.dims:  # a ranking for each step: no single place for a head
        return {}
    removed, gone = result.data["removed"].sel(order=order).values, ablated.transpose("size", "layer", "head").values
    out = {}
    for l, h in np.ndindex(gone.shape[1:]):
        sizes = np.flatnonzero(gone[:, l, h])
        if len(sizes) and (k := int(sizes[0])) > 0:
            out[f"{l}.{h}"] = {
                "title": "Knocked out",
                "text": f"It is among the heads ablated from {int(removed[k])} on ({order} important first). Accuracy over all "
                f"steps with {int(removed[k - 1])} heads ablated: {mean[k - 1]:.0%}; with {int(removed[k])}: {mean[k]:.0%}.",
            }
    return out


def _attention_by_source(result: Any) -> list[Chart]:
    found = result.by_step()
    known = np.flatnonzero(np.isfinite(found["mass_mean"].values).any(1))
    names, steps = [_source(s) for s in found["source"].values.tolist()], _steps(result.data)
    out = []
    for name, title, words in (
        ("mass", "Where attention goes", "attention weight, mean over all heads"),
        ("written", "Where what heads write comes from", "norm of what is read from each source, mean over all heads"),
    ):
        parts = {k: dict(zip(names, found[f"{name}_{k}"].values[known].T)) for k in ("mean", "low", "high")}
        here = [steps[i] for i in known]
        out.append(
            charts.bars(
                title, words, here, parts["mean"], parts["low"], parts["high"], unit="share", stacked=True, tints=_TINTS
            )
        )
    return out


def _answer_writers(result: Any) -> list[Chart | None]:
    data, steps = result.data, _steps(result.data)
    middle = int(np.argmin(np.abs(data["threshold"].values - 0.1)))
    threshold = float(data["threshold"].values[middle])
    writers, rivals = (result.interval(name).isel(threshold=middle) for name in ("writers", "competitor_writers"))
    both = {"of the answer": writers, "of another word of the prompt": rivals}
    parts = {k: {name: x[k].values for name, x in both.items()} for k in ("mean", "low", "high")}
    number = charts.bars(
        f"Heads that write the answer at once (probability of {threshold:g} or more)",
        "number of heads",
        steps,
        parts["mean"],
        parts["low"],
        parts["high"],
    )
    loss = None
    margins = {"without any one of them": "one", "without all of them": "together", "without as many others": "matched"}
    if "margin_one" in data:
        found = {}
        for words, name in margins.items():
            margin = data[f"margin_{name}"].isel(threshold=middle)
            found[words] = result_interval((margin > 0).astype(float).where(margin.notnull()), bootstrap.SHARE)
        loss = charts.bars(
            "How often the answer stays the first choice without its writers",
            "share of examples",
            steps,
            {k: x.mean for k, x in found.items()},
            {k: x.low for k, x in found.items()},
            {k: x.high for k, x in found.items()},
            unit="share",
        )
    contrast = result.interval("contrast")
    maps = []
    for i, step in enumerate(data["step"].values.tolist()):
        here = contrast.isel(step=i)
        if n := int(here["n"].max()):
            maps.append(
                charts.head_map(
                    f"Step {step}",
                    _grid(here["mean"]),
                    kind=str(data["kind"].values[i]),
                    n=n,
                    step=step,
                    low=_grid(here["low"]),
                    high=_grid(here["high"]),
                    marked=_grid(data["significant"].isel(step=i)),
                    mark="above 0 example after example",
                )
            )
    label = "share of logit(answer) − logit(wrong)"
    shape = (data.sizes["layer"], data.sizes["head"])
    return [number, loss, charts.heads("What each head adds to the answer's logit", label, shape, maps, views=True)]


def result_interval(values: xr.DataArray, within: bootstrap.Range | None = None) -> bootstrap.Interval:
    """The mean over examples of a variable [example, ...] with its interval."""
    return bootstrap.mean_interval(values.transpose("example", ...).values, within=within)


def writers_by_layer(result: Any) -> Chart:
    """What the heads of each layer add to the answer's logit, over all steps."""
    by_layer = result.data["contrast"].sum("head", skipna=False).mean("step")
    found = result_interval(by_layer.transpose("example", "layer"))
    drawn = [charts.series("heads of the layer", by_layer["layer"].values, found.mean, found.low, found.high)]
    return charts.lines(
        "What the heads of each layer add to the answer's logit", "logit(answer) − logit(wrong)", "layer", drawn
    )


def _answer_sources(result: Any) -> list[Chart]:
    found, steps = result.shares(), _steps(result.data)
    known = np.flatnonzero(np.isfinite(found["mean"].values).any(1))
    names = [_source(p) for p in found["place"].values.tolist()]
    by_place = found.transpose("place", "step")
    parts = {k: dict(zip(names, by_place[k].values[:, known])) for k in ("mean", "low", "high")}
    return [
        charts.bars(
            "Where the writers get the answer from",
            "share of pathways",
            [steps[i] for i in known],
            parts["mean"],
            parts["low"],
            parts["high"],
            unit="share",
            stacked=True,
            tints=_TINTS,
        )
    ]


def _functional_rift(result: Any) -> list[Chart]:
    curves, rift = result.curves(), result.rift()
    words = {
        "prior": "memorised next word",
        "context": "next word seen in the prompt",
        "other": "as many other words of the prompt",
        "contextual": "any word of the prompt (first choices)",
    }
    drawn = [
        charts.series(
            text,
            curves["depth"].values,
            *(curves[f"{name}{end}"].values for end in ("", "_low", "_high")),
            dashed=name == "contextual",
        )
        for name, text in words.items()
    ]
    found = np.isfinite(rift.change) and np.isfinite(rift.low)
    span = (rift.low - 0.5, rift.high + 0.5, "where the change lies, 95 % interval") if found else None
    across = "depth (0: embedding)"
    return [charts.lines(result.title, "probability by the lens", across, drawn, unit="share", limits=(0, 1), span=span)]


def _pair_probes(result: Any) -> list[Chart]:
    found, drawn = result.accuracy(), []
    depth = found["depth"].values
    for probe in found["probe"].values.tolist():
        drawn.append(_series(f"{probe} probe", depth, found.sel(probe=probe)))
    probe, _ = result.choice()
    for name, words in (("random", "the same on random weights"), ("stated", "on pairs that one sentence relates")):
        drawn.append(_series(words, depth, result.interval(name).sel(probe=probe), dashed=True))
    level = (result.chance, f"chance {result.chance:.0%}")
    return [charts.lines(result.title, "accuracy", "depth (0: embedding)", drawn, unit="share", limits=(0, 1), level=level)]


def _decision_horizon(result: Any) -> list[Chart]:
    found = result.interval("same")
    drawn = []
    for h in found["sentences"].values.tolist():
        drawn.append(_series(f"after {h} sentences", found["layer"].values, found.sel(sentences=h)))
    return [
        charts.lines(
            "Texts that stay the same when one layer's attention comes from another question",
            "share of texts",
            "layer",
            drawn,
            unit="share",
            limits=(0, 1),
        )
    ]


def _context_abidance(result: Any) -> list[Chart]:
    found = result.by_layer()
    layer = found["layer"].values
    drawn = [
        _series("excess over other prompts", layer, found),
        charts.series("in the own prompt", layer, found["own"].values),
        charts.series("in other examples' prompts", layer, found["elsewhere"].values, dashed=True),
    ]
    return [charts.lines("Likeliest tokens of heads that occur in the prompt", "share of tokens", "layer", drawn, unit="share")]


def _mlp_share(result: Any) -> list[Chart]:
    found = result.shares().transpose("part", "step")
    names = ["attention" if p == "attention" else "MLPs" for p in found["part"].values.tolist()]
    parts = {k: dict(zip(names, found[k].values)) for k in ("mean", "low", "high")}
    return [
        charts.bars(
            result.title,
            "share of the KL divergence restored",
            _steps(result.data),
            parts["mean"],
            parts["low"],
            parts["high"],
            unit="share",
        )
    ]


def _relation_heads(result: Any) -> list[Chart]:
    gain, maps = result.scores("gain"), []
    for relation in gain["relation"].values.tolist():
        at = gain.sel(relation=relation)
        maps.append(
            charts.head_map(
                f"{relation} words",
                _grid(at["mean"]),
                n=int(at["n"].max()),
                low=_grid(at["low"]),
                high=_grid(at["high"]),
                marked=_grid(result.data["selected"].sel(relation=relation)),
                mark="selected on the other half",
            )
        )
    shape = (result.data.sizes["layer"], result.data.sizes["head"])
    label = f"attention beyond that with {result.verbs}"
    return [charts.heads("Heads that attend along relations", label, shape, maps, unit="share")]


def _set_transfer(result: Any) -> list[Chart]:
    found = result.interval(result.main)["mean"].transpose("chosen", "step")
    rows = [f"heads of {s} {k}" for s, k in zip(result.data["chosen"].values, result.data["chosen_kind"].values)]
    return [
        charts.matrix(
            "What the heads of one step keep of the others",
            "accuracy",
            found.values,
            rows,
            _steps(result.data),
            up="kept",
            across="step",
            unit="share",
            scale="sequential",
        )
    ]


def _sets(result: Any, axis: str) -> list[Chart]:
    own, drawn = result.overall(), result.data["random"].mean("step").transpose(axis, "draw", "example")
    names = result.names_in_words()
    random = [bootstrap.mean_interval(values.mean(0), within=bootstrap.SHARE) for values in drawn.values]
    return [
        charts.bars(
            result.title,
            "accuracy over all steps",
            names,
            {"these heads": own["mean"].values, "random heads of the same layers": [float(x.mean) for x in random]},
            {"these heads": own["low"].values, "random heads of the same layers": [float(x.low) for x in random]},
            {"these heads": own["high"].values, "random heads of the same layers": [float(x.high) for x in random]},
            unit="share",
        )
    ]


def _head_overlap(result: Any) -> list[Chart]:
    table = result.table()
    names = [f"{a} and {b}" for a, b in zip(table["a_in_words"], table["b_in_words"])]
    drawn = {"shared heads": table["intersection"], "by chance in the same layers": table["chance_by_layer"]}
    return [charts.bars(result.title, "number of heads", names, drawn)]


def _information_flow(result: Any) -> list[Chart]:
    graphs, data = [], result.data
    cells = list(result.cells())
    for step, kind in zip(data["step"].values.tolist(), data["kind"].values):
        here = [(e, float(data["edges"].sel(example=e, step=s))) for e, s in cells if s == step]
        if not here:
            continue
        example = sorted(here, key=lambda cell: cell[1])[len(here) // 2][0]
        if (graph := flow_graph(result, example, step)) is not None:
            graphs.append({"name": f"step {step}, {kind}, example {example}", **graph})
    if not graphs:
        return []
    about = "One example of each step, the one with a middling number of edges. Thicker edges carry more."
    return [charts.flow(result.title, about, graphs, data.sizes["layer"])]


def flow_graph(result: Any, example: int, step: int) -> dict[str, Any] | None:
    """One graph of `information_flow` as `charts.flow` takes it; None for one without heads."""
    graph, data = result.graph(example, step), result.data
    if not graph.nodes:
        return None
    e, s = (int(np.flatnonzero(data[k].values == v)[0]) for k, v in (("example", example), ("step", step)))
    tokens: dict[int, dict[str, Any]] = {}
    for name in ("edge", "node"):
        for i in np.flatnonzero((data[f"{name}_e"].values == e) & (data[f"{name}_s"].values == s)):
            position = int(data[f"{name}_position"].values[i])
            more: dict[str, Any] = {}
            if name == "edge":
                more = {"segment": str(data["edge_segment"].values[i]), "answer": bool(data["edge_answer"].values[i])}
            word = printable(data[f"{name}_word"].values[i])
            tokens.setdefault(position, {"position": position, "word": word, **more})
    nodes = [{k: getattr(node, k) for k in ("layer", "head", "position", "depth")} for node in graph.nodes]
    edges = [
        {**{k: getattr(edge, k) for k in ("parent", "child", "position", "input")}, "weight": charts.number(edge.weight)}
        for edge in graph.edges
    ]
    return {"tokens": [tokens[p] for p in sorted(tokens)], "nodes": nodes, "edges": edges}


_DRAWN: dict[str, Callable[[Any], list[Any]]] = {
    "knock_out_curve": _knock_out_curve,
    "attention_by_source": _attention_by_source,
    "answer_writers": _answer_writers,
    "answer_sources": _answer_sources,
    "functional_rift": _functional_rift,
    "pair_probes": _pair_probes,
    "decision_horizon": _decision_horizon,
    "context_abidance": _context_abidance,
    "mlp_share": _mlp_share,
    "relation_heads": _relation_heads,
    "set_transfer": _set_transfer,
    "keep_only": lambda result: _sets(result, "set"),
    "remove": lambda result: _sets(result, "size"),
    "head_overlap": _head_overlap,
    "information_flow": _information_flow,
}
