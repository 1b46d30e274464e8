"""What each head writes to the residual stream and to logits, from activations of hooked forward passes in float64."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tests.reference.parts import final_norm_of, layers_of, logits_scaling, output_matrix, output_norm, sublayer_scale
from tests.reference.truth import gain_of

Acts = Mapping[tuple[str, int], Tensor]


def divisor(norm: nn.Module, x: Tensor) -> Tensor:
    """What a norm multiplies rows [..., d] by before its weight: [..., 1]."""
    if isinstance(norm, nn.LayerNorm):
        return torch.rsqrt(x.var(-1, keepdim=True, correction=0) + norm.eps)
    return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + (norm.eps if hasattr(norm, "eps") else norm.variance_epsilon))


def head_outputs(layer: nn.Module, z: Tensor, whole: Tensor | None = None) -> Tensor:
    """z of one row [H, D], or a part of it -> what each head adds to the residual stream, [H, d].

    whole: z of the row, if `z` is a part of it. A norm of what attention adds divides by the size of the whole row.
    """
    by_head = output_matrix(layer).unflatten(1, z.shape)  # [d, H, D]
    out = torch.einsum("hd,ohd->ho", z, by_head) * sublayer_scale(layer)
    if (norm := output_norm(layer, "attn_out")) is not None:
        row = out.sum(0) if whole is None else torch.einsum("hd,ohd->o", whole, by_head)
        out = out * gain_of(norm) * divisor(norm, row)
    return out


def direct_logits(hf: nn.Module, acts: Acts, tokens: Tensor) -> Tensor:
    """What each head adds to logits of these tokens [K] at the last position: [L, H, K]."""
    layers, norm = layers_of(hf), final_norm_of(hf)
    x = acts["resid_post", len(layers) - 1][-1]
    direction = hf.get_output_embeddings().weight[tokens] * gain_of(norm) * divisor(norm, x)  # [K, d]
    if isinstance(norm, nn.LayerNorm):  # the mean of what is written is taken off
        direction = direction - direction.mean(-1, keepdim=True)
    direction = direction / logits_scaling(hf)
    return torch.stack([head_outputs(layer, acts["z", l][-1]) @ direction.T for l, layer in enumerate(layers)])


def lens(hf: nn.Module, x: Tensor) -> Tensor:
    """Residual rows [n, d] -> probabilities [n, V] by the final norm and the unembedding, with its soft-cap if it has one."""
    return lens_logits(hf, x).softmax(-1)


def lens_logits(hf: nn.Module, x: Tensor) -> Tensor:
    """The same before the softmax."""
    cap = getattr(hf.config, "final_logit_softcapping", None)
    logits = hf.get_output_embeddings()(final_norm_of(hf)(x)) / logits_scaling(hf)
    return cap * torch.tanh(logits / cap) if cap else logits
