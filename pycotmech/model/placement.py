"""Where accelerate's `device_map` put the parts of a model, and their weights wherever they are kept.

accelerate replaces the forward of modules by one that moves their inputs to the device on which the module runs. Weights that
are kept on the CPU's memory or on disk are on the meta device between calls, and such a forward loads them first. This file
reads the same from the hooks, so that weights can be used without calling the module. Nothing on the model is changed.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Hashable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (Tensor, nn.Parameter)


class _Loaded(threading.local):
    """Weights that this thread has loaded for one part of a model, and which part that is."""

    def __init__(self) -> None:
        self.part: Hashable = None
        self.weights: dict[tuple[int, str], tuple[Any, Tensor]] = {}


_loaded = _Loaded()


def turn_to(part: Hashable) -> None:
    """Weights that are loaded from now on are kept until this is called with another part; those of the last are dropped.
    None: nothing is kept."""
    if _loaded.part != part:
        _loaded.part = part
        _loaded.weights.clear()


def aligning_hooks(module: nn.Module) -> list[Any]:
    """The hooks of accelerate on a module, if all of them do no more than bring inputs and weights to one device."""
    hooks = _hooks(module)
    types = _types()
    return hooks if types is not None and all(type(hook) is types[0] for hook in hooks) else []


def only_placed(module: nn.Module) -> bool:
    """Whether the forward that a module has of its own is accelerate's, around the one of its class, and only moves tensors."""
    forward, inner = vars(module).get("forward"), getattr(module, "_old_forward", None)
    own = isinstance(forward, partial) and getattr(forward.func, "__module__", "") == "accelerate.hooks"
    return own and getattr(inner, "__func__", None) is type(module).forward and bool(aligning_hooks(module))


def is_placed(model: nn.Module) -> bool:
    """Whether accelerate has put parts of the model on devices, in the CPU's memory or on disk."""
    return any(_hooks(module) for module in model.modules())


def is_offloaded(module: nn.Module) -> bool:
    """Whether weights of the module itself are on the meta device until it is called."""
    return any(p is not None and p.is_meta for p in module.parameters(recurse=False))


def loads_its_parts(module: nn.Module) -> bool:
    """Whether the weights of the module's parts are loaded when it is called, and not when they are."""
    return any(hook.offload and hook.place_submodules for hook in aligning_hooks(module))


def device_of(module: nn.Module) -> torch.device:
    """The device on which a module with weights runs: accelerate's choice, otherwise where its first weight or buffer is."""
    for m in module.modules():
        for hook in aligning_hooks(m):
            if hook.execution_device is not None:
                return _device(hook.execution_device)
    return next(tensor for m in module.modules() for tensor in own_tensors(m)).device


def weight_of(module: nn.Module, name: str = "weight") -> Tensor:
    """A weight of the module itself, on the device where the module runs, with its values: loaded if they are kept elsewhere.

    Cost: nothing, or a copy from memory or disk, once for each part of the model (`turn_to`).
    """
    weight = module._parameters.get(name)  # not by `Module.__getattr__`, which costs more than the rest
    if weight is None:
        weight = getattr(module, name)
    if not weight.is_meta:
        return weight
    found = _loaded.weights.get((id(module), name))
    if found is not None and found[0] is module:
        return found[1]
    for hook in aligning_hooks(module):
        if hook.offload and hook.weights_map is not None:
            value = hook.weights_map[name]
            if value.dtype != weight.dtype and value.is_floating_point():
                value = value.to(weight.dtype)
            value = value.to(_device(hook.execution_device))
            if _loaded.part is not None:
                _loaded.weights[id(module), name] = module, value
            return value
    return weight  # of a model without values, on which only work is counted; `Model` refuses one that is to compute


def bias_of(module: nn.Module) -> Tensor | None:
    """The bias of the module itself, as `weight_of`; None if it has none."""
    return None if _own(module, "bias") is None else weight_of(module, "bias")


def has_plain_weights(module: nn.Module) -> bool:
    """Whether the module's own weight and bias are ordinary tensors of floating-point numbers (or it has none), not those of a
    library of quantisation, which stand for others."""
    for name in ("weight", "bias"):
        tensor = _own(module, name)
        if tensor is not None and not (type(tensor) in _PLAIN and tensor.is_floating_point()):
            return False
    return True


def _own(module: nn.Module, name: str) -> Any:
    """`getattr(module, name, None)`, without the exception of `Module.__getattr__` where a module has no such weight."""
    if name in module._parameters:
        return module._parameters[name]
    kind = type(module)
    if kind.__getattr__ is nn.Module.__getattr__ and not hasattr(kind, name):
        return module.__dict__.get(name, module._buffers.get(name, module._modules.get(name)))
    return getattr(module, name, None)


def own_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Weights and buffers of the module itself, without those of its parts."""
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


def _types() -> tuple[type, type] | None:
    """accelerate's hook that moves tensors, and its list of hooks; None where accelerate was never imported."""
    hooks = sys.modules.get("accelerate.hooks")
    return None if hooks is None else (hooks.AlignDevicesHook, hooks.SequentialHook)


def _hooks(module: nn.Module) -> list[Any]:
    hook = getattr(module, "_hf_hook", None)
    if hook is None:
        return []
    types = _types()
    return [*hook.hooks] if types is not None and type(hook) is types[1] else [hook]


def _device(device: Any) -> torch.device:
    """accelerate names the first GPU 0."""
    if isinstance(device, int):
        return torch.device("cuda", device)
    device = torch.device(device)
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" and device.index is None else device
