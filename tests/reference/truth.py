"""The slow, obvious truth: Hugging Face's own forward pass, hooks, one intervention at a time, float64."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from tests.reference.parts import attention_of, head_size, layers_of, modeling, projection_of, tap
from tests.reference.watch import unwatched
from tests.reference.windowed import masked_scores


def double(hf: nn.Module) -> nn.Module:
    """A float64 copy of a Hugging Face Llama that stays in float64.

    Hugging Face's RMSNorm, and the softmax of its eager attention, narrow to float32 whatever the dtype: the copy has a
    norm of its own and PyTorch's attention.
    """
    wide = copy.deepcopy(hf).double().eval()
    capped, sinks = getattr(wide.config, "attn_logit_softcapping", None), hasattr(attention_of(layers_of(wide)[0]), "sinks")
    wide.config._attn_implementation = "capped" if capped else "eager" if sinks else "sdpa"  # that with sinks narrows nothing
    for module in wide.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = _norm.__get__(module)
    return wide


def _capped(module, query, key, value, attention_mask, scaling, softcap=None, **_) -> tuple[Tensor, None]:
    """Attention with a soft-cap of its scores, which PyTorch's own does not have."""
    key, value = (t.repeat_interleave(module.num_key_value_groups, 1) for t in (key, value))
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * scaling / softcap)
    pattern = scores.masked_fill(attention_mask[:, :, -query.shape[2] :] < 0, -torch.inf).softmax(-1)
    return (pattern @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register("capped", _capped)
AttentionMaskInterface.register("capped", eager_mask)


def gain_of(norm: nn.Module) -> Tensor:
    """What a norm multiplies its rows by: Gemma's by 1 + weight."""
    return 1 + norm.weight if "Gemma" in type(norm).__name__ else norm.weight


def _norm(self, x: Tensor) -> Tensor:
    eps = self.eps if hasattr(self, "eps") else self.variance_epsilon
    return gain_of(self) * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


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
    with unwatched():
        return hf(tokens[None].to(hf.device), use_cache=False, logits_to_keep=keep).logits[0]


@torch.no_grad()
def z_of(hf: nn.Module, tokens: Tensor) -> list[Tensor]:
    """Per layer, each head's weighted values before W_O: [T, H, D]."""
    found: list[Tensor] = []
    D = head_size(hf)

    def record(_module, args):
        found.append(args[0][0].unflatten(-1, (-1, D)).clone())

    with hooked(*[projection_of(layer).register_forward_pre_hook(record) for layer in layers_of(hf)]):
        logits_of(hf, tokens, keep=1)
    return found


def replace_z(hf: nn.Module, layer: int, head: int, value: Tensor, positions: Sequence[int] | None):
    """A hook that replaces z of one head, [T, D], at the positions (None: all)."""
    D = head_size(hf)
    where = slice(None) if positions is None else list(positions)

    def edit(_module, args):
        x = args[0].clone()
        x[0, where, head * D : (head + 1) * D] = value[where].to(x.dtype)
        return (x,)

    return projection_of(layers_of(hf)[layer]).register_forward_pre_hook(edit)


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
    out = torch.full((len(layers_of(hf)), n_heads), float("nan"), dtype=torch.float64)
    for l, h in heads or [(l, h) for l in range(len(out)) for h in range(n_heads)]:
        out[l, h] = float(metric(patched_logits(hf, base, z, l, h, positions)))
    return out


def kl(clean: Tensor, logits: Tensor) -> float:
    """KL(P_clean || P) in float64, the textbook way."""
    p = torch.log_softmax(clean.double(), -1)
    q = torch.log_softmax(logits.double(), -1)
    return float((p.exp() * (p - q)).sum())


# ---- edits at any site ---------------------------------------------------------------------------------------------


def ungrouped(hf: nn.Module) -> nn.Module:
    """The same model with one key-value head for each query head: what one query head reads can then be told apart."""
    if not hasattr(hf.config, "num_key_value_heads"):
        return double(hf)
    config = copy.deepcopy(hf.config)
    group = config.num_attention_heads // config.num_key_value_heads
    config.num_key_value_heads = config.num_attention_heads
    wide = type(hf)(config).to(hf.dtype).eval()
    weights = dict(hf.state_dict())
    D = head_size(hf)
    for name, weight in weights.items():
        flat_norm = "k_norm" in name and len(weight) > D  # over all heads together
        if "qkv_proj" in name:  # queries, keys and values of all heads, one after another
            n = config.num_attention_heads * D
            rest = weight[n:].unflatten(0, (2, -1, D)).repeat_interleave(group, 1)
            weights[name] = torch.cat((weight[:n], rest.flatten(0, 2)))
        elif "k_proj" in name or "v_proj" in name or flat_norm:
            weights[name] = weight.unflatten(0, (-1, D)).repeat_interleave(group, 0).flatten(0, 1)
    wide.load_state_dict(weights)
    return double(wide)


Replacement = tuple[str, int, int | None, Sequence[int] | None, object]
"""(site, layer, head, positions, value); of an edge the value is the list of key positions that are cut."""


@contextlib.contextmanager
def edited(hf: nn.Module, edits: Sequence[Replacement], record: dict | None = None) -> Iterator[None]:
    """The model with these replacements made in every forward pass; `record` gets what stood at (site, layer) before."""
    D = head_size(hf)
    handles = []

    def change(site: str, l: int, x: Tensor) -> Tensor:
        """x [T, heads * D] or [T, d] with the edits of this site and layer."""
        x = x.clone()
        if record is not None:
            record[site, l] = x.unflatten(-1, (-1, D)).clone() if site in "qkvz" else x.clone()
        for s, layer, head, positions, value in edits:
            if (s, layer) == (site, l):
                where = slice(None) if positions is None else list(positions)
                columns = slice(None) if head is None else slice(head * D, (head + 1) * D)
                x[where, columns] = torch.as_tensor(value, dtype=x.dtype)
        return x

    def inputs(site, l):
        return lambda module, args: (change(site, l, args[0][0])[None], *args[1:])

    def output(site, l):
        def hook(module, args, out):
            first = out[0] if isinstance(out, tuple) else out
            new = change(site, l, first[0])[None]
            return (new, *out[1:]) if isinstance(out, tuple) else new

        return hook

    def mid(l):
        """resid_mid is no module's input alone: attn_out is set to what leads to it from resid_pre."""
        before: list[Tensor] = []

        def pre(module, args):
            before[:] = [args[0][0]]

        def after(attn_out: Tensor) -> Tensor:
            return change("resid_mid", l, before[0] + attn_out) - before[0]

        return pre, after

    for l, layer in enumerate(layers_of(hf)):
        handles += [layer.register_forward_pre_hook(inputs("resid_pre", l))]
        handles += [tap(layer, s).hook(functools.partial(change, s, l)) for s in ("q", "k", "v")]
        handles += [projection_of(layer).register_forward_pre_hook(inputs("z", l))]
        attention_out = tap(layer, "attn_out")
        before, after = mid(l)
        handles += [layer.register_forward_pre_hook(before)]
        handles += [attention_out.hook(functools.partial(change, "attn_out", l)), attention_out.hook(after)]
        handles += [tap(layer, "mlp_out").hook(functools.partial(change, "mlp_out", l))]
        handles += [layer.register_forward_hook(output("resid_post", l))]

    def attention(module, query, key, value, attention_mask, scaling, dropout=0.0, softcap=None, s_aux=None, **_):
        T, l, group = query.shape[2], module.layer_idx, getattr(module, "num_key_value_groups", 1)
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        if attention_mask is None:
            scores = masked_scores(module, query, key, scaling)
        else:
            scores = query @ key.transpose(2, 3) * scaling
            scores = softcap * torch.tanh(scores / softcap) if softcap else scores
            scores = scores.masked_fill(attention_mask[:, :, -T:] < 0, -torch.inf)
        for s, layer, head, positions, keys in edits:
            if (s, layer) == ("edge", l):
                for h in range(scores.shape[1]) if head is None else [head]:
                    for p in range(T) if positions is None else positions:
                        scores[0, h, p, list(keys)] = -torch.inf
        if s_aux is None:
            # A query that sees no key has z = 0, by definition; the softmax of nothing is NaN.
            pattern = scores.softmax(-1).masked_fill((scores == -torch.inf).all(-1, keepdim=True), 0)
        else:  # the sink is one more key, whose weight nobody reads
            sinks = s_aux[None, :, None, None].to(scores).expand(*scores.shape[:-1], 1)
            pattern = torch.cat((scores, sinks), -1).softmax(-1)[..., :-1]
        if record is not None:
            record["pattern", l] = pattern[0].clone()
        for s, layer, head, positions, weights in edits:
            if (s, layer) == ("pattern", l):
                where = list(range(T)) if positions is None else list(positions)
                pattern[0, head, where] = torch.as_tensor(weights, dtype=pattern.dtype)
        return (pattern @ value).transpose(1, 2).contiguous(), pattern

    code = modeling(layers_of(hf)[0])
    plain, code.eager_attention_forward = code.eager_attention_forward, attention
    implementation, hf.config._attn_implementation = hf.config._attn_implementation, "eager"
    try:
        with hooked(*handles):
            yield
    finally:
        code.eager_attention_forward = plain
        hf.config._attn_implementation = implementation


def edited_logits(hf: nn.Module, tokens: Tensor, edits: Sequence[Replacement], read: int = -1) -> Tensor:
    """Logits [V] at the position read, of one forward pass with these replacements."""
    with edited(hf, edits):
        return logits_of(hf, tokens)[read]


def slopes(hf: nn.Module, tokens: Tensor, site: str, metric: Callable[[Tensor], Tensor]) -> Tensor:
    """The slope of a metric of the last position's logits [V] at q, k, v or z of every layer, by autograd: [L, T, heads, D]."""
    moves: list[Tensor] = []

    def moved(x: Tensor) -> Tensor:
        moves.append(torch.zeros_like(x, requires_grad=True))
        return x + moves[-1]

    def before(_module, args):
        return (moved(args[0]),)

    layers = layers_of(hf)
    taps = [projection_of(x).register_forward_pre_hook(before) if site == "z" else tap(x, site).hook(moved) for x in layers]
    with unwatched(), torch.enable_grad(), hooked(*taps):
        found = torch.autograd.grad(metric(hf(tokens[None], use_cache=False).logits[0, -1]), moves)
    return torch.stack(found).view(len(found), len(tokens), -1, head_size(hf))


def activations(hf: nn.Module, tokens: Tensor) -> dict[tuple[str, int], Tensor]:
    """(site, layer) -> [T, d] or [T, heads, D], and the patterns [H, T, T], of a plain forward pass."""
    found: dict[tuple[str, int], Tensor] = {}
    with edited(hf, [], found):
        logits_of(hf, tokens, keep=1)
    return found
