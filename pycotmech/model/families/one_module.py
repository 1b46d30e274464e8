"""One module of a model: computed by an op when it is exactly the library's own, called otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard, TypeVar

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from pycotmech import ops
from pycotmech.model.placement import bias_of, has_plain_weights, only_placed, weight_of

Module = TypeVar("Module", bound=nn.Module)


def linear(module: nn.Module, x: Tensor) -> Tensor:
    """A projection of rows [R, in] -> [R, out]."""
    if is_exactly(module, nn.Linear):
        return ops.linear(x, weight_of(module), bias_of(module))
    if is_exactly(module, Conv1D):
        return ops.matmul(x, weight_of(module), weight_of(module, "bias"))
    return module(x[None])[0]


def projected_heads(n: Tensor, projections: Sequence[nn.Module], d_head: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [R, d] through the projections to queries, keys and values -> q, k, v [R, heads, d_head].

    Queries and keys are rotated in place by the caller; what a hook on a projection kept must not change under it.
    """
    q, k, v = (linear(p, n).view(len(n), -1, d_head) for p in projections)
    own_q, own_k = (is_exactly(p, nn.Linear) for p in projections[:2])
    return q if own_q else q.clone(), k if own_k else k.clone(), v


def product(x: Tensor, module: nn.Linear | Conv1D) -> Tensor:
    """A plain projection of rows [R, in] -> [R, out] without its bias."""
    weight = weight_of(module)
    return ops.matmul(x, weight) if isinstance(module, Conv1D) else ops.linear(x, weight, None)


def attached(module: nn.Module) -> str | None:
    """What on this module would change its forward, accelerate's moves to other devices aside; None if nothing."""
    if module._forward_hooks or module._forward_pre_hooks:
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        # transformers leaves its own output recorders on a model after the first output_hidden_states=True: they change
        # nothing.
        if any(getattr(hook, "__module__", "") != "transformers.utils.output_capturing" for hook in hooks):
            return "forward hooks"
    if "forward" in module.__dict__ and not only_placed(module):
        return "a forward compiled by torch.compile" if _is_compiled(module) else "a replaced forward method"
    if nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks:
        return "global forward hooks"
    return None


def _is_compiled(module: nn.Module) -> bool:
    """Whether a module's own forward is what torch.compile made of one, of the module itself or of one in it."""
    return hasattr(module, "_orig_mod") or hasattr(vars(module)["forward"], "_torchdynamo_orig_callable")


def is_exactly(module: nn.Module, *types: type[Module]) -> TypeGuard[Module]:
    """Whether the module is exactly of one of these classes, with nothing attached to it and weights that are no stand-ins.

    Asked of each module in each pass, thousands of times in a sweep, so it looks things up where `Module.__getattr__` would."""
    # A parametrized module is of a class of its own.
    return type(module) in types and attached(module) is None and has_plain_weights(module)
