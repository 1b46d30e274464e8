"""The Hugging Face model in a TransformerBridge of TransformerLens, without the bridge's own components."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from pycotmech.model.twin import is_of, unwrapped_tree


class Unbridged(NamedTuple):
    """What was in a bridge: the Hugging Face model, its tokenizer or None, and whether the bridge's prompts begin with BOS."""

    model: nn.Module
    tokenizer: Any
    prepend_bos: bool | None


def from_transformer_lens(bridge: Any) -> Unbridged:
    """Returns the Hugging Face model in a TransformerBridge, its weights shared, and how the bridge makes tokens of text.

    Raises TypeError, with the reason, for a HookedTransformer and for what is no model of TransformerLens; ValueError for a
    bridge with processed weights or with hooks, which would be ignored.
    """
    names = {cls.__name__ for cls in type(bridge).__mro__ if cls.__module__.split(".")[0] == "transformer_lens"}
    if "HookedTransformer" in names:
        raise TypeError(
            "bridge: a HookedTransformer holds converted copies of the weights (split by head, by default folded and centred) "
            "and no Hugging Face model, so there is nothing to share; load the model with TransformerBridge.boot_transformers, "
            "or with pcm.Model.from_pretrained"
        )
    if "TransformerBridge" not in names:
        raise TypeError(f"bridge: got {type(bridge).__name__}; expected a TransformerBridge of TransformerLens")
    original = getattr(bridge, "original_model", None)
    if not isinstance(original, nn.Module):
        raise TypeError("bridge: it wraps no PyTorch module on this machine")
    if getattr(bridge, "_weights_processed", False):
        raise ValueError(
            "bridge: its weights were processed (folded or centred by enable_compatibility_mode or process_weights), so that "
            "they are no longer those of the Hugging Face model; expected a bridge as boot_transformers returns it"
        )
    if hooked := sorted(name for name, point in bridge.hook_dict.items() if _has_hooks(point)):
        raise ValueError(f"bridge: there are hooks on {hooked[0]}, which would be ignored; remove them with reset_hooks()")
    tokenizer = getattr(bridge, "tokenizer", None)
    prepend = getattr(bridge.cfg, "default_prepend_bos", None)
    known = tokenizer is not None and tokenizer.bos_token_id is not None and isinstance(prepend, bool)
    return Unbridged(unwrapped_tree(original, _original), tokenizer, prepend if known else None)


def _has_hooks(point: Any) -> bool:
    """Whether a user's hook is on a hook point. The bridge's own are permanent."""
    return any(not hook.is_permanent for hook in (*point.fwd_hooks, *point.bwd_hooks))


def _original(module: nn.Module) -> nn.Module:
    """The Hugging Face module in a component of a bridge; other modules are themselves."""
    while is_of(module, "transformer_lens"):
        inner = getattr(module, "original_component", None)
        if not isinstance(inner, nn.Module):
            return module
        module = inner
    return module
