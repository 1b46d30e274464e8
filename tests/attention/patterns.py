"""The materialised truth: Hugging Face's eager attention patterns, and what a summary should say about them."""

from __future__ import annotations

from unittest import mock

import torch
from torch import Tensor, nn


@torch.no_grad()
def patterns(hf: nn.Module, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Eager attention weights [B, L, H, T, T] in the model's own dtype; a float64 model's softmax stays in float64."""
    implementation, hf.config._attn_implementation = hf.config._attn_implementation, "eager"
    try:
        with mock.patch("torch.nn.functional.softmax", _softmax):
            out = hf(ids, attention_mask=mask, output_attentions=True, use_cache=False)
    finally:
        hf.config._attn_implementation = implementation
    return torch.stack(out.attentions, 1)


def _softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Eager attention asks for float32 whatever the model's dtype."""
    return torch.softmax(x, dim, dtype=x.dtype if x.dtype == torch.float64 else dtype)


def entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p).sum(-1)


def top(p: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(weights, keys), descending, ties to the lowest key; 0 and -1 where a row has fewer than k keys."""
    T = p.shape[-1]
    order = p.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    seen = order <= torch.arange(T)[:, None]
    return torch.where(seen, p.gather(-1, order), 0.0), torch.where(seen, order, -1)
