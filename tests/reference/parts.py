"""Where a Hugging Face layer gives the activations that this library names: which module's output, and in which shape.

Families differ in it: a norm may follow the projections to queries and keys, or the sublayer; one projection may give all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Change = Callable[[Tensor], Tensor]


class Tap(NamedTuple):
    """A module whose output holds a site. take: the output -> [T, width]; put: the output, new rows -> the new output."""

    module: nn.Module
    take: Change
    put: Callable[[Tensor, Tensor], Tensor]

    def hook(self, change: Change):
        """A forward hook that replaces the site's rows [T, width] by change(rows)."""

        def run(_module, _args, out):
            first = out[0] if isinstance(out, tuple) else out
            new = self.put(first, change(self.take(first)))
            return (new, *out[1:]) if isinstance(out, tuple) else new

        return self.module.register_forward_hook(run)


def _rows(x: Tensor) -> Tensor:
    return x[0]


def _whole(_old: Tensor, new: Tensor) -> Tensor:
    return new[None]


def layers_of(hf: nn.Module) -> nn.ModuleList:
    return (
        hf.transformer.h if hasattr(hf, "transformer") else hf.gpt_neox.layers if hasattr(hf, "gpt_neox") else hf.model.layers
    )


def final_norm_of(hf: nn.Module) -> nn.Module:
    if hasattr(hf, "transformer"):
        return hf.transformer.ln_f
    if hasattr(hf, "gpt_neox"):
        return hf.gpt_neox.final_layer_norm
    return hf.model.norm if hasattr(hf.model, "norm") else hf.model.final_layernorm


def attention_of(layer: nn.Module) -> nn.Module:
    return next(getattr(layer, name) for name in ("self_attn", "attn", "attention") if hasattr(layer, name))


def projection_of(layer: nn.Module) -> nn.Module:
    """W_O."""
    attention = attention_of(layer)
    return next(getattr(attention, name) for name in ("o_proj", "c_proj", "dense") if hasattr(attention, name))


def output_matrix(layer: nn.Module) -> Tensor:
    """W_O as a linear layer has it, [d, H * D]."""
    projection = projection_of(layer)
    return projection.weight.T if isinstance(projection, Conv1D) else projection.weight


def head_size(hf: nn.Module) -> int:
    attention = attention_of(layers_of(hf)[0])
    return attention.head_size if hasattr(attention, "head_size") else attention.head_dim


def output_norm(layer: nn.Module, site: str) -> nn.Module | None:
    """The norm of what a sublayer ("attn_out" or "mlp_out") adds, if the layer has one."""
    pairs = ("post_self_attn_layernorm", "post_mlp_layernorm"), ("post_attention_layernorm", "post_feedforward_layernorm")
    names = next((pair for pair in pairs if hasattr(layer, pair[1])), None)
    return None if names is None else getattr(layer, names[site == "mlp_out"])


def sublayer_scale(layer: nn.Module) -> float:
    """What the outputs of sublayers are multiplied by before they are added (Granite)."""
    return getattr(layer, "residual_multiplier", 1.0)


def logits_scaling(hf: nn.Module) -> float:
    """What logits are divided by (Granite)."""
    return getattr(hf.config, "logits_scaling", 1.0)


def tap(layer: nn.Module, site: str) -> Tap:
    """Where a layer gives q, k, v, attn_out or mlp_out."""
    attention = attention_of(layer)
    if site in ("attn_out", "mlp_out"):
        norm, scale = output_norm(layer, site), sublayer_scale(layer)
        if norm is not None:  # what is added is what this norm gives
            return Tap(norm, _rows, _whole)
        module = attention if site == "attn_out" else layer.mlp
        return Tap(module, lambda x: x[0] * scale, lambda _old, new: new[None] / scale)
    if hasattr(attention, "c_attn"):
        columns = {"q": 0, "k": 1, "v": 2}[site]
        width = attention.embed_dim

        def one_of_three(old: Tensor, new: Tensor) -> Tensor:
            out = old.clone()
            out[0, :, columns * width : (columns + 1) * width] = new
            return out

        return Tap(attention.c_attn, lambda x: x[0, :, columns * width : (columns + 1) * width], one_of_three)
    if hasattr(attention, "query_key_value"):  # q, k and v of one head after those of another
        by_head = ("q", "k", "v").index(site)

        def of_each_head(old: Tensor, new: Tensor) -> Tensor:
            out = old.clone().unflatten(-1, (-1, 3, attention.head_size))
            out[0, :, :, by_head] = new.unflatten(-1, (-1, attention.head_size))
            return out.flatten(-3)

        return Tap(
            attention.query_key_value,
            lambda x: x[0].unflatten(-1, (-1, 3, attention.head_size))[:, :, by_head].flatten(1),
            of_each_head,
        )
    if hasattr(attention, "qkv_proj"):
        config, D = attention.config, attention.head_dim
        H, Hkv = config.num_attention_heads * D, config.num_key_value_heads * D
        a = {"q": 0, "k": H, "v": H + Hkv}[site]
        b = a + (H if site == "q" else Hkv)

        def put(old: Tensor, new: Tensor) -> Tensor:
            out = old.clone()
            out[0, :, a:b] = new
            return out

        return Tap(attention.qkv_proj, lambda x: x[0, :, a:b], put)
    norm = getattr(attention, f"{site}_norm", None)
    if norm is None:
        return Tap(getattr(attention, f"{site}_proj"), _rows, _whole)
    heads = attention.config.num_attention_heads if site == "q" else attention.config.num_key_value_heads

    def take(x: Tensor) -> Tensor:
        if x.ndim == 3:  # over all heads together
            return x[0]
        return x[0].transpose(0, 1).flatten(1) if x.shape[1] == heads else x[0].flatten(1)

    def back(old: Tensor, new: Tensor) -> Tensor:
        if old.ndim == 3:
            return new[None]
        by_head = new.unflatten(1, (heads, -1))
        return (by_head.transpose(0, 1) if old.shape[1] == heads else by_head)[None]

    return Tap(norm, take, back)


def modeling(layer: nn.Module):
    """The module of transformers in which the layer's attention looks for its eager attention."""
    files = (sys.modules[kind.__module__] for kind in type(attention_of(layer)).__mro__)
    return next(file for file in files if hasattr(file, "eager_attention_forward"))
