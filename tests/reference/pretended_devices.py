"""Several devices where there is one: tensors carry the name of a device, and an operation on two of them fails as on GPUs.

Devices are named cpu:1, cpu:2 and so on; what PyTorch makes without being told where is on plain cpu. Values are the CPU's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

HOST = torch.device("cpu")
_DEVICE = torch.Tensor.device.__get__
_COPIES = {Tensor.copy_, Tensor.__setitem__}
_TO_HOST = {Tensor.cpu, Tensor.tolist, Tensor.item, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__}
_READS_MEMORY = {Tensor.numpy, Tensor.__array__}


def device(x: Tensor) -> torch.device:
    return vars(x).get("pretended", HOST)


def put(x: Any, where: torch.device) -> Any:
    """Names the device of a tensor, or of all tensors in a list or tuple."""
    if isinstance(x, Tensor):
        vars(x)["pretended"] = where
    elif isinstance(x, list | tuple):
        for item in x:
            put(item, where)
    return x


def _tensors(args: Iterable[Any]) -> Iterator[Tensor]:
    for x in args:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, list | tuple):
            yield from _tensors(x)
        elif isinstance(x, Mapping):
            yield from _tensors(x.values())


class Devices(TorchFunctionMode):
    """Names the device of what operations return, and refuses those whose tensors lie on several. moves: tensors of more than
    one number that went from one device to another, (from, to, shape)."""

    def __init__(self) -> None:
        super().__init__()
        self.moves: list[tuple[torch.device, torch.device, tuple[int, ...]]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func == _DEVICE:
            return device(args[0])
        if func == Tensor.to:
            return self._to(args, kwargs)
        if func in _READS_MEMORY and device(args[0]) != HOST:
            raise TypeError(f"can't convert a tensor on {device(args[0])} to numpy; copy it to the host first")
        if func == torch.autograd.grad:
            return [put(slope, device(x)) for slope, x in zip(func(*args, **kwargs), args[1], strict=True)]
        wanted = kwargs.pop("device", None)
        where = self._where(func, args, kwargs) if wanted is None else torch.device(wanted)
        out = func(*args, **kwargs)
        return put(out, HOST if func in _TO_HOST else where)

    def _to(self, args, kwargs):
        x, *rest = args
        target = kwargs.pop("device", None)
        for item in rest:
            if isinstance(item, torch.device | str):
                target = item
            elif isinstance(item, Tensor):
                target = device(item)
                kwargs.setdefault("dtype", item.dtype)
        dtype = kwargs.get("dtype") or next((item for item in rest if isinstance(item, torch.dtype)), x.dtype)
        target = device(x) if target is None else torch.device(target)
        if target == device(x):
            return x if dtype == x.dtype else put(x.to(dtype), target)
        if x.numel() > 1:
            self.moves.append((device(x), target, tuple(x.shape)))
        return put(x.to(dtype).clone(), target)

    def _where(self, func, args, kwargs) -> torch.device:
        """The one device of the tensors that an operation gets, as PyTorch has it for GPUs."""
        if func == Tensor.copy_:
            return device(args[0])
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            x, index = args[0], args[1] if isinstance(args[1], tuple) else (args[1],)
            indices = list(_tensors(index))
            if any(device(i) not in (device(x), HOST) for i in indices):
                raise RuntimeError(f"an index on {device(indices[0])} of a tensor on {device(x)}")
            value = args[2] if func == Tensor.__setitem__ and indices else None
            if isinstance(value, Tensor) and value.ndim and device(value) != device(x):
                raise RuntimeError(f"values on {device(value)} for places of a tensor on {device(x)}")
            return device(x)
        tensors = list(_tensors(itertools.chain(args, kwargs.values())))
        places = {device(x) for x in tensors if x.ndim or device(x) != HOST}
        if len(places) > 1:
            name = getattr(func, "__name__", str(func))
            raise RuntimeError(f"{name}: tensors on {', '.join(sorted(map(str, places)))}: {[tuple(x.shape) for x in tensors]}")
        return next(iter(places), HOST)


@contextmanager
def spread(hf: nn.Module, where: Mapping[str, torch.device]) -> Iterator[tuple[Devices, nn.Module]]:
    """The model with its modules on pretended devices, by the longest name in `where` that a module's begins with; each has
    accelerate's hook, as after `dispatch_model`."""
    placed: list[tuple[nn.Module, torch.device]] = []
    for name, module in hf.named_modules():
        found = max((n for n in where if name == n or name.startswith(f"{n}.")), key=len, default=None)
        if found is not None:
            placed.append((module, where[found]))
    for module, on in placed:
        put(list(module.parameters(recurse=False)), on)
        put(list(module.buffers(recurse=False)), on)
    with Devices() as mode:
        for module, on in placed:
            hook = AlignDevicesHook(io_same_device=False)
            hook.execution_device = on
            add_hook_to_module(module, hook)
        top = AlignDevicesHook(io_same_device=True)
        add_hook_to_module(hf, top)
        yield mode, hf
