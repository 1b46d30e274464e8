"""Llama and models of its shape: pre-norm, rotary positions, SwiGLU, MHA or GQA, tied or untied unembedding."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.models.llama import modeling_llama

from pycotmech import ops
from pycotmech.model.config import Mixture, ModelConfig
from pycotmech.model.families import fields
from pycotmech.model.families.attention import LayerAttention
from pycotmech.model.families.base import Family
from pycotmech.model.families.launches import products_in_one_buffer
from pycotmech.model.families.one_module import is_exactly, linear, projected_heads
from pycotmech.model.placement import device_of, weight_of

_MLP_BYTES = 48 * 2**20
"""The MLP's hidden rows that exist at once on CPU: below twice what the C library can be made to keep (`sizes`), beyond which
the heap is given back."""


class LlamaFamily(Family):
    """`Family` of LlamaForCausalLM."""

    model_types = ("llama",)

    reads = fields.LLAMA
    norm_types: tuple[type[Any], ...] = (modeling_llama.LlamaRMSNorm,)
    mlp_types: tuple[type[Any], ...] = (modeling_llama.LlamaMLP,)
    rotary_types: tuple[type[Any], ...] = (modeling_llama.LlamaRotaryEmbedding,)
    embedding_types: tuple[type[Any], ...] = (nn.Embedding,)
    activation_types: tuple[type[Any], ...] = (SiLUActivation, nn.SiLU)
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    """Names of a layer's norms. The first is that of attention's input, unless a subclass computes it otherwise."""
    mlp_norm = "post_attention_layernorm"
    """Name of the norm that the MLP reads through."""

    hf: modeling_llama.LlamaForCausalLM  # or a class with the same parts under the same names

    def __init__(self, hf: nn.Module) -> None:
        hf = cast(modeling_llama.LlamaForCausalLM, hf)
        config = hf.config
        self.base = hf.model
        self.layers: list[Any] = list(self.base.layers)  # of the class that the model has them in
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
            mixture=self._mixture(config),
        )
        device = device_of(self.base.embed_tokens)
        self.mlp_rows = max(256, _MLP_BYTES // (3 * cfg.d_mlp * cfg.dtype.itemsize)) if device.type == "cpu" else 2**62
        """Rows of the MLP that are computed at once."""
        super().__init__(hf, cfg, device)

    def _mixture(self, config: Any) -> Mixture | None:
        """The mixture of experts that layers have in place of the MLP; None for families that are not `routed`."""
        if not self.routed:
            return None
        layers = sum(hasattr(layer.mlp, "experts") for layer in self.layers)
        return Mixture(config.num_local_experts, config.num_experts_per_tok, self._d_expert(config), layers)

    def _d_expert(self, config: Any) -> int:
        return config.intermediate_size

    # ---- what would be computed wrongly is refused -----------------------------------------------------------------

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        if type(self).window is LlamaFamily.window:
            return
        for l, layer in enumerate(self.layers):
            # Layers that were taken out or moved: the model masks by the one, and some attention functions read the other.
            asked = self.window(l)
            here = getattr(layer.self_attn, "sliding_window", asked) or 0
            if here != asked:
                raise ValueError(
                    f"model: layer {l} has {_keys(here)} itself and {_keys(asked)} by the configuration (layer_types, "
                    "sliding_window); set both alike"
                )

    def is_plain(self) -> bool:
        kinds = self._parts()
        around = is_exactly(self.base.embed_tokens, *self.embedding_types) and is_exactly(
            self.base.rotary_emb, *self.rotary_types
        )
        return around and all(is_exactly(layer.get_submodule(m), *kind) for layer in self.layers for m, kind in kinds.items())

    def _parts(self) -> dict[str, tuple[type[Any], ...]]:
        """Name in a layer -> the classes that are computed from their weights, of every module that takes part."""
        return {
            **dict.fromkeys(self.norms, self.norm_types),
            "mlp": self.mlp_types,
            "mlp.act_fn": self.activation_types,
            **{f"self_attn.{name}": (nn.Linear,) for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
            **{f"mlp.{name}": (nn.Linear,) for name in ("gate_proj", "up_proj", "down_proj")},
        }

    def constants(self) -> tuple[float, ...]:
        numbers = self._rotary_scales()
        for l, layer in enumerate(self.layers):
            rule = self.attention(l)
            numbers += [rule.scale, rule.window, rule.softcap]
            numbers += [epsilon(layer.get_submodule(name)) for name in self.norms]
        return tuple(numbers)

    def _rotary_scales(self) -> list[float]:
        return [float(self.base.rotary_emb.attention_scaling)]

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
        x = self.embed(tokens.to(self.device), positions)[None].float()  # [1, T, d]
        for l, layer in enumerate(self.layers):
            rotary = self._wide_rotary(l, x, positions[None])
            seen = self.attention(l).visible(positions, T)
            mask = torch.zeros(T, T, device=self.device).masked_fill(~seen, -torch.inf)[None, None]
            wide = copy.deepcopy(layer).float()
            wide.self_attn.config._attn_implementation = "eager"  # the copy's; takes the additive mask
            attention = self._wide_attention(wide, x, rotary, mask)
            x = x + attention
            mlp = self._wide_mlp(wide, x)
            x = x + mlp
            out |= zip(self.sublayers(l), (attention[0].cpu(), mlp[0].cpu()), strict=True)
        return {**out, "logits": self._widened_logits(self.base.norm, x)}

    def _wide_rotary(self, l: int, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.base.rotary_emb(x, position_ids=positions)

    def _wide_attention(self, layer: Any, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """What attention of a widened layer adds, as the Hugging Face layer computes it."""
        return layer.self_attn(layer.input_layernorm(x), position_embeddings=rotary, attention_mask=mask)[0]

    def _wide_mlp(self, layer: Any, x: Tensor) -> Tensor:
        return layer.mlp(layer.get_submodule(self.mlp_norm)(x))

    # ---- the stages of a forward pass, on rows -----------------------------------------------------------------------

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return self.base.embed_tokens(tokens).to(self.resid_dtype)

    def rotary(self, positions: Tensor) -> Tensor:
        like = torch.empty(0, dtype=self.resid_dtype, device=self.device)
        cos, sin = self.base.rotary_emb(like, position_ids=positions[None])
        return torch.cat((cos, sin))[None]  # [1, 2, R, D]

    def qkv(self, l: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._projections(l, self._attention_input(l, x))

    def qkv_after(self, l: int, x: Tensor, added: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._projections(l, self._attention_input(l, x, added))

    def _projections(self, l: int, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the projections of a layer read [R, d] -> q, k and v, as `qkv`."""
        attn, D = self.layers[l].self_attn, self.cfg.d_head
        projections = (attn.q_proj, attn.k_proj, attn.v_proj)
        if self.few_launches and all(is_exactly(p, nn.Linear) for p in projections):
            joint = products_in_one_buffer(n, projections)
            if joint is not None:
                q, k, v = (part.unflatten(1, (-1, D)) for part in joint)
                return q, k, v
        return projected_heads(n, projections, D)

    def _attention_input(self, l: int, x: Tensor, added: Tensor | None = None) -> Tensor:
        """resid_pre [R, d] -> what the projections to queries, keys and values read, [R, d]. added: as in `_mlp_input`."""
        return self._norm(self.layers[l].input_layernorm, x, added)

    def attention(self, l: int) -> LayerAttention:
        return LayerAttention(self.layers[l].self_attn.scaling, window=self.window(l))

    def window(self, l: int) -> int:
        """How many keys a query of the layer sees, itself included; 0: all up to itself.

        Of a family with windows it is what the Hugging Face model's masks have, and those follow its configuration.
        """
        return 0

    def _output_projection(self, l: int) -> nn.Linear:
        return self.layers[l].self_attn.o_proj

    def mlp_out(self, l: int, x: Tensor) -> Tensor:
        return self._mlp(l, self._mlp_input(l, x))

    def mlp_after(self, l: int, x: Tensor, added: Tensor) -> Tensor:
        return self._mlp(l, self._mlp_input(l, x, added))

    def _mlp(self, l: int, n: Tensor) -> Tensor:
        """What the MLP reads [R, d] -> what it adds, [R, d]."""
        layer = self.layers[l]
        mlp = cast(modeling_llama.LlamaMLP, layer.mlp)
        if not is_exactly(mlp, *self.mlp_types) or not is_exactly(mlp.act_fn, *self.activation_types):
            return mlp(n[None])[0]
        parts = []
        for rows in n.split(self.mlp_rows):
            hidden = self._gated(*self._gate_and_up(mlp, rows))  # [rows, d_mlp]
            parts.append(linear(mlp.down_proj, hidden))
            del hidden
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _gate_and_up(self, mlp: modeling_llama.LlamaMLP, rows: Tensor) -> Sequence[Tensor]:
        """The two projections of rows [R, d] to the hidden layer, [R, d_mlp] each: one product if their weights lie so."""
        both = (mlp.gate_proj, mlp.up_proj)
        joint = None
        if self.few_launches and all(is_exactly(p, nn.Linear) for p in both):
            joint = products_in_one_buffer(rows, both, only_joint=True)
        return [linear(p, rows) for p in both] if joint is None else joint

    def _mlp_input(self, l: int, x: Tensor, added: Tensor | None = None) -> Tensor:
        """resid_mid [R, d] -> what the MLP reads, [R, d]. added: what x is still short of, and is added to it in place."""
        return self._norm(self.layers[l].get_submodule(self.mlp_norm), x, added)

    def _gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """The hidden layer of the MLP from its two projections, [rows, d_mlp] each."""
        return ops.swiglu(gate, up)

    def final_norm(self, x: Tensor) -> Tensor:
        norm = self.base.norm
        if not self.plain_unembedding() or not is_exactly(norm, *self.norm_types):
            return self._norm(norm, x)
        return ops.add_rms_norm(x, None, self.final_gain().to(x), epsilon(norm))

    def final_factor(self, x: Tensor) -> Tensor:
        return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon(self.base.norm))

    def final_gain(self) -> Tensor:
        return self._gain(self.base.norm).to(self.resid_dtype)

    def _unembedding(self) -> nn.Linear:
        return self.hf.lm_head

    def _norm(self, module: nn.Module, x: Tensor, added: Tensor | None = None) -> Tensor:
        """RMSNorm of rows [R, d], rounded once to the model's dtype; of x += added, in place, where something is added."""
        if is_exactly(module, *self.norm_types):
            return ops.add_rms_norm(x, added, self._gain(module), epsilon(module)).to(self.dtype)
        if added is not None:
            x += added
        return module(x.to(self.dtype)[None])[0]

    def _gain(self, norm: nn.Module) -> Tensor:
        """What a norm multiplies its normalised rows by, [d]."""
        return weight_of(norm).detach()


def _keys(window: int) -> str:
    return f"a sliding window of {window}" if window else "no sliding window"


def epsilon(norm: nn.Module) -> float:
    """What an RMSNorm adds to the mean square."""
    return float(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)  # type: ignore[arg-type]
