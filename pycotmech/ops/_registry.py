"""One name per op for its three implementations.

`define` declares an op once: its schema, its plain PyTorch reference (which runs on every device) and its shape function.
A faster kernel takes the op over for its device by registering under the same name: the C++ library for CPU tensors
(`pycotmech/_C*.so`, loaded here if it was built), a Triton wrapper from `pycotmech.kernels` for CUDA tensors (looked up at
the first CUDA call, so that importing pycotmech needs neither Triton nor a driver). Nothing else decides where an op runs.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from pycotmech._warnings import warn

_library = torch.library.Library("pycotmech", "DEF")
_names: list[str] = []
_cuda_kernels: dict[str, str] = {}
_REFERENCE = "PyTorch reference"
_LEAST_TORCH = (2, 10)
"""What the C++ kernels are compiled for (setup.py), through PyTorch's stable interface. They load in later versions too."""


def define(schema: str, reference: Callable, fake: Callable, *, kernel: str | None = None) -> Callable:
    """Declares `pycotmech::<name>` and returns the callable op.

    schema: in PyTorch's schema language, "name(Tensor x, ...) -> Tensor".
    reference: the plain PyTorch implementation; the definition of the op.
    fake: output shapes and dtypes from input shapes and dtypes.
    kernel: "module:function" below `pycotmech.kernels` that implements the op for CUDA tensors.
    """
    name = schema.split("(", 1)[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"pycotmech::{name}", fake, lib=_library)
    if kernel is not None:
        _cuda_kernels[name] = kernel
        if torch.version.cuda is not None or torch.version.hip is not None:
            _library.impl(name, _first_cuda_call(kernel, reference), "CUDA")
    _names.append(name)
    return getattr(torch.ops.pycotmech, name)


def _first_cuda_call(kernel: str, reference: Callable) -> Callable:
    module, function = kernel.split(":")
    chosen: list[Callable] = []

    def call(*args, **kwargs):
        if not chosen:
            try:
                chosen.append(getattr(importlib.import_module(f"pycotmech.kernels.{module}"), function))
            except ImportError as error:
                warn(f"pycotmech: {function} on CUDA runs on the PyTorch reference ({error})")
                chosen.append(reference)
        with _on_device_of(args):
            return chosen[0](*args, **kwargs)

    return call


def _on_device_of(args: tuple) -> AbstractContextManager:
    """Triton launches on the current GPU, whichever one holds the tensors: makes theirs the current one."""
    index = next(x.get_device() for x in args if isinstance(x, torch.Tensor))
    return nullcontext() if index == torch.cuda.current_device() else torch.cuda.device(index)


def _find_library() -> Path | None:
    here = Path(__file__).resolve().parent.parent
    return next(iter(sorted(here.glob("_C*.so")) + sorted(here.glob("_C*.pyd"))), None)


def _load_library() -> str | None:
    """Loads the C++ kernels; returns None, or the reason why they are not there (said once, as a warning)."""
    path = _find_library()
    if path is None:
        reason = "the C++ kernels are not built"
    elif tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < _LEAST_TORCH:
        least = ".".join(map(str, _LEAST_TORCH))
        reason = f"the C++ kernels need torch {least} or later, and this is torch {torch.__version__}"
    else:
        try:
            torch.ops.load_library(str(path))
            return None
        except OSError as error:
            reason = f"the C++ kernels in {path.name} could not be loaded ({error})"
    warn(
        f"pycotmech: {reason}; ops on CPU run on the PyTorch reference (slower, same values). The wheel for Linux x86-64 has "
        "them; from the source, `pip install --no-build-isolation .` with a C++20 compiler builds them."
    )
    return reason


cpp_missing: str | None = _load_library()
"""None where the C++ kernels run the CPU ops; otherwise why they do not."""


def _cuda_kernel(name: str) -> str:
    module = _cuda_kernels.get(name, "").split(":")[0]
    if module == "topk":  # the one kernel in CUDA C++, a library of its own
        built = (Path(__file__).resolve().parent.parent / "_cuda_topk.so").is_file()
        return "CUDA C++" if built else _REFERENCE
    try:
        found = module and all(importlib.util.find_spec(m) for m in ("triton", f"pycotmech.kernels.{module}"))
    except ModuleNotFoundError:
        found = False
    return "Triton" if found else _REFERENCE


def describe() -> dict[str, dict[str, str]]:
    """For each op, what runs it on CPU and on CUDA: {"attn_extract": {"cpu": "C++", "cuda": "Triton"}, ...}."""
    out = {}
    for name in sorted(_names):
        on_cpu = torch._C._dispatch_has_kernel_for_dispatch_key(f"pycotmech::{name}", "CPU")
        out[name] = {"cpu": "C++" if on_cpu else _REFERENCE, "cuda": _cuda_kernel(name)}
    return out
