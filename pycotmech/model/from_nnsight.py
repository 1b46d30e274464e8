"""The Hugging Face model in a model of nnsight or nnterp, without what nnsight puts around its modules."""

from __future__ import annotations

import inspect
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from pycotmech.model.twin import is_of, unwrapped_tree


def from_nnsight(wrapped: Any) -> tuple[nn.Module, Any]:
    """Returns the Hugging Face model in an nnsight model, its weights shared, and its tokenizer or None.

    nnsight replaces the forward of every module by one that listens to traces. The model that is returned has the same weights
    and buffers in modules of its own, with the forwards that were there before.

    Raises TypeError for what is no nnsight model, ValueError for one without weights or with edits, which would be ignored.
    """
    if not is_of(wrapped, "nnsight"):
        raise TypeError(f"wrapped: got {type(wrapped).__name__}; expected a model of nnsight (LanguageModel, for instance)")
    module = getattr(wrapped, "_module", None)
    if not isinstance(module, nn.Module):
        raise TypeError(f"wrapped: this {type(wrapped).__name__} wraps no PyTorch module")
    if getattr(wrapped, "_edits", None) or getattr(wrapped, "_default_mediators", None):
        raise ValueError("wrapped: the model carries edits, which would be ignored; remove them with clear_edits()")
    if any(tensor.is_meta for tensor in module.parameters()):
        raise ValueError("wrapped: its weights are not loaded yet; load them with dispatch=True, or call dispatch()")
    return unwrapped_tree(module, _without_controller), getattr(wrapped, "tokenizer", None)


def _without_controller(module: nn.Module) -> nn.Module:
    """The module, or, if nnsight has replaced its forward or hooked it, a shallow copy with what it had before."""
    own = dict(vars(module))
    for name in ("_forward_hooks", "_forward_pre_hooks"):  # nnsight before 0.8 listens by hooks too
        own[name] = type(own[name])({key: hook for key, hook in own[name].items() if not _of_nnsight(hook)})
    forward = own.get("forward")
    if forward is not None and _of_nnsight(forward):
        del own["forward"]
    elif all(len(own[name]) == len(vars(module)[name]) for name in ("_forward_hooks", "_forward_pre_hooks")):
        return module
    out = object.__new__(type(module))
    vars(out).update(own)
    before = getattr(getattr(forward, "state", None), "original", own.get("__nnsight_forward__"))
    if (
        before is not None and getattr(before, "__func__", before) is not type(module).forward
    ):  # the user's own, which is refused or honoured as ever
        object.__setattr__(out, "forward", MethodType(before, out) if isinstance(before, FunctionType) else before)
    return out


def _of_nnsight(forward: Any) -> bool:
    """Whether nnsight made this forward or hook: an object of its own, or a function in one of its modules."""
    if type(forward).__module__.split(".")[0] == "nnsight":
        return True
    function = getattr(forward, "__func__", forward)  # a wrapper of nnsight's may wrap, and may be wrapped
    code = (getattr(f, "__globals__", {}).get("__name__", "") for f in (function, inspect.unwrap(function)))
    return any(name.split(".")[0] == "nnsight" for name in code)
