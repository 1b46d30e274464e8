"""What families share that norm what a sublayer adds: Gemma 2 and 3 besides the norm of its input, OLMo 2 and 3 instead of it.

`attn_out` and `mlp_out` are what is added to the residual stream, after the norm. A changed head changes the norm's divisor and
with it what every head adds, so a variant joins by the difference of two whole sublayer outputs. What one head adds is its
z W_O divided as the whole row is: the parts add up to `attn_out` exactly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pycotmech.model.families.llama import LlamaFamily, epsilon
from pycotmech.model.families.one_module import is_exactly
from pycotmech.model.placement import bias_of, weight_of


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
        """z [R, H, D] W_O, before the norm: [R, d] in the residual stream's dtype."""
        return super().attn_out(l, z).to(self.resid_dtype)

    def _mlp(self, l: int, n: Tensor) -> Tensor:
        added = super()._mlp(l, n).to(self.resid_dtype)
        return self._norm(self.layers[l].get_submodule(self.mlp_out_norm), added)

    def is_plain_projection(self, l: int) -> bool:
        return False  # what attention adds is not linear in z

    def head_out(self, l: int, z: Tensor) -> Tensor:
        parts = torch.einsum("rhd,hdo->rho", z.to(self.resid_dtype), self._head_matrix(l))
        return parts * self._scale(l, parts.sum(1))[:, None]

    def added_scale(self, l: int, z: Tensor) -> Tensor:
        return self._scale(l, torch.einsum("rhd,hdo->ro", z.to(self.resid_dtype), self._head_matrix(l)))

    def _scale(self, l: int, together: Tensor) -> Tensor:
        """What the norm multiplies rows [R, d] by."""
        norm = self.layers[l].get_submodule(self.attn_out_norm)
        return torch.rsqrt(together.pow(2).mean(-1, keepdim=True) + epsilon(norm)) * self._gain(norm)

    def attn_bias(self, l: int) -> Tensor:
        return torch.zeros(self.cfg.d_model, dtype=self.resid_dtype, device=self.device)

    def _head_matrix(self, l: int) -> Tensor:
        projection, norm = self._output_projection(l), self.layers[l].get_submodule(self.attn_out_norm)
        if not is_exactly(projection, nn.Linear) or bias_of(projection) is not None or not is_exactly(norm, *self.norm_types):
            raise NotImplementedError(
                f"model: layer {l} norms what attention adds, and its output projection or this norm is not a plain one, so "
                "what a single head adds is not defined"
            )
        weight = weight_of(projection).detach().to(self.resid_dtype)
        return weight.T.reshape(self.cfg.n_heads, self.cfg.d_head, -1)

    def _wide_attention(self, layer: Any, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        return layer.get_submodule(self.attn_out_norm)(super()._wide_attention(layer, x, rotary, mask))

    def _wide_mlp(self, layer: Any, x: Tensor) -> Tensor:
        return layer.get_submodule(self.mlp_out_norm)(super()._wide_mlp(layer, x))
