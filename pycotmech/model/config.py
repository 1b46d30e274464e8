"""The sizes of a model, and what its matrix products cost."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a model, by the field's usual names.

    The `*_flop` are floating-point operations of one row's matrix products in one layer; attention's own products, which
    depend on the number of keys, are not among them.
    """

    n_layers: int
    n_heads: int
    n_key_value_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int
    family: str
    dtype: torch.dtype

    @property
    def group(self) -> int:
        """Query heads that share one key-value head."""
        return self.n_heads // self.n_key_value_heads

    @property
    def qkv_flop(self) -> float:
        """The projections to queries, keys and values."""
        return 2.0 * self.d_model * (self.n_heads + 2 * self.n_key_value_heads) * self.d_head

    @property
    def attn_out_flop(self) -> float:
        """The output projection of all heads."""
        return 2.0 * self.d_model * self.n_heads * self.d_head

    @property
    def mlp_flop(self) -> float:
        """The three projections of a gated MLP."""
        return 6.0 * self.d_model * self.d_mlp

    @property
    def layer_flop(self) -> float:
        """All of one layer."""
        return self.qkv_flop + self.attn_out_flop + self.mlp_flop

    def logits_flop(self, tokens: int | None = None) -> float:
        """The unembedding of one row, to the logits of so many tokens; None: of the whole vocabulary."""
        return 2.0 * self.d_model * (self.d_vocab if tokens is None else tokens)
