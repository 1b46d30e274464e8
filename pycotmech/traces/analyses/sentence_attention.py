"""Attention from sentence to sentence, of every head, from one pass and without a T x T pattern; vertical scores and kurtosis.

Definitions are those of Thought Anchors (Bogdan, Macar, Nanda and Conmy 2025, arXiv 2506.19143, section 4 and its code):

* attention of sentence i to sentence j: the mean weight over the pairs of their tokens, zeros of the causal mask included;
* vertical score of sentence j: the mean attention that it gets from all sentences at least `proximity` after it;
* kurtosis of a head: Fisher's (0 for a normal distribution), of the vertical scores of a trace, biased.

Their code leaves the last token of a text out; here it counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pycotmech._choices import check_choice
from pycotmech._words import plural
from pycotmech.attention.statistics import Wanted, read_layer
from pycotmech.model.arguments import check_integer, check_model
from pycotmech.model.run import watch
from pycotmech.traces.result import TraceAnalysis, check_trace, lines_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.model import Model
    from pycotmech.traces.trace import Trace

PROXIMITY = 4
"""Sentences at a smaller distance do not count in a vertical score, as published."""

_MASS_BYTES = 2**28
"""Bytes of one layer's masses of rows on sentences that exist at once; more heads are taken one after another."""

_EXACT = Wanted(top_k=0, entropy=False, received=False)


class SentenceAttention(TraceAnalysis):
    """Attention from sentence to sentence of one trace.

    data: attention [layer, head, later, earlier], the mean weight over the pairs of tokens of a query sentence (later) and a
    key sentence (earlier); 0 above the diagonal. length [earlier]: tokens of each sentence.
    """

    name, title = "sentence_attention", "Attention from sentence to sentence"
    source = "arXiv 2506.19143, section 4"
    label, share, by_size = "attention, mean over heads", True, False

    @property
    def values(self) -> NDArray:
        """[L, H, S, S], float32."""
        return self.data["attention"].values

    def shown(self) -> xr.Dataset:
        return xr.Dataset({"mean": self.data["attention"].mean(("layer", "head"))})

    def _mean(self, heads: list[tuple[int, int]] | None) -> NDArray:
        """[S, S]: the mean over heads (None: all)."""
        return self.values.mean((0, 1)) if heads is None else np.mean([self.values[l, h] for l, h in heads], 0)

    @staticmethod
    def _mean_of(heads: list[tuple[int, int]] | None) -> str:
        return "mean over all heads" if heads is None else f"mean over {plural(len(heads), 'head')}"

    def vertical_scores(
        self, *, proximity: int = PROXIMITY, control_depth: bool = False, score: Literal["mean", "median"] = "mean"
    ) -> NDArray[np.float64]:
        """[L, H, S], as `vertical_scores`."""
        return vertical_scores(self.values, proximity=proximity, control_depth=control_depth, score=score)

    def kurtosis(self, *, proximity: int = PROXIMITY) -> NDArray[np.float64]:
        """[L, H]: of the vertical scores."""
        return kurtosis(self.vertical_scores(proximity=proximity))

    def graph(self, heads: list[tuple[int, int]] | None = None, *, top: int = 3, proximity: int = 1) -> pd.DataFrame:
        """The heaviest edges of the sentence graph: for each sentence the `top` sentences at least `proximity` before it that
        it attends to most, at the mean over heads (None: all). Columns later, earlier, attention."""
        import pandas as pd

        mean = self._mean(heads)
        rows = []
        for i in range(proximity, len(mean)):
            for j in np.argsort(-mean[i, : i - proximity + 1], kind="stable")[:top]:
                rows.append({"later": i, "earlier": int(j), "attention": float(mean[i, j])})
        return pd.DataFrame(rows, columns=["later", "earlier", "attention"])

    def table(self) -> pd.DataFrame:
        """A line for each head: layer, head, kurtosis, and the sentence with the highest vertical score."""
        import pandas as pd

        scores = self.vertical_scores()
        found = kurtosis(scores)
        L, H = found.shape
        layer, head = np.indices((L, H)).reshape(2, -1)
        best = np.where(np.isfinite(scores).any(-1), np.nan_to_num(scores, nan=-1).argmax(-1), -1)
        return pd.DataFrame({"layer": layer, "head": head, "kurtosis": found.ravel(), "sentence": best.ravel()})

    def findings(self) -> list[str]:
        L, H, S, _ = self.values.shape
        table, over = self.table().nlargest(5, "kurtosis"), f"{L} layers x {H} heads over {S} sentences"
        if not np.isfinite(table["kurtosis"]).any():
            return [f"{over}: too few for vertical scores, which leave out sentences nearer than {PROXIMITY}"]
        heads = [f"L{r.layer}H{r.head} {r.kurtosis:.1f} (sentence {r.sentence})" for r in lines_of(table)]
        return [f"{over}; largest kurtosis of vertical scores: {', '.join(heads)}"]

    def plot(self, *, heads: list[tuple[int, int]] | None = None, path: str | PathLike | None = None) -> Figure:
        """The mean over heads (None: all) as a map [later, earlier], and the vertical score of each sentence."""
        from pycotmech.traces.figures import matrix_figure

        mean = self._mean(heads)
        return matrix_figure(
            np.where(np.tri(len(mean), k=-1) > 0, mean, np.nan), vertical_scores(mean[None, None])[0, 0],
            title=f"{self.about['model']}: {self.title}, {self._mean_of(heads)}", below="vertical score",
            label="mean attention of a pair of tokens", lines=self.small_print(), path=path,
        )  # fmt: skip

    def plot_graph(
        self,
        *,
        heads: list[tuple[int, int]] | None = None,
        top: int = 1,
        proximity: int = 1,
        path: str | PathLike | None = None,
    ) -> Figure:
        """The sentence graph: `graph` as arcs, and the vertical scores as the size of the nodes."""
        from pycotmech.traces.figures import graph_figure

        edges = self.graph(heads, top=top, proximity=proximity)
        return graph_figure(
            edges.itertuples(index=False, name=None),
            vertical_scores(self._mean(heads)[None, None], proximity=proximity)[0, 0], self.about["sentences"][0],
            title=f"{self.about['model']}: where sentences attend, {self._mean_of(heads)}", lines=self.small_print(), path=path,
            edge_label=f"the {plural(top, 'sentence')} at least {proximity} before each that it attends to most",
            node_label="vertical score, the mean attention from later sentences",
        )  # fmt: skip

    def figures(self) -> Mapping[str, Callable[..., Figure]]:
        return {"graph": self.plot_graph}


def sentence_attention(model: Model, trace: Trace, *, progress: Callable[[int, int], None] | None = None) -> SentenceAttention:
    """Attention from every sentence to every sentence, of all layers and heads: [L, H, S, S].

    progress: called with (layers done, layers in all).
    Raises TypeError or ValueError naming the argument.
    Cost: one forward pass without logits. Memory: the result, L H S S numbers of 4 bytes, and one layer's masses of rows
    on sentences, a few heads at a time; nothing of size T x T.
    Source: arXiv 2506.19143, section 4.
    """
    check_model(model)
    check_trace(trace, model.cfg.d_vocab)
    by_layer: list[NDArray] = []

    def take(l: int, attention: Tensor) -> None:
        by_layer.append(attention.float().cpu().numpy())
        if progress is not None:
            progress(l + 1, model.cfg.n_layers)

    watch_sentences(model, trace, take)
    found = np.stack(by_layer)
    L, H, S, _ = found.shape
    data = xr.Dataset(
        {
            "attention": (("layer", "head", "later", "earlier"), found),
            "length": (("earlier",), np.diff(trace.spans(), axis=1)[:, 0]),
        },
        coords={"layer": np.arange(L), "head": np.arange(H), "later": np.arange(S), "earlier": np.arange(S)},
    )
    words = "mean attention weight over the pairs of tokens of two sentences of the reasoning"
    return SentenceAttention.of_traces(model, [trace], data, words, {})


def watch_sentences(model: Model, trace: Trace, take: Callable[[int, Tensor], None]) -> None:
    """Runs a trace, and calls take(layer, attention from sentence to sentence [H, S, S] in float64) for each layer."""
    family, cfg = model.family, model.cfg
    family.refuse_unsupported()
    spans, S = trace.spans(), trace.n_sentences
    begin, end = int(spans[0, 0]), int(spans[-1, 1])
    labels = trace.labels()[:end].to(family.device)
    rows = torch.arange(begin, end, device=family.device)
    of_row = labels[begin:].long()
    lengths = torch.tensor(spans[:, 1] - spans[:, 0], device=family.device, dtype=torch.float64)

    def attend(l: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        group, attention = cfg.n_heads // k.shape[1], family.attention(l)
        step = max(1, _MASS_BYTES // (4 * group * end * S))  # key-value heads
        z, of_heads = [], []
        for a in range(0, k.shape[1], step):
            b = min(a + step, k.shape[1])
            heads = slice(a * group, b * group)
            sinks = None if attention.sinks is None else attention.sinks[heads]
            part, statistics = read_layer(
                l, q[:, heads], k[:, a:b], v[:, a:b], wanted=_EXACT, labels=labels, n_segments=S, rows=rows,
                attention=replace(attention, sinks=sinks),
            )  # fmt: skip
            z.append(part)
            sums = torch.zeros(statistics.mass.shape[1], S, S, dtype=torch.float64, device=family.device)
            sums.index_add_(1, of_row, statistics.mass[0].double())  # [heads, S, S]: rows of one sentence added up
            of_heads.append(sums)
        take(l, torch.cat(of_heads) / (lengths[:, None] * lengths))
        return z[0] if len(z) == 1 else torch.cat(z, 1)

    watch(family, trace.tokens[:end][None], attend)


def vertical_scores(
    attention: NDArray,
    *,
    proximity: int = PROXIMITY,
    control_depth: bool = False,
    score: Literal["mean", "median"] = "mean",
) -> NDArray[np.float64]:
    """The attention that each sentence gets from all sentences at least `proximity` after it: [..., S, S] -> [..., S].

    control_depth: whether each row's attention is replaced by its rank in the row, divided by the number of sentences that the
        row ranks, as published for reading across depths. score: of a column, its mean (published) or its median.
    NaN for the last `proximity` sentences, after which there is none so far away.
    """
    check_integer(proximity, "proximity", 1)
    check_choice("score", score, ("mean", "median"))
    S = attention.shape[-1]
    counts = np.tri(S, k=-proximity, dtype=bool)
    if control_depth and proximity < S:
        x = ranked(attention, proximity)
    else:
        x = np.where(counts, np.asarray(attention, dtype=np.float64), np.nan)
    out = np.full(attention.shape[:-1], np.nan)
    known = max(0, S - proximity)
    if known and score == "mean":
        out[..., :known] = np.nansum(x, -2)[..., :known] / counts.sum(0)[:known]
    elif known:
        out[..., :known] = np.nanmedian(x[..., :known], -2)
    return out


def ranked(attention: NDArray, proximity: int) -> NDArray[np.float64]:
    """Attention as ranks within its rows, divided by the number of sentences that the row ranks, those at least `proximity`
    before it: [..., S, S] -> [..., S, S]; NaN elsewhere."""
    from scipy.stats import rankdata

    counts = np.tri(attention.shape[-1], k=-proximity, dtype=bool)
    x = np.where(counts, np.asarray(attention, dtype=np.float64), np.nan)
    ranks = rankdata(x, axis=-1, nan_policy="omit")
    return np.where(counts, ranks / np.maximum(counts.sum(1), 1)[:, None], np.nan)


def kurtosis(scores: NDArray) -> NDArray[np.float64]:
    """Fisher's kurtosis of the scores of sentences that are not NaN, biased as published: [..., S] -> [...]; NaN where fewer
    than two are left, or all are equal."""
    x = np.asarray(scores, dtype=np.float64)
    there = np.isfinite(x)
    n = there.sum(-1)
    few = np.maximum(n, 1)
    centre = np.where(there, x, 0.0).sum(-1) / few
    off = np.where(there, x - centre[..., None], 0.0)
    second, fourth = (off**2).sum(-1) / few, (off**4).sum(-1) / few
    # Scores that are equal but for rounding have no shape.
    flat = second <= (1e-12 * np.abs(centre)) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((n > 1) & ~flat, fourth / second**2 - 3.0, np.nan)
