"""The Hugging Face model in a model of nnsight or nnterp, without what nnsight puts around its modules."""

from __future__ import annotations

from types import FunctionType, MethodType
from typing import Any

from torch import nn

from pycotmech.model.twin import unwrapped_tree


def from_nnsight(wrapped: Any, *, argument: str = "wrapped") -> tuple[nn.Module, Any]:
    """Returns the Hugging Face model in an nnsight model, its weights shared, and its tokenizer or None.

    nnsight replaces the forward of every module by one that listens to traces. The model that is returned has the same weights
    and buffers in modules of its own, with the forwards that were there before.

    Raises TypeError for what is no nnsight model, ValueError for one without weights or with edits, which would be ignored.
    """
    if not any(cls.__module__.split(".")[0] == "nnsight" for cls in type(wrapped).__mro__):
        raise TypeError(f"{argument}: got {type(wrapped).__name__}; expected a model of nnsight (LanguageModel, for instance)")
    module = getattr(wrapped, "_module", None)
    if not isinstance(module, nn.Module):
        raise TypeError(f"{argument}: this {type(wrapped).__name__} wraps no PyTorch module")
    if getattr(wrapped, "_edits", None) or getattr(wrapped, "_default_mediators", None):
        raise ValueError(f"{argument}: the model carries edits, which would be ignored; remove them with clear_edits()")
    if any(tensor.is_meta for tensor in module.parameters()):
        raise ValueError(f"{argument}: its weights are not loaded yet; load them with dispatch=True, or call dispatch()")
    return unwrapped_tree(module, _without_controller), getattr(wrapped, "tokenizer", None)


def _without_controller(module: nn.Module) -> nn.Module:
    """The module, or, if nnsight has replaced its forward, a shallow copy with the forward that it had."""
    forward = vars(module).get("forward")
    if forward is None or not _of_nnsight(forward):
        return module
    out = object.__new__(type(module))
    vars(out).update({name: value for name, value in vars(module).items() if name not in ("forward", "__nnsight__")})
    before = getattr(getattr(forward, "state", None), "original", None)
    if before is not None and before is not type(module).forward:  # the user's own, which is refused or honoured as ever
        object.__setattr__(out, "forward", MethodType(before, out) if isinstance(before, FunctionType) else before)
    return out


def _of_nnsight(forward: Any) -> bool:
    """Whether nnsight made this forward: an object of its own, or a function in one of its modules."""
    function = getattr(forward, "__func__", forward)
    code = getattr(function, "__globals__", {}).get("__name__", "")
    return type(function).__module__.split(".")[0] == "nnsight" or code.split(".")[0] == "nnsight"
