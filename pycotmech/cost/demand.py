"""What a question asks of a machine, as counts that follow from shapes, and the work that these stand for."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import torch

from pycotmech.display import Described, Facts
from pycotmech.model.config import ModelConfig, layer_flop, logits_flop, mlp_weights, mlp_width

PROMPT_LAUNCHES, VARIANT_LAUNCHES = 16, 76
"""Kernels of a layer in a pass over prompts and in one over variants, as `tests/engine/test_launches.py` counts them."""


class Counts:
    """A dataclass of numbers that add up field by field."""

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))  # type: ignore[arg-type]

    def __mul__(self, times: float) -> Self:
        """So many times the same."""
        return type(self)(*(times * getattr(self, f.name) for f in fields(self)))  # type: ignore[arg-type]

    __rmul__ = __mul__


@dataclass(frozen=True)
class Demand(Counts, Described):
    """Counts of work, additive. A device says how long they take (`Device.seconds`).

    layer_rows: rows that go through a layer, summed over layers: those of one token are n_layers.
    passes: how often the weights of a layer are read: once for each layer and block of rows that goes through it.
    keys: for each of these rows and layers the keys that the row sees, summed.
    weighed: those of `keys` whose attention weights are summarised as well (masses, entropy, top keys, attention received);
    summarised: the rows that they are of, in every layer.
    unembedded: rows that go through the unembedding of the whole vocabulary and a softmax or a metric of its logits.
    wide: FLOP of other products in the residual stream's dtype, such as projections of single heads.
    traffic: bytes that steps which are no products read and write, beside those of layers and logits.
    launches: kernels that a GPU is asked to run one by one, where passes are not replayed.
    """

    layer_rows: float = 0.0
    passes: float = 0.0
    keys: float = 0.0
    weighed: float = 0.0
    summarised: float = 0.0
    unembedded: float = 0.0
    wide: float = 0.0
    traffic: float = 0.0
    launches: float = 0.0

    def described(self) -> Facts:
        """The counts that are not 0."""
        found = {f.name.replace("_", " "): getattr(self, f.name) for f in fields(self)}
        return Facts("What a question asks of a machine", {k: f"{v:,.0f}" for k, v in found.items() if v})

    def token_forwards(self, cfg: ModelConfig) -> float:
        """The rows in passes of one token through all layers."""
        return self.layer_rows / cfg.n_layers

    def flop(self, cfg: ModelConfig) -> float:
        """FLOP of all products: with weights, of attention, of the unembedding, and the wide ones."""
        row = layer_flop(cfg)
        return self.layer_rows * row.linear + self.keys * row.per_key + self.unembedded * logits_flop(cfg) + self.wide

    def bytes(self, cfg: ModelConfig) -> float:
        """Bytes read and written: weights once a pass, what goes from one kernel to the next, the unembedding's logits."""
        rows = self.layer_rows * row_traffic(cfg) + self.unembedded * logit_traffic(cfg)
        return self.passes * layer_weight_bytes(cfg) + rows + self.traffic


def layer_weight_bytes(cfg: ModelConfig) -> float:
    """Bytes of the weights of one layer's products, of a mixture those of all experts."""
    row = layer_flop(cfg)
    return ((row.qkv + row.attn_out) / 2 + mlp_weights(cfg, read=True)) * cfg.dtype.itemsize


def resid_dtype(cfg: ModelConfig) -> torch.dtype:
    """The dtype of the residual stream."""
    return torch.float64 if cfg.dtype == torch.float64 else torch.float32


def row_traffic(cfg: ModelConfig) -> float:
    """Bytes that kernels other than products read and write for a row in a layer: two norms, the rotation, keys and values put
    away, attention's queries and output, the gate, and two sums. Products' own inputs and outputs are part of their speed."""
    n, w = cfg.dtype.itemsize, resid_dtype(cfg).itemsize
    d, heads, keys = cfg.d_model, cfg.n_heads * cfg.d_head, cfg.n_key_value_heads * cfg.d_head
    norms, sums = 2 * d * (w + n), 2 * d * (n + 2 * w)
    rotated, put, attention = 2 * (heads + keys) * n, 4 * keys * n, 2 * heads * n
    gate = cfg.n_mlp_matrices * mlp_width(cfg) * n
    return float(norms + sums + rotated + put + attention + gate)


def logit_traffic(cfg: ModelConfig) -> float:
    """Bytes that one row of logits costs after the product that made it: written, widened to float64, and read some three times
    by a softmax or a divergence."""
    return float(cfg.d_vocab * (2 * resid_dtype(cfg).itemsize + 4 * 8))
