"""What one layer makes of the products of its queries and keys: scale, soft-cap, window, sinks, softmax. Nobody else does.

A family gives a `LayerAttention` for each layer; so does the attention function inside a Hugging Face model. Every kernel of
attention, and every softmax in plain PyTorch, is reached through it, so that what holds for a run holds for its summaries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pycotmech import ops
from pycotmech.ops.attn_extract import Extract


@dataclass(frozen=True)
class LayerAttention:
    """Causal softmax attention of one layer.

    scale: of the products q . k.
    window: a query sees only so many keys, itself included; 0: all up to itself.
    softcap: a score s becomes softcap * tanh(s / softcap); 0: it stays as it is.
    sinks: [H], a logit of each query head that takes part of the softmax and has no value, so that the weights of the keys add
        up to less than 1; None: there is none. It is neither scaled nor capped, and no window or cut takes it away.

    Letters: R rows, n chosen rows, T keys, H query heads, Hkv key-value heads, D head size. All queries and keys are after
    the rotary embedding.
    """

    scale: float
    window: int = 0
    softcap: float = 0.0
    sinks: Tensor | None = None

    # ---- in plain PyTorch, for chosen rows ---------------------------------------------------------------------------

    def visible(self, positions: Sequence[int] | Tensor, keys: int, device: torch.device | None = None) -> Tensor:
        """Which of the keys 0 .. keys - 1 the queries at these positions [n] see: bool [n, keys]."""
        query = torch.as_tensor(positions, device=device)[:, None]
        key = torch.arange(keys, device=query.device)
        seen = key <= query
        return seen & (query - key < self.window) if self.window else seen

    def weights(self, products: Tensor, positions: Sequence[int] | Tensor, head: int | None = None) -> Tensor:
        """Products q . k [n, T] of one query head, or [n, H, T] of all if `head` is None, of queries at `positions` [n] (or
        [1], for all) with keys 0 .. T - 1 -> attention weights of the same shape, 0 where a key is not seen."""
        scores = products * self.scale
        if self.softcap:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        seen = self.visible(positions, products.shape[-1], products.device)
        seen = seen.view(len(seen), *[1] * (products.ndim - 2), -1)
        scores = scores.masked_fill(~seen, -torch.inf)
        if self.sinks is None:
            return scores.softmax(-1)
        sinks = (self.sinks if head is None else self.sinks[head]).to(scores).expand(scores.shape[:-1])
        return torch.cat((scores, sinks[..., None]), -1).softmax(-1)[..., :-1]

    def pattern(self, q: Tensor, k: Tensor, positions: Sequence[int] | Tensor) -> Tensor:
        """Queries [n, H, D] at `positions` over keys [T, Hkv, D] of positions 0 .. T - 1 -> attention weights [n, H, T]."""
        n, H, D = q.shape
        by_key = q.view(n, k.shape[1], -1, D)  # [n, Hkv, H / Hkv, D]
        products = torch.einsum("nkgd,tkd->nkgt", by_key, k).reshape(n, H, -1)
        return self.weights(products, positions)

    # ---- by kernels: packed rows -------------------------------------------------------------------------------------

    def packed(
        self, q: Tensor, k_shared: Tensor, v_shared: Tensor, k_own: Tensor, v_own: Tensor, table: Tensor,
        cuts: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """z [R, H, D] of packed rows q [R, H, D] over the shared and own keys that the table gives them; arguments as in
        `ops.prefix_attn`. On a GPU it asks nothing of the device: the table's ranges were checked when it was made
        (`Family.row_table`)."""
        options = {
            "window": self.window, "softcap": self.softcap, "cuts": cuts, "sinks": self._sinks_at(q), "checked": True,
        }  # fmt: skip
        return ops.prefix_attn(q, k_shared, v_shared, k_own, v_own, table, self.scale, **options)[0]

    def prompts(self, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], table: Tensor) -> Tensor:
        """The same for whole prompts, packed one after another: q [R, H, D], k and v [R, Hkv, D] -> z [R, H, D]."""
        if self.window or self.softcap or self.sinks is not None or _packed_is_faster(q):
            return self.packed(q, k[:0], v[:0], k, v, table)
        if len(set(lengths)) == 1:
            return self._causal(q, k, v, len(lengths))
        parts = zip(q.split(list(lengths)), k.split(list(lengths)), v.split(list(lengths)), strict=True)
        return torch.cat([self._causal(*part, 1) for part in parts])

    def _causal(self, q: Tensor, k: Tensor, v: Tensor, batch: int) -> Tensor:
        """`batch` packed sequences of equal length, by PyTorch's own attention: q [B * T, H, D] -> z [B * T, H, D]."""
        q4, k4, v4 = (t.unflatten(0, (batch, -1)).transpose(1, 2) for t in (q, k, v))  # [B, heads, T, D]
        grouped = q.shape[1] != k.shape[1]
        z = F.scaled_dot_product_attention(q4, k4, v4, is_causal=True, scale=self.scale, enable_gqa=grouped)
        return z.transpose(1, 2).reshape(q.shape)

    # ---- by kernels: batches [B, heads, T, D], and what is asked of their weights -------------------------------------

    def extract(self, q: Tensor, k: Tensor, v: Tensor, *, starts: Tensor | None = None, **asked) -> Extract:
        """z and statistics of q [B, H, T, D] over k, v [B, Hkv, S, D]; arguments as in `ops.attn_extract`."""
        return ops.attn_extract(q, k, v, starts=starts, sinks=self._sinks_at(q), **self._options, **asked)

    def top_keys(self, q: Tensor, k: Tensor, lse: Tensor, *, topk: int, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Weights and positions of the heaviest keys, [B, H, T, topk] each, as `ops.attn_topk`."""
        return ops.attn_topk(q, k, lse, topk=topk, starts=starts, **self._options)

    def received(
        self, q: Tensor, k: Tensor, lse: Tensor, *, weights: Tensor | None = None, starts: Tensor | None = None
    ) -> Tensor:
        """The attention that each key gets, summed over the rows, [B, H, S], as `ops.attn_colsum`."""
        return ops.attn_colsum(q, k, lse, weights=weights, starts=starts, **self._options)

    def entries(self, q: Tensor, k: Tensor, lse: Tensor, rows: Tensor, keys: Tensor) -> Tensor:
        """The weights of chosen pairs (row, key), [B, H, E], as `ops.attn_entries`."""
        return ops.attn_entries(q, k, lse, rows, keys, **self._options)

    def _sinks_at(self, q: Tensor) -> Tensor | None:
        """The sinks where the queries are: those of a layer may be on another device."""
        return None if self.sinks is None else self.sinks.to(q.device)

    @property
    def _options(self) -> dict:
        """Of the second passes, which have the sinks in lse."""
        return {"scale": self.scale, "window": self.window, "softcap": self.softcap}


def _packed_is_faster(q: Tensor) -> bool:
    """Whether `ops.prefix_attn` runs q on the C++ kernel, which beats PyTorch's fused attention on CPU."""
    return q.device.type == "cpu" and q.dtype != torch.float64 and ops.cpp_missing is None
