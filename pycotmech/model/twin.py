"""Stand-ins for a user's model that share its weights while the model itself stays untouched."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from types import MethodType
from typing import Any

from torch import nn


def twin_of(model: nn.Module, parts: Iterable[str]) -> nn.Module:
    """A model with the same weights, buffers and hooks, of which the modules named in `parts` are copies.

    parts: names as in `named_modules()`, "" for the model itself. These modules, and those that contain them, are shallow
        copies; every other module, and every weight, is the model's own. Hooks put on the copies, and attributes set on them,
        are not seen by `model`, so other threads may run it, or make twins of their own, at the same time.

    Cost: a few microseconds for each copied module; no weight is copied.
    """
    copies = {"": _copied(model)}
    for name in filter(None, parts):
        path = name.split(".")
        for i, child in enumerate(path):
            here = ".".join(path[: i + 1])
            if here not in copies:
                parent = copies[".".join(path[:i])]
                copies[here] = _copied(parent.get_submodule(child))
                parent.add_module(child, copies[here])
    return copies[""]


def is_of(model: Any, library: str) -> bool:
    """Whether the model's class, or one that it is derived from, is in this library, which need not be installed."""
    return any(cls.__module__.split(".")[0] == library for cls in type(model).__mro__)


def unwrapped_tree(model: nn.Module, inner: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A model with the same weights and buffers, of which every module is a shallow copy of what `inner` takes out of it.

    inner: module -> the module to copy in its place, itself where nothing is wrapped around it.

    `model` is left as it is. Later changes of weights are seen by both, later hooks and replaced modules by neither.
    Cost: a few microseconds for each module; no weight is copied.
    """
    copies: dict[int, tuple[nn.Module, nn.Module]] = {}  # with what was copied, which must live for its id to stay its own

    def visit(wrapped: nn.Module) -> nn.Module:
        if id(wrapped) not in copies:
            module = inner(wrapped)
            if id(module) not in copies:
                out = _copied(module)
                copies[id(module)] = (module, out)
                children = vars(out)["_modules"]  # named_children() leaves out a child's second name
                children.update({name: None if child is None else visit(child) for name, child in children.items()})
            copies[id(wrapped)] = (wrapped, copies[id(module)][1])
        return copies[id(wrapped)][1]

    return visit(model)


def _copied(module: nn.Module) -> nn.Module:
    """A shallow copy with registries of its own: submodules, hooks, buffers, parameters."""
    out = object.__new__(type(module))
    vars(out).update({name: _own(value, module, out) for name, value in vars(module).items()})
    vars(out).pop("_compiled_call_impl", None)  # of `module.compile()`, which would run the module in its copy's place
    return out


def _own(value: Any, module: nn.Module, copy: nn.Module) -> Any:
    """An attribute of a module as its copy has it. A forward that was replaced by a function of the module (accelerate does
    so) calls the copy there."""
    if isinstance(value, dict):
        return value.copy()
    if isinstance(value, MethodType) and value.__self__ is module:
        return MethodType(value.__func__, copy)
    if isinstance(value, partial) and value.args and value.args[0] is module:
        bound = partial(value.func, copy, *value.args[1:], **value.keywords)
        vars(bound).update({name: _own(inner, module, copy) for name, inner in vars(value).items()})
        return bound
    return value
