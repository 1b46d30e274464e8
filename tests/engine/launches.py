"""Counts what a GPU would be asked to do, without one: the host code runs in full on tensors of the meta device, which have no
values, and every operation on them that is more than a view counts as one launch. What is read back from the device is zero.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
_FREE = (
    "empty",
    "new_empty",
    "detach",
    "lift_fresh",
    "alias",
    "resize_",
    "_unsafe_view",
    "reshape",
    "is_same_size",
    "sym_",
    "_has_compat",
)


class Launches(TorchDispatchMode):
    """counts: by name of the operation; `reads`: how often a value was read back."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter = Counter()
        self.reads = 0
        self.paused = False

    @property
    def total(self) -> int:
        return self.counts.total()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        on_device = any(t.is_meta for t in given)
        if on_device and name in ("_local_scalar_dense", "equal", "is_nonzero"):
            self._count("read back")
            self.reads += 1
            return name != "_local_scalar_dense" or 0
        if on_device and name == "_to_copy" and torch.device(kwargs.get("device") or META).type == "cpu":
            self._count("read back")
            self.reads += 1
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if name == "copy_" and on_device and not args[0].is_meta:
            self._count("read back")
            return args[0].zero_()
        if name == "copy_" and on_device and not args[1].is_meta:
            self._count("upload")
            return args[0]
        out = func(*args, **kwargs)
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.is_meta]
        view = bool(func._schema.returns) and all(
            r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns
        )
        if (on_device or made) and not view and not name.startswith(_FREE):
            self._count(name)
        return out

    def _count(self, name: str) -> None:
        if not self.paused:
            self.counts[name] += 1


def one_attention(launches: Launches):
    """In the place of PyTorch's fused attention, which on this device would be taken apart: one launch."""

    def attention(q: Tensor, *_args, **_kwargs) -> Tensor:
        launches._count("scaled_dot_product_attention")
        return torch.empty_like(q)

    return attention
