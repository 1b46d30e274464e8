"""The sizes of a model, and what its matrix products cost."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from pycotmech.display import Described, Facts


@dataclass(frozen=True)
class Mixture:
    """A mixture of experts in place of the MLP: a router chooses some of its experts for each row."""

    n_experts: int
    n_chosen: int
    """Experts that compute one row."""
    d_expert: int
    """Width of an expert's hidden layer."""
    n_layers: int
    """Layers that have it. The others have an MLP."""


@dataclass(frozen=True)
class ModelConfig(Described):
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
    mixture: Mixture | None = None

    def described(self) -> Facts:
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return Facts(f"Sizes of a model of the family {self.family}", {k: str(v) for k, v in found.items() if v is not None})

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


def mlp_weights(cfg: ModelConfig, *, read: bool = False) -> int:
    """Weights of the MLP's products that one row goes through in one layer, or (read=True) all that the layer has.

    Of a mixture these are the router's and those of the chosen experts, or of all. Where some layers have a mixture and
    others do not, it is the mean over the layers.
    """
    dense = cfg.n_mlp_matrices * cfg.d_model * cfg.d_mlp
    if cfg.mixture is None:
        return dense
    m = cfg.mixture
    experts = m.n_experts if read else m.n_chosen
    routed = cfg.d_model * (experts * cfg.n_mlp_matrices * m.d_expert + m.n_experts)
    return round((m.n_layers * routed + (cfg.n_layers - m.n_layers) * dense) / cfg.n_layers)


def mlp_width(cfg: ModelConfig) -> int:
    """Numbers in the hidden layers of one row's MLP, or of its chosen experts."""
    if cfg.mixture is None:
        return cfg.d_mlp
    return max(cfg.mixture.n_chosen * cfg.mixture.d_expert, cfg.d_mlp if cfg.mixture.n_layers < cfg.n_layers else 0)


def layer_flop(cfg: ModelConfig) -> LayerFlop:
    """Floating-point operations of one row in one layer: 2 for each weight of a product, 4 D for each head and key."""
    heads, keys_values = cfg.n_heads * cfg.d_head, 2 * cfg.n_key_value_heads * cfg.d_head
    return LayerFlop(
        qkv=2 * cfg.d_model * (heads + keys_values),
        keys_values=2 * cfg.d_model * keys_values,
        attn_out=2 * cfg.d_model * heads,
        mlp=2 * mlp_weights(cfg),
        per_key=4 * heads,
    )


def logits_flop(cfg: ModelConfig, columns: int | None = None) -> int:
    """Floating-point operations of the unembedding of one row, for so many tokens; None: the whole vocabulary."""
    return 2 * cfg.d_model * (cfg.d_vocab if columns is None else columns)
