"""Receiver heads: heads that attend to few sentences, found by the kurtosis of vertical scores over traces, against a null.

A head is a receiver head as published (arXiv 2506.19143, section 4) if its kurtosis, averaged over traces, is among the `top`
largest. Every model has such heads. Here a head is named only if its kurtosis is also beyond what the same attention gives
where sentences do not matter: within each distance between sentences the entries of the matrix are permuted, so that how
attention falls with distance stays and columns go. The same permutation is used for all heads, and the largest of them decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pycotmech._words import plural
from pycotmech.cot.tools.result import top_cells
from pycotmech.model.arguments import check_common, check_integer
from pycotmech.stats import bootstrap
from pycotmech.traces.analyses.sentence_attention import PROXIMITY, kurtosis, ranked, vertical_scores, watch_sentences
from pycotmech.traces.parts import Parts, key_of
from pycotmech.traces.result import TraceAnalysis, check_trace, checked_traces, lines_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.model import Model
    from pycotmech.traces.trace import Trace

TOP = 20
"""Receiver heads, as published."""

ALPHA = 0.05
DRAWS = 200
FEWEST = 4
"""Vertical scores from which a kurtosis is taken: that of three is -1.5 whatever they are."""


class ReceiverHeads(TraceAnalysis):
    """Kurtosis of vertical scores of every head over traces, with a null.

    data: kurtosis [trace, layer, head]; vertical [trace, layer, head, sentence], NaN where there is no score; null_mean,
    null_high [layer, head], of the mean kurtosis over traces with sentence order permuted within distance (the mean, and the
    quantile 1 - alpha); p [layer, head], corrected for the number of heads by the largest of all (family-wise).
    """

    name, title = "receiver_heads", "Receiver heads"
    source = "arXiv 2506.19143, section 4"
    label = "kurtosis of vertical scores"
    ranges: ClassVar = {}

    @property
    def values(self) -> NDArray[np.float64]:
        """[L, H]: kurtosis, the mean over traces."""
        return np.asarray(self.data["kurtosis"].mean("trace").values)

    @property
    def top(self) -> list[tuple[int, int]]:
        """The published receiver heads: the `top` heads of largest kurtosis, in this order."""
        return [(int(l), int(h)) for l, h, _ in top_cells(self.data["kurtosis"].mean("trace"), self.about["settings"]["top"])]

    @property
    def named(self) -> list[tuple[int, int]]:
        """Those of `top` whose kurtosis is beyond the null."""
        alpha = self.about["settings"]["alpha"]
        return [(l, h) for l, h in self.top if self.data["p"].values[l, h] <= alpha]

    def sentence_scores(self, trace: int = 0, *, heads: Sequence[tuple[int, int]] | None = None) -> NDArray[np.float64]:
        """The receiver score of each sentence, [S]: the mean vertical score over heads (None: `top`, as published)."""
        scores = self.data["vertical"].values[trace]
        chosen = self.top if heads is None else list(heads)
        return np.mean([scores[l, h] for l, h in chosen], 0)[: len(self.about["sentences"][trace])]

    def reliability(self, *, seed: int = 0) -> bootstrap.Interval | None:
        """Pearson's correlation, over all heads above layer 0, of the mean kurtosis over every second trace with that over the
        others (published split-half reliability), with an interval over traces; None for fewer than two traces."""
        found = self.data["kurtosis"].values
        n = len(found)
        if n < 2:
            return None
        flat = found[:, min(1, found.shape[1] - 1) :].reshape(n, -1)

        def correlation(index: NDArray[np.int64]) -> float:
            halves = flat[index[::2]].mean(0), flat[index[1::2]].mean(0)
            known = np.isfinite(halves[0]) & np.isfinite(halves[1])
            x, y = halves[0][known], halves[1][known]
            return float(np.corrcoef(x, y)[0, 1]) if len(x) > 1 and x.std() > 0 and y.std() > 0 else np.nan

        return bootstrap.statistic_interval(correlation, n, within=bootstrap.SHARES_APART, seed=seed)

    def shown(self) -> xr.Dataset:
        return self.interval("kurtosis", over="trace")

    def table(self) -> pd.DataFrame:
        """A line for each head, largest kurtosis first: layer, head, kurtosis, low, high, null_mean, null_high, p, named."""
        import pandas as pd

        found = self.interval("kurtosis", over="trace")
        L, H = self.values.shape
        layer, head = np.indices((L, H)).reshape(2, -1)
        columns = {"kurtosis": found["mean"], "low": found["low"], "high": found["high"]}
        columns |= {name: self.data[name] for name in ("null_mean", "null_high", "p")}
        frame = pd.DataFrame({"layer": layer, "head": head, **{k: v.values.ravel() for k, v in columns.items()}})
        named = set(self.named)
        frame["named"] = [(l, h) in named for l, h in zip(layer, head)]
        return frame.sort_values("kurtosis", ascending=False, kind="stable", na_position="last").reset_index(drop=True)

    def findings(self) -> list[str]:
        n, total = self.data.sizes["trace"], self.values.size
        alpha, named = self.about["settings"]["alpha"], self.named
        beyond = int((self.data["p"].values <= alpha).sum())
        lines = [
            f"{beyond} of {total} heads have a kurtosis beyond the null (family-wise p <= {alpha:g}, {plural(n, 'trace')}); of "
            f"the {len(self.top)} heads of largest mean kurtosis {len(named)} do"
        ]
        table = self.table().head(5)
        heads = [f"L{r.layer}H{r.head} {r.kurtosis:.1f} (null {r.null_mean:.1f}, p {r.p:.2g})" for r in lines_of(table)]
        lines.append(f"largest: {', '.join(heads)}")
        found = self.reliability()
        lines.append(
            "split-half reliability needs two traces or more"
            if found is None
            else f"split-half reliability over traces r = {found.words('{:.2f}')}"
        )
        return lines

    def plot(self, *, path: str | PathLike | None = None) -> Figure:
        """Kurtosis of every head, and how far it lies above the null's mean."""
        from pycotmech.figures.heatmap import maps_figure

        excess = self.values - self.data["null_mean"].values
        n = self.data.sizes["trace"]
        return maps_figure(
            [self.values, excess], ["kurtosis", "less the null's mean"], columns=2, label="kurtosis of vertical scores",
            title=f"{self.about['model']}: {self.title} ({plural(n, 'trace')})",
            lines=[*self.findings()[:1], *self.small_print()], path=path,
        )  # fmt: skip


def receiver_heads(
    model: Model,
    traces: Trace | Sequence[Trace],
    *,
    top: int = TOP,
    proximity: int = PROXIMITY,
    control_depth: bool = False,
    draws: int = DRAWS,
    alpha: float = ALPHA,
    seed: int = 0,
    progress: Callable[[float, float], None] | None = None,
    parts: Parts | None = None,
) -> ReceiverHeads:
    """Finds heads whose attention to sentences is concentrated on few of them.

    top: how many heads are receiver heads by rank; proximity: sentences nearer than this do not count; control_depth: attention
        as ranks within its row; the defaults are those published.
    draws: permutations of sentence order within distance, from which the null is taken. alpha: family-wise error rate at which
        a head is named. seed: of the permutations. progress: called with (layers done, layers of all traces).
    parts: where finished traces are kept, so that the same call after an interruption computes the others only.

    Traces with fewer than proximity + 4 sentences have no kurtosis that says anything and are left out, which a note says.
    Raises TypeError or ValueError naming the argument, before anything is run.
    Cost: one forward pass without logits for each trace, and draws x L x H x S^2 / 2 additions. Memory: one layer's attention
    from sentence to sentence, and draws x L x H numbers of the null.
    Source: arXiv 2506.19143, section 4 and its code; the null is ours.
    """
    check_common(model, seed=seed)
    check_integer(top, "top", 1)
    check_integer(proximity, "proximity", 1)
    check_integer(draws, "draws", 20)
    if not 1 / (draws + 1) <= alpha < 1:
        raise ValueError(f"alpha: got {alpha}; expected a rate in [{1 / (draws + 1):.3g}, 1), which {draws} draws can reach")
    given = [check_trace(t, model.cfg.d_vocab) for t in checked_traces(traces)]
    used = [t for t in given if t.n_sentences >= proximity + FEWEST]
    if not used:
        raise ValueError(
            f"traces: the longest has {max(t.n_sentences for t in given)} sentences; expected at least {proximity + FEWEST}, "
            f"so that {FEWEST} have a vertical score at proximity {proximity}"
        )
    L, H, S = model.cfg.n_layers, model.cfg.n_heads, max(t.n_sentences for t in used)
    key = key_of("receiver_heads", model, used, proximity=proximity, control_depth=control_depth, draws=draws, seed=seed)
    state = {
        "kurtosis": np.full((len(used), L, H), np.nan), "vertical": np.full((len(used), L, H, S), np.nan, dtype=np.float32),
        "null_sum": np.zeros((draws, L, H)), "done": np.array(0),
    }  # fmt: skip
    state |= {} if parts is None else parts.read(key)
    for n, trace in list(enumerate(used))[int(state["done"]) :]:
        shuffled = _Shuffled(trace.n_sentences, proximity, draws, seed * 1_000_003 + n)
        null = np.full((draws, L, H), np.nan)

        def take(l: int, attention: Tensor, n=n, trace=trace, shuffled=shuffled, null=null, state=state) -> None:
            values = attention.cpu().numpy()
            if control_depth:
                values = ranked(values, proximity)
            scores = vertical_scores(values, proximity=proximity)
            state["vertical"][n, l, :, : trace.n_sentences] = scores
            state["kurtosis"][n, l] = kurtosis(scores)
            null[:, l] = shuffled.kurtosis(torch.from_numpy(values))
            if progress is not None:
                progress(n * L + l + 1, len(used) * L)

        watch_sentences(model, trace, take)
        # A new sum, as parts may be written at any time: the sum and how many traces it holds belong together.
        state = {**state, "null_sum": state["null_sum"] + null, "done": np.array(n + 1)}
        if parts is not None:
            parts.keep(key, state)
    found, vertical = state["kurtosis"], state["vertical"]
    mean, nulls = found.mean(0), state["null_sum"] / len(used)
    data = xr.Dataset(
        {
            "kurtosis": (("trace", "layer", "head"), found),
            "vertical": (("trace", "layer", "head", "sentence"), vertical),
            "null_mean": (("layer", "head"), nulls.mean(0)),
            "null_high": (("layer", "head"), np.quantile(nulls, 1 - alpha, axis=0)),
            "p": (("layer", "head"), corrected(mean, nulls)),
        },
        coords={"trace": np.arange(len(used)), "layer": np.arange(L), "head": np.arange(H), "sentence": np.arange(S)},
    )
    settings = {
        "top": top,
        "proximity": proximity,
        "control_depth": control_depth,
        "draws": draws,
        "alpha": alpha,
        "seed": seed,
    }
    words = f"kurtosis of vertical scores, proximity {proximity}; null: sentence order permuted within distance, {draws} draws"
    short = len(given) - len(used)
    left = "1 trace has too few sentences and was" if short == 1 else f"{short} traces have too few sentences and were"
    notes = [f"{left} left out"] if short else []
    return ReceiverHeads.of_traces(model, used, data, words, settings, notes)


def corrected(observed: NDArray, null: NDArray) -> NDArray[np.float64]:
    """Family-wise p-values of "no larger than under the null": observed [...], null [draws, ...] -> [...].

    Each entry is measured in standard deviations of its null from the null's mean; the largest over all entries of each draw
    decides (Westfall and Young 1993, single step). An entry without an observed value has NaN.
    """
    centre, spread = null.mean(0), null.std(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        z, z_null = (observed - centre) / spread, (null - centre) / spread
    known = np.isfinite(z)
    largest = np.where(known, z_null, -np.inf).reshape(len(null), -1).max(1)
    p = (1 + (largest[:, None] >= z.reshape(1, -1)).sum(0)) / (len(null) + 1)
    return np.where(known, p.reshape(z.shape), np.nan)


class _Shuffled:
    """Attention from sentence to sentence with its entries permuted within each distance, the same way for all heads."""

    def __init__(self, S: int, proximity: int, draws: int, seed: int) -> None:
        later, earlier = torch.tril_indices(S, S, -proximity)
        self.later, self.earlier, self.n = later, earlier, S - proximity
        self.counts = torch.bincount(earlier, minlength=self.n).double()
        distance = (later - earlier).double()
        generator = torch.Generator().manual_seed(seed % 2**63)
        self.by_distance = torch.argsort(distance, stable=True)
        # A random order of all entries that keeps those of one distance together, in the place of their sorted order.
        self.orders = [
            torch.argsort(distance + 0.5 * torch.rand(len(distance), generator=generator, dtype=torch.float64))
            for _ in range(draws)
        ]

    def kurtosis(self, attention: Tensor) -> NDArray[np.float64]:
        """Attention [H, S, S] -> [draws, H]."""
        values = attention[:, self.later, self.earlier]  # [H, entries]
        columns = self.earlier[self.by_distance]
        out = []
        for order in self.orders:
            sums = torch.zeros(len(values), self.n, dtype=torch.float64)
            sums.index_add_(1, columns, values[:, order])
            out.append(kurtosis((sums / self.counts).numpy()))
        return np.stack(out)
