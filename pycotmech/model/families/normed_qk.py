"""What families share that norm queries and keys before the rotary embedding: Qwen3, Gemma 3, OLMo 2 and 3, OLMoE.

The sites q and k are what the norms give, as in TransformerLens: what the rotary embedding turns.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from pycotmech.model.families.llama import LlamaFamily, epsilon


class NormedQK(LlamaFamily):
    """A Llama with the norms `self_attn.q_norm` and `self_attn.k_norm`, over the features of each head by itself."""

    def _parts(self) -> dict[str, tuple[type[Any], ...]]:
        return {**super()._parts(), "self_attn.q_norm": self.norm_types, "self_attn.k_norm": self.norm_types}

    def constants(self) -> tuple[float, ...]:
        norms = (norm for layer in self.layers for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm))
        return (*super().constants(), *map(epsilon, norms))

    def tap(self, site: str, l: int) -> tuple[str, Literal["input", "output"]]:
        return (f"model.layers.{l}.self_attn.{site}_norm", "output") if site in ("q", "k") else super().tap(site, l)

    def tapped(self, site: str, x: Tensor) -> Tensor:
        return x if site in ("q", "k") else super().tapped(site, x)  # [B, T, heads, D] there

    def _projections(self, l: int, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super()._projections(l, n)
        attention = self.layers[l].self_attn
        return self._normed(attention.q_norm, q), self._normed(attention.k_norm, k), v

    def _normed(self, norm: nn.Module, x: Tensor) -> Tensor:
        """Queries or keys [R, heads, D] through their norm."""
        return self._norm(norm, x.to(self.resid_dtype).flatten(0, 1)).view(x.shape)


class NormedRowQK(NormedQK):
    """The same with norms over the features of all queries, and of all keys, of a row together."""

    def tapped(self, site: str, x: Tensor) -> Tensor:
        return LlamaFamily.tapped(self, site, x)

    def _normed(self, norm: nn.Module, x: Tensor) -> Tensor:
        return self._norm(norm, x.to(self.resid_dtype).flatten(1)).view(x.shape)
