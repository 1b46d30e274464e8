"""The sizes of a model, and what its matrix products cost."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a model, by the field's usual names."""

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
    n_mlp_matrices: int = 3
    """Of size d_model by d_mlp: 3 of a gated MLP, 2 of a plain one."""
    parallel: bool = False
    """Whether the MLP of a layer reads what attention reads, resid_pre, so that there is no resid_mid."""

    @property
    def group(self) -> int:
        """Query heads that share one key-value head."""
        return self.n_heads // self.n_key_value_heads


@dataclass(frozen=True)
class LayerFlop:
    """Floating-point operations of one row in each part of one layer."""

    qkv: int
    """All three projections."""
    keys_values: int
    """The projections to keys and values alone, which are part of `qkv`."""
    attn_out: int
    mlp: int
    per_key: int
    """Of attention, for each key that the row sees."""

    @property
    def linear(self) -> int:
        """All matrix products with weights."""
        return self.qkv + self.attn_out + self.mlp


def layer_flop(cfg: ModelConfig) -> LayerFlop:
    """Floating-point operations of one row in one layer: 2 for each weight of a product, 4 D for each head and key."""
    heads, keys_values = cfg.n_heads * cfg.d_head, 2 * cfg.n_key_value_heads * cfg.d_head
    return LayerFlop(
        qkv=2 * cfg.d_model * (heads + keys_values),
        keys_values=2 * cfg.d_model * keys_values,
        attn_out=2 * cfg.d_model * heads,
        mlp=2 * cfg.n_mlp_matrices * cfg.d_model * cfg.d_mlp,
        per_key=4 * heads,
    )


def logits_flop(cfg: ModelConfig, columns: int | None = None) -> int:
    """Floating-point operations of the unembedding of one row, for so many tokens; None: the whole vocabulary."""
    return 2 * cfg.d_model * (cfg.d_vocab if columns is None else columns)
