"""What families share that norm what a sublayer adds: Gemma 2 and 3 and GLM-4 besides the norm of its input, OLMo 2 and 3
instead of it.

`attn_out` and `mlp_out` are what is added to the residual stream, after the norm. A changed head changes the norm's divisor and
with it what every head adds, so a variant joins by the difference of two whole sublayer outputs. What one head adds is its
z W_O divided as the whole row is, and so is the projection's bias: the parts add up to `attn_out` exactly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pycotmech.model.families.llama import LlamaFamily, epsilon
from pycotmech.model.families.one_module import is_exactly


class PostNormFamily(LlamaFamily):
    """A Llama whose layers norm what attention and MLP add."""

    attn_out_norm = "post_attention_layernorm"
    """Name of the norm of what attention adds."""
    mlp_out_norm = "post_feedforward_layernorm"

    def sublayers(self, l: int) -> tuple[str, str]:
        return f"model.layers.{l}.{self.attn_out_norm}", f"model.layers.{l}.{self.mlp_out_norm}"

    def attn_out(self, l: int, z: Tensor) -> Tensor:
        return self._norm(self.layers[l].get_submodule(self.attn_out_norm), self._projected(l, z))

    def _projected(self, l: int, z: Tensor) -> Tensor:
        return super()._projected(l, z).to(self.resid_dtype)

    def _mlp(self, l: int, n: Tensor) -> Tensor:
        added = super()._mlp(l, n).to(self.resid_dtype)
        return self._norm(self.layers[l].get_submodule(self.mlp_out_norm), added)

    def is_plain_projection(self, l: int) -> bool:
        return False  # what attention adds is not linear in z

    def head_out(self, l: int, z: Tensor) -> Tensor:
        parts = torch.einsum("rhd,hdo->rho", z.to(self.resid_dtype), self._head_matrix(l))
        return parts * self._scale(l, parts.sum(1))[:, None]

    def attn_bias(self, l: int, z: Tensor) -> Tensor:
        return self._projection_bias(l) * self.added_scale(l, z)

    def added_scale(self, l: int, z: Tensor) -> Tensor:
        return self._scale(l, torch.einsum("rhd,hdo->ro", z.to(self.resid_dtype), self._head_matrix(l)))

    def _scale(self, l: int, heads: Tensor) -> Tensor:
        """What the norm multiplies rows by, [R, d], from what their heads add up to before it, [R, d]."""
        norm = self.layers[l].get_submodule(self.attn_out_norm)
        together = heads + self._projection_bias(l)
        return torch.rsqrt(together.pow(2).mean(-1, keepdim=True) + epsilon(norm)) * self._gain(norm)

    def _head_matrix(self, l: int) -> Tensor:
        if not is_exactly(self.layers[l].get_submodule(self.attn_out_norm), *self.norm_types):
            raise NotImplementedError(
                f"model: layer {l} norms what attention adds, and something is attached to this norm, so what a single head "
                "adds is not defined"
            )
        return super()._head_matrix(l)

    def _wide_attention(self, layer: Any, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        return layer.get_submodule(self.attn_out_norm)(super()._wide_attention(layer, x, rotary, mask))

    def _wide_mlp(self, layer: Any, x: Tensor) -> Tensor:
        return layer.get_submodule(self.mlp_out_norm)(super()._wide_mlp(layer, x))
