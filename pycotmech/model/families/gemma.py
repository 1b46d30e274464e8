"""Gemma 1, and what later Gemmas share with it: norms that multiply by 1 + weight, a scaled embedding, a gate by GELU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import GELUTanh
from transformers.models.gemma import modeling_gemma

from pycotmech.model.families.llama import LlamaFamily
from pycotmech.model.families.one_module import is_exactly
from pycotmech.model.placement import weight_of


class GemmaFamily(LlamaFamily):
    """`Family` of GemmaForCausalLM. The embedding is scaled by the root of d_model."""

    model_types = ("gemma",)
    reads = LlamaFamily.reads | {"hidden_activation"}

    norm_types = (modeling_gemma.GemmaRMSNorm,)
    mlp_types = (modeling_gemma.GemmaMLP,)
    rotary_types = (modeling_gemma.GemmaRotaryEmbedding,)
    embedding_types = (modeling_gemma.GemmaTextScaledWordEmbedding,)
    activation_types = (GELUTanh,)

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        if getattr(self.hf.config, "use_bidirectional_attention", False):
            raise NotImplementedError("model: use_bidirectional_attention is on; supported: causal attention")

    def constants(self) -> tuple[float, ...]:
        return (*super().constants(), float(self.base.embed_tokens.embed_scale))  # type: ignore[arg-type]

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        embedding = self.base.embed_tokens
        if self.resid_dtype == torch.float64 and is_exactly(embedding, *self.embedding_types):
            return weight_of(embedding)[tokens] * embedding.embed_scale.to(self.resid_dtype)
        return super().embed(tokens, positions)

    def _gated(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.gelu(gate, approximate="tanh").mul_(up)

    def _gain(self, norm: nn.Module) -> Tensor:
        return 1 + weight_of(norm).detach().to(self.resid_dtype)
