"""Granite 3: Llama with a scale of its own for the embedding, scores, what each sublayer adds, and logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.granite import modeling_granite

from pycotmech.model.families.llama import LlamaFamily


class GraniteFamily(LlamaFamily):
    """`Family` of GraniteForCausalLM.

    `attn_out` and `mlp_out` are what is added to the residual stream, after `residual_multiplier`; so are W_O by head and what
    heads add. The rows of the unembedding are divided by `logits_scaling`.
    """

    model_types = ("granite",)
    reads = LlamaFamily.reads | {"attention_multiplier", "embedding_multiplier", "logits_scaling", "residual_multiplier"}

    norm_types = (modeling_granite.GraniteRMSNorm,)
    mlp_types = (modeling_granite.GraniteMLP,)
    rotary_types = (modeling_granite.GraniteRotaryEmbedding,)

    def constants(self) -> tuple[float, ...]:
        scales = (self.sublayer_scale(l) for l in range(self.cfg.n_layers))
        return (*super().constants(), self._embedding_multiplier, self._logits_scaling, *scales)

    @property
    def _embedding_multiplier(self) -> float:
        return float(self.base.embedding_multiplier)  # type: ignore[arg-type]

    @property
    def _logits_scaling(self) -> float:
        return float(self.hf.config.logits_scaling)

    def sublayer_scale(self, l: int) -> float:
        return float(self.layers[l].residual_multiplier)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return super().embed(tokens, positions) * self._embedding_multiplier

    # ---- what is added to the residual stream ------------------------------------------------------------------------

    def attn_out(self, l: int, z: Tensor) -> Tensor:
        return super().attn_out(l, z) * self.sublayer_scale(l)

    def _mlp(self, l: int, n: Tensor) -> Tensor:
        return super()._mlp(l, n) * self.sublayer_scale(l)

    def head_out(self, l: int, z: Tensor) -> Tensor:
        return super().head_out(l, z) * self.sublayer_scale(l)

    def attn_bias(self, l: int, z: Tensor) -> Tensor:
        return super().attn_bias(l, z) * self.sublayer_scale(l)

    def _head_matrix(self, l: int) -> Tensor:
        return super()._head_matrix(l) * self.sublayer_scale(l)

    def join(self, l: int, x_mid: Tensor, z: Tensor, dz: Tensor, heads: Tensor, index: Tensor | None = None) -> Tensor:
        if self.is_plain_projection(l):  # otherwise by the difference of two `attn_out`
            dz = dz * self.sublayer_scale(l)
        return super().join(l, x_mid, z, dz, heads, index)

    # ---- logits --------------------------------------------------------------------------------------------------------

    def unembed(self, n: Tensor, token_ids: Tensor | None = None) -> Tensor:
        return super().unembed(n, token_ids) / self._logits_scaling

    def unembedding_rows(self, token_ids: Any) -> Tensor:
        return super().unembedding_rows(token_ids).to(self.resid_dtype) / self._logits_scaling

    def unembedding_mean(self) -> Tensor:
        return super().unembedding_mean() / self._logits_scaling

    def unembedding_bias(self) -> Tensor | None:
        bias = super().unembedding_bias()
        return bias / self._logits_scaling if bias is not None and self.plain_unembedding() else bias

    # ---- in float32, for the check at load -----------------------------------------------------------------------------

    def widened(self, tokens: Tensor) -> dict[str, Tensor]:
        found = super().widened(tokens)
        return {**found, "logits": found["logits"] / self._logits_scaling}

    def _wide_attention(self, layer: Any, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        return super()._wide_attention(layer, x, rotary, mask) * layer.residual_multiplier

    def _wide_mlp(self, layer: Any, x: Tensor) -> Tensor:
        return super()._wide_mlp(layer, x) * layer.residual_multiplier
