"""The six numbers that HeadVis shows of each head, summed over texts, as Neuronpedia computes them."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

METRICS = {
    "self_attention_score": "Mean attention of a token to itself.",
    "prev_token_score": "Mean attention to the token before.",
    "pattern_entropy": "Mean entropy of a row of the pattern, in nats.",
    "qk_distance": "Mean distance between query and key, weighted by attention.",
    "qk_distance_variance": "Variance of that distance.",
    "induction_score": "Attention to what followed earlier copies of the token, per token that has one.",
}

INDUCTION_THRESHOLD = 0.01
"""Weights below it count as 0 in the induction score."""


class HeadSums:
    """Sums over texts from which the metrics follow, float64 [L, H] each.

    Unlike `pcm.head_scores`, the induction score sums all earlier copies, leaves out weights below the threshold, and counts
    the row's own position if its copy is the token before.
    """

    def __init__(self, n_layers: int, n_heads: int) -> None:
        self._sums = {name: np.zeros((n_layers, n_heads)) for name in ("self", "prev", "entropy", "d", "dd", "induction")}
        self._rows = self._pairs = self._repeats = 0

    def begin(self, tokens: Tensor) -> None:
        """Begins a text, tokens [T] with T > 1."""
        T = len(tokens)
        places: dict[int, list[int]] = defaultdict(list)
        pairs = []
        for q, token in enumerate(tokens.tolist()):
            pairs += [(q, p + 1) for p in places[token]]
            self._repeats += bool(places[token])
            places[token].append(q)
        self._queries, self._keys = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(1)
        self._rows += T
        self._pairs += T - 1

    def add(self, layer: int, first: int, p: Tensor) -> None:
        """Adds weights [n, H, T] of the text's rows first .. first + n - 1."""
        n, _, T = p.shape
        p = p.double().cpu()
        row, key = torch.arange(first, first + n), torch.arange(T)
        distance = (row[:, None] - key).abs().double()  # [n, T]
        i = torch.arange(n)
        before = row > 0
        inside = (self._queries >= first) & (self._queries < first + n)
        hits = p[self._queries[inside] - first, :, self._keys[inside]]  # [E, H]
        added = {
            "self": p[i, :, row].sum(0),
            "prev": p[i[before], :, row[before] - 1].sum(0),
            "entropy": torch.special.entr(p).sum((0, 2)),
            "d": torch.einsum("nht,nt->h", p, distance),
            "dd": torch.einsum("nht,nt->h", p, distance.square()),
            "induction": hits.masked_fill(hits < INDUCTION_THRESHOLD, 0).sum(0),
        }
        for name, value in added.items():
            self._sums[name][layer] += value.numpy()

    def metrics(self) -> dict[str, NDArray[np.float64]]:
        """[L, H] of each of `METRICS`; NaN where no token has an earlier copy."""
        s = self._sums
        mean = s["d"] / self._rows
        repeats = self._repeats or np.nan
        values = (s["self"] / self._rows, s["prev"] / self._pairs, s["entropy"] / self._rows)
        values += (mean, s["dd"] / self._rows - mean**2, s["induction"] / repeats)
        return dict(zip(METRICS, values, strict=True))
