"""`attn_implementation="pycotmech"`: the fused attention inside any Hugging Face model with plain causal attention.

    pcm.register_attention()
    hf.set_attn_implementation("pycotmech")      # or attn_implementation="pycotmech" when loading

forward() and generate() then run on `ops.attn_extract`; `pcm.capture_attention` collects its statistics on the way.
Padding is honoured: on the left by the op itself, on the right and in between by leaving padded tokens out and putting
zeros back. The rows of padding tokens, which mean nothing, come out as zero, as with flash attention in transformers; other
implementations leave other numbers there. There is no backward pass.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function

from pycotmech.model.families.attention import LayerAttention

NAME = "pycotmech"


class Recorder(Protocol):
    """What looks at attention on the way (`capture_attention`)."""

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, keys: RealKeys, attention: LayerAttention) -> Tensor:
        """Computes a layer's attention, z [B, H, T, D], and keeps its statistics."""
        ...


active_capture: ContextVar[Recorder | None] = ContextVar("pycotmech_capture", default=None)

_keys_of = WeakIdKeyDictionary()
"""Mask that `key_mask` made -> the `RealKeys` read from it, once for all layers."""


class RealKeys(NamedTuple):
    """Which keys exist. Queries are the last T of the first `end` keys."""

    end: int
    starts: Tensor | None  # int32 [B]: the first real key; what is left of it is padding
    real: Tensor | None  # bool [B, end], where padding is not only on the left

    @staticmethod
    def of(mask: Tensor) -> RealKeys:
        """From what `key_mask` made; read once for all layers."""
        if (known := _keys_of.get(mask)) is not None:
            return known
        real = mask[:, 0, 0].bool()
        keys = RealKeys(real.shape[1], None, None)
        if not real.all():
            starts = (real.int().cumsum(1) == 0).sum(1, dtype=torch.int32)
            only_left = real == (torch.arange(keys.end, device=real.device) >= starts[:, None])
            keys = RealKeys(keys.end, starts, None if only_left.all() else real)
        _keys_of[mask] = keys
        return keys


def register_attention() -> None:
    """Makes "pycotmech" known to transformers as an attention implementation. May be called again; changes no model."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, key_mask)


def key_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int | Tensor = 0,
    mask_function=causal_mask_function,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    device: torch.device | None = None,
    **_unused,
) -> Tensor | None:
    """What transformers calls once per forward pass, in place of building a T x S mask.

    attention_mask: bool [B, tokens so far]. Returns uint8 [B, 1, 1, tokens so far], 0 for padding (four dims, because
    generate() hands them through untouched; uint8, because nobody else's mask is), or None: all keys, causally.
    Raises NotImplementedError for any mask beyond causality and padding, and ValueError for an attention_mask that does
    not cover the tokens.
    """
    if mask_function is not causal_mask_function or use_vmap:
        raise NotImplementedError(
            "attn_implementation 'pycotmech': this forward pass asks for more than a causal mask with padding (packed "
            "sequences by position_ids, a sliding or chunked window, or a mask of the model's own); use 'sdpa' for it, or "
            "run packed sequences one at a time"
        )
    end = int(q_offset) + q_length
    if int(kv_offset) != 0 or end > kv_length:
        raise NotImplementedError("attn_implementation 'pycotmech': a cache that drops keys is not supported; use 'sdpa'")
    if attention_mask is None:
        attention_mask = torch.ones(batch_size, end, dtype=torch.bool, device=device)
    if attention_mask.ndim != 2 or attention_mask.shape[1] < end or attention_mask.shape[0] != batch_size:
        raise ValueError(
            f"attention_mask: got {list(attention_mask.shape)}; expected [{batch_size}, {end}], one column for each token so "
            "far, those in the cache included"
        )
    real = attention_mask[:, :end]
    return None if end == kv_length and real.all() else real[:, None, None].to(torch.uint8)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **options,
) -> tuple[Tensor, None]:
    """Attention of one layer, as transformers calls it: query [B, H, T, D], key and value [B, Hkv, S, D] -> z [B, T, H, D]."""
    _refuse(module, attention_mask, dropout, key.shape[2], options)
    if attention_mask is None:
        keys = RealKeys(key.shape[2], None, None)
    else:
        keys = RealKeys.of(attention_mask)
        key, value = key[:, :, : keys.end], value[:, :, : keys.end]
    capture = active_capture.get()
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    sinks = options.get("s_aux")
    attention = LayerAttention(scale, softcap=softcap or 0.0, sinks=None if sinks is None else sinks.detach())

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
        if capture is not None:
            return capture.attend(module, q, k, v, keys, attention)
        if keys.real is None:
            return attention.extract(q, k, v, starts=keys.starts).z
        z = torch.zeros_like(q)
        for b, rows, real in compacted(keys.real, q.shape[2]):
            one = slice(b, b + 1)
            z[b, :, rows] = attention.extract(q[one, :, rows], k[one, :, real], v[one, :, real]).z[0]
        return z

    if torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value)):
        z = _ForwardOnly.apply(query, key, value, run)
    else:
        z = run(query, key, value)
    return z.transpose(1, 2), None


def compacted(real: Tensor, T: int):
    """(example, its real query rows [r], its real keys [s]) for each example that has a real query row.

    Leaving padding out is exact: real tokens see the real ones before them, so the r rows are again the last of s keys.
    """
    for b, keep in enumerate(real):
        rows = keep[-T:].nonzero()[:, 0]
        if len(rows):
            yield b, rows, keep.nonzero()[:, 0]


class _ForwardOnly(torch.autograd.Function):
    """Says that there is no backward pass, where a gradient would silently be missing."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, run) -> Tensor:
        return run(q, k, v)

    @staticmethod
    def backward(ctx, *grads):
        raise NotImplementedError(
            "attn_implementation 'pycotmech' has no backward pass; use 'sdpa' or 'eager' where gradients are needed"
        )


def _refuse(module: nn.Module, mask: Tensor | None, dropout: float, S: int, options: dict) -> None:
    """Raises for what this attention would compute wrongly."""
    if mask is not None and (mask.dtype != torch.uint8 or mask.ndim != 4 or mask.shape[1:3] != (1, 1)):
        raise ValueError(
            f"attention_mask: got a prepared mask {list(mask.shape)}; 'pycotmech' takes a 2-D mask of real and padding tokens "
            "[B, tokens], given to the model as a whole"
        )
    if dropout:
        raise ValueError(f"attn_implementation 'pycotmech': dropout {dropout} in training mode; call model.eval() first")
    if options.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise NotImplementedError("attn_implementation 'pycotmech': attention that is not causal; use 'sdpa'")
    window = options.get("sliding_window")
    if window is not None and window < S:
        raise NotImplementedError(f"attn_implementation 'pycotmech': a sliding window of {window} tokens; use 'sdpa'")
    if options.get("output_attentions"):
        raise ValueError(
            "output_attentions=True: attn_implementation 'pycotmech' never holds the patterns; use pcm.capture_attention for "
            "their statistics, or 'eager' for the patterns themselves"
        )


register_attention()
