"""The slow, obvious truth: Hugging Face's own forward pass, hooks, one intervention at a time, float64."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers.models.llama import modeling_llama


def double(hf: nn.Module) -> nn.Module:
    """A float64 copy of a Hugging Face Llama. Its RMSNorm narrows to float32 whatever the dtype; the copy's does not."""
    wide = copy.deepcopy(hf).double().eval()
    for module in wide.modules():
        if isinstance(module, modeling_llama.LlamaRMSNorm):
            module.forward = _norm.__get__(module)
    return wide


def _norm(self, x: Tensor) -> Tensor:
    return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


@contextlib.contextmanager
def hooked(*handles: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def logits_of(hf: nn.Module, tokens: Tensor, *, keep: int = 0) -> Tensor:
    """[T, V], or the last `keep` rows."""
    return hf(tokens[None].to(hf.device), use_cache=False, logits_to_keep=keep).logits[0]


@torch.no_grad()
def z_of(hf: nn.Module, tokens: Tensor) -> list[Tensor]:
    """Per layer, each head's weighted values before W_O: [T, H, D]."""
    found: list[Tensor] = []
    D = hf.model.layers[0].self_attn.head_dim

    def record(_module, args):
        found.append(args[0][0].unflatten(-1, (-1, D)).clone())

    with hooked(*[layer.self_attn.o_proj.register_forward_pre_hook(record) for layer in hf.model.layers]):
        logits_of(hf, tokens, keep=1)
    return found


def replace_z(hf: nn.Module, layer: int, head: int, value: Tensor, positions: Sequence[int] | None):
    """A hook that replaces z of one head, [T, D], at the positions (None: all)."""
    D = hf.model.layers[0].self_attn.head_dim
    where = slice(None) if positions is None else list(positions)

    def edit(_module, args):
        x = args[0].clone()
        x[0, where, head * D : (head + 1) * D] = value[where].to(x.dtype)
        return (x,)

    return hf.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(edit)


def patched_logits(
    hf: nn.Module, base: Tensor, source_z: list[Tensor], layer: int, head: int, positions: Sequence[int] | None = None
) -> Tensor:
    """Last-position logits [V] of one hooked forward with one head's z from the other run."""
    with hooked(replace_z(hf, layer, head, source_z[layer][:, head], positions)):
        return logits_of(hf, base, keep=1)[0]


def sweep_truth(
    hf: nn.Module,
    base: Tensor,
    source: Tensor,
    metric: Callable[[Tensor], float],
    *,
    positions: Sequence[int] | None = None,
    heads: Sequence[tuple[int, int]] | None = None,
) -> Tensor:
    """One hooked forward per head: float64 [L, H]; NaN where a head was not asked for."""
    z = z_of(hf, source)
    n_heads = hf.config.num_attention_heads
    out = torch.full((len(hf.model.layers), n_heads), float("nan"), dtype=torch.float64)
    for l, h in heads or [(l, h) for l in range(len(out)) for h in range(n_heads)]:
        out[l, h] = float(metric(patched_logits(hf, base, z, l, h, positions)))
    return out


def kl(clean: Tensor, logits: Tensor) -> float:
    """KL(P_clean || P) in float64, the textbook way."""
    p = torch.log_softmax(clean.double(), -1)
    q = torch.log_softmax(logits.double(), -1)
    return float((p.exp() * (p - q)).sum())
