"""Llama and models of its shape: pre-norm, rotary positions, SwiGLU, MHA or GQA, tied or untied unembedding."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.models.llama import modeling_llama

from pycotmech import ops
from pycotmech.model.config import ModelConfig
from pycotmech.model.families.attention import LayerAttention
from pycotmech.model.families.base import VOCAB_SLICE, Family, is_exactly, linear

_MLP_BYTES = 48 * 2**20
"""The MLP's hidden rows that exist at once on CPU: below twice what the C library can be made to keep (`base`), beyond which
the heap is given back."""


class LlamaFamily(Family):
    """`Family` of LlamaForCausalLM."""

    model_types = ("llama",)

    norm_types: tuple[type[Any], ...] = (modeling_llama.LlamaRMSNorm,)
    mlp_types: tuple[type[Any], ...] = (modeling_llama.LlamaMLP,)
    rotary_types: tuple[type[Any], ...] = (modeling_llama.LlamaRotaryEmbedding,)

    hf: modeling_llama.LlamaForCausalLM  # or a class with the same parts under the same names

    def __init__(self, hf: nn.Module) -> None:
        hf = cast(modeling_llama.LlamaForCausalLM, hf)
        config = hf.config
        self.base = hf.model
        self.layers = [cast(modeling_llama.LlamaDecoderLayer, layer) for layer in self.base.layers]
        embedding = self.base.embed_tokens.weight
        cfg = ModelConfig(
            n_layers=self._n_layers(hf),
            n_heads=config.num_attention_heads,
            n_key_value_heads=config.num_key_value_heads or config.num_attention_heads,
            d_model=config.hidden_size,
            d_head=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            d_mlp=config.intermediate_size,
            d_vocab=config.vocab_size,
            n_ctx=config.max_position_embeddings,
            family=config.model_type,
            dtype=embedding.dtype,
        )
        on_cpu = embedding.device.type == "cpu"
        self.mlp_rows = max(256, _MLP_BYTES // (3 * cfg.d_mlp * cfg.dtype.itemsize)) if on_cpu else 2**62
        """Rows of the MLP that are computed at once."""
        super().__init__(hf, cfg, embedding.device)

    # ---- what would be computed wrongly is refused -----------------------------------------------------------------

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        if self.hf.training and getattr(self.hf.config, "attention_dropout", 0.0):
            raise ValueError("model: in training mode with attention_dropout > 0; call .eval() on it first")
        rope = getattr(self.hf.config, "rope_parameters", None) or {}
        kind = rope.get("rope_type", "default")
        if kind in ("dynamic", "longrope"):
            raise NotImplementedError(
                f"model: rope_type {kind!r} changes with the length of the prompt; supported: default, linear, llama3, yarn"
            )

    def is_plain(self) -> bool:
        kinds: dict[str, tuple[type[Any], ...]] = {
            "input_layernorm": self.norm_types,
            "post_attention_layernorm": self.norm_types,
            "mlp": self.mlp_types,
            "mlp.act_fn": (SiLUActivation, nn.SiLU),
            **{f"self_attn.{name}": (nn.Linear,) for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
            **{f"mlp.{name}": (nn.Linear,) for name in ("gate_proj", "up_proj", "down_proj")},
        }
        around = is_exactly(self.base.embed_tokens, nn.Embedding) and is_exactly(self.base.rotary_emb, *self.rotary_types)
        return around and all(is_exactly(layer.get_submodule(m), *kind) for layer in self.layers for m, kind in kinds.items())

    def constants(self) -> tuple[float, ...]:
        numbers = [float(self.base.rotary_emb.attention_scaling)]
        for l, layer in enumerate(self.layers):
            rule = self.attention(l)
            numbers += [rule.scale, rule.window, rule.softcap]
            numbers += [layer.input_layernorm.variance_epsilon, layer.post_attention_layernorm.variance_epsilon]
        return tuple(numbers)

    def _never_called(self) -> Iterator[tuple[str, nn.Module]]:
        yield "the model itself", self.hf
        yield "model", self.hf.model
        for l, layer in enumerate(self.hf.model.layers):
            layer = cast(modeling_llama.LlamaDecoderLayer, layer)
            yield f"model.layers.{l}", layer
            yield f"model.layers.{l}.self_attn", layer.self_attn

    def _n_layers(self, hf: nn.Module) -> int:
        hf = cast(modeling_llama.LlamaForCausalLM, hf)
        return min(len(hf.model.layers), hf.config.num_hidden_layers)  # as many as its own forward pass runs

    # ---- the model's own modules, for hooks --------------------------------------------------------------------------

    def sublayers(self, l: int) -> tuple[str, str]:
        return f"model.layers.{l}.self_attn", f"model.layers.{l}.mlp"

    def tap(self, site: str, l: int) -> tuple[str, Literal["input", "output"]]:
        if site == "final":
            return "model.norm", "input"
        attention = f"model.layers.{l}.self_attn"
        return (f"{attention}.o_proj", "input") if site == "z" else (f"{attention}.{site}_proj", "output")

    @torch.no_grad()
    def widened(self, tokens: Tensor) -> dict[str, Tensor]:
        T = len(tokens)
        out: dict[str, Tensor] = {}
        positions = torch.arange(T, device=self.device)
        x = self.base.embed_tokens(tokens.to(self.device))[None].float()  # [1, T, d]
        rotary = self.base.rotary_emb(x, position_ids=positions[None])
        for l, layer in enumerate(self.layers):
            seen = self.attention(l).visible(positions, T)
            mask = torch.zeros(T, T, device=self.device).masked_fill(~seen, -torch.inf)[None, None]
            wide = copy.deepcopy(layer).float()
            wide.self_attn.config._attn_implementation = "eager"  # the copy's; takes the additive mask
            attention = wide.self_attn(wide.input_layernorm(x), position_embeddings=rotary, attention_mask=mask)[0]
            x = x + attention
            mlp = wide.mlp(wide.post_attention_layernorm(x))
            x = x + mlp
            out |= zip(self.sublayers(l), (attention[0].cpu(), mlp[0].cpu()), strict=True)
        n = copy.deepcopy(self.base.norm).float()(x)[0]
        weight = self.hf.lm_head.weight
        slices = (weight[a : a + VOCAB_SLICE] for a in range(0, len(weight), VOCAB_SLICE))
        return {**out, "logits": torch.cat([n @ rows.float().T for rows in slices], -1).cpu()}

    # ---- the stages of a forward pass, on rows -----------------------------------------------------------------------

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return self.base.embed_tokens(tokens).to(self.resid_dtype)

    def rotary(self, positions: Tensor) -> Tensor:
        like = torch.empty(0, dtype=self.resid_dtype, device=self.device)
        cos, sin = self.base.rotary_emb(like, position_ids=positions[None])
        return torch.cat((cos, sin))[None]  # [1, 2, R, D]

    def qkv(self, l: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        layer, D = self.layers[l], self.cfg.d_head
        n = self._norm(layer.input_layernorm, x)
        attn = layer.self_attn
        q, k, v = (linear(p, n).view(len(x), -1, D) for p in (attn.q_proj, attn.k_proj, attn.v_proj))
        # Queries and keys are rotated in place by the caller; what a hook on a projection kept must not change under it.
        own_q, own_k = is_exactly(attn.q_proj, nn.Linear), is_exactly(attn.k_proj, nn.Linear)
        return q if own_q else q.clone(), k if own_k else k.clone(), v

    def attention(self, l: int) -> LayerAttention:
        return LayerAttention(self.layers[l].self_attn.scaling)

    def _output_projection(self, l: int) -> nn.Linear:
        return self.layers[l].self_attn.o_proj

    def mlp_out(self, l: int, x: Tensor) -> Tensor:
        layer = self.layers[l]
        n = self._norm(layer.post_attention_layernorm, x)
        mlp = cast(modeling_llama.LlamaMLP, layer.mlp)
        if not is_exactly(mlp, *self.mlp_types) or not is_exactly(mlp.act_fn, SiLUActivation, nn.SiLU):
            return mlp(n[None])[0]
        parts = []
        for rows in n.split(self.mlp_rows):
            hidden = ops.swiglu(linear(mlp.gate_proj, rows), linear(mlp.up_proj, rows))  # [rows, d_mlp]
            parts.append(linear(mlp.down_proj, hidden))
            del hidden
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def final_norm(self, x: Tensor) -> Tensor:
        norm = self.base.norm
        if not self.plain_unembedding() or not is_exactly(norm, *self.norm_types):
            return self._norm(norm, x)
        return ops.add_rms_norm(x, None, norm.weight.to(x.dtype), norm.variance_epsilon)

    def final_factor(self, x: Tensor) -> Tensor:
        return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + float(self.base.norm.variance_epsilon))

    def final_gain(self) -> Tensor:
        return self.base.norm.weight.detach().to(self.resid_dtype)

    def _unembedding(self) -> nn.Linear:
        return self.hf.lm_head

    def _norm(self, module: modeling_llama.LlamaRMSNorm, x: Tensor) -> Tensor:
        if is_exactly(module, *self.norm_types):
            return ops.add_rms_norm(x, None, module.weight, module.variance_epsilon)
        return module(x.to(self.dtype)[None])[0]
