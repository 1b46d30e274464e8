"""Gemma 2: norms before and after each sublayer, soft-caps of scores and logits, windows in every other layer."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.models.gemma2 import modeling_gemma2

from pycotmech.model.families.attention import LayerAttention
from pycotmech.model.families.gemma import GemmaFamily
from pycotmech.model.families.post_norm import PostNormFamily
from pycotmech.model.families.windows import WindowsByKind


class Gemma2Family(WindowsByKind, PostNormFamily, GemmaFamily):
    """`Family` of Gemma2ForCausalLM.

    The scale of scores is the configuration's (`query_pre_attn_scalar`). Logits are capped, c tanh(logit / c), and so are not a
    sum of contributions.
    """

    model_types = ("gemma2",)
    reads = WindowsByKind.reads | GemmaFamily.reads | {
        "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar",
    }  # fmt: skip

    norm_types = (modeling_gemma2.Gemma2RMSNorm,)
    mlp_types = (modeling_gemma2.Gemma2MLP,)
    rotary_types = (modeling_gemma2.Gemma2RotaryEmbedding,)
    embedding_types = (modeling_gemma2.Gemma2TextScaledWordEmbedding,)
    norms = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
    mlp_norm = "pre_feedforward_layernorm"

    def attention(self, l: int) -> LayerAttention:
        attention = self.layers[l].self_attn
        return LayerAttention(attention.scaling, window=self.window(l), softcap=attention.attn_logit_softcapping or 0.0)

    def constants(self) -> tuple[float, ...]:
        return (*super().constants(), self._logit_cap())

    def _logit_cap(self) -> float:
        return self.hf.config.final_logit_softcapping or 0.0

    def unembed(self, n: Tensor, token_ids: Tensor | None = None) -> Tensor:
        logits, cap = super().unembed(n, token_ids), self._logit_cap()
        return cap * torch.tanh(logits / cap) if cap else logits

    def _needs_plain_unembedding(self) -> None:
        if self._logit_cap():
            raise NotImplementedError(
                f"model: its logits are soft-capped at {self._logit_cap():g}, so they are not a sum of contributions; the "
                "logit lens and patching do without one"
            )
        super()._needs_plain_unembedding()

    def widened(self, tokens: Tensor) -> dict[str, Tensor]:
        found, cap = super().widened(tokens), self._logit_cap()
        return {**found, "logits": cap * torch.tanh(found["logits"] / cap)} if cap else found
