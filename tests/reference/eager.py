"""Attention patterns and masked forwards of a Hugging Face model on eager attention: T x T, one at a time, the obvious way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tests.reference.truth import activations, edited, logits_of


def patterns(hf: nn.Module, tokens: Tensor, n_layers: int) -> Tensor:
    """Attention weights [L, H, T, T] of a plain forward pass."""
    found = activations(hf, tokens)
    return torch.stack([found["pattern", l] for l in range(n_layers)])


def sentence_matrix(pattern: Tensor, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Attention [H, T, T] -> [H, S, S]: the mean of each block of pairs of tokens."""
    out = np.zeros((len(pattern), len(spans), len(spans)))
    for i, (a, b) in enumerate(spans):
        for j, (c, d) in enumerate(spans):
            out[:, i, j] = pattern[:, a:b, c:d].double().mean((1, 2)).numpy()
    return out


def vertical_loop(matrix: np.ndarray, proximity: int) -> np.ndarray:
    """[S, S] -> [S], sentence by sentence."""
    S = len(matrix)
    return np.array([matrix[j + proximity :, j].mean() if j + proximity < S else np.nan for j in range(S)])


def suppressed_logits(
    hf: nn.Module, tokens: Tensor, span: tuple[int, int], first: int, heads: Sequence[tuple[int, int | None]]
) -> Tensor:
    """Logits [T, V] of one forward in which rows from `first` on do not see a span, in these (layer, head or None)."""
    keys = list(range(*span))
    edits = [("edge", l, h, list(range(first, len(tokens))), keys) for l, h in heads]
    with edited(hf, edits):
        return logits_of(hf, tokens)


def kl_rows(base: Tensor, other: Tensor, temperature: float = 1.0) -> np.ndarray:
    """KL(P_base || P_other) of each row, in float64: [T, V] twice -> [T]."""
    p, q = (torch.log_softmax(x.double() / temperature, -1) for x in (base, other))
    return (p.exp() * (p - q)).sum(-1).numpy()
