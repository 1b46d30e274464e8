"""`pycotmech info`: what this installation consists of; also for bug reports."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib import metadata
from typing import Any

from pycotmech.cli import options as o
from pycotmech.cli.output import say_json


def info(as_json: o.Json = False, debug: o.Debug = False) -> None:
    """Show versions, what is compiled, and what runs each op on this machine."""
    found = sections()
    if as_json:
        say_json({title.lower().replace(" ", "_"): dict(rows) for title, rows in found})
        return
    for title, rows in found:
        o.say(title)
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            o.say(f"  {name:<{width}}  {value}")


def sections() -> list[tuple[str, list[tuple[str, str]]]]:
    """Returns sections of (name, value): versions, machine, compiled modules, and what runs each op."""
    import torch

    from pycotmech import __version__, ops
    from pycotmech.engine.memory import free_bytes
    from pycotmech.model.aliases import ALIASES
    from pycotmech.model.converted import cache_root

    versions = [("pycotmech", __version__), ("python", platform.python_version())]
    versions += [(name, installed_version(name)) for name in ("torch", "transformers", "triton", "numpy", "xarray", "zarr")]
    cuda = torch.cuda.is_available()
    machine = [
        ("system", platform.platform()),
        ("processors", f"{os.cpu_count()}, torch uses {torch.get_num_threads()} threads"),
        ("bfloat16 products", _bfloat16()),
        ("free memory", f"{free_bytes(torch.device('cpu')) / 2**30:.1f} GiB"),
        ("CUDA", torch.cuda.get_device_name() if cuda else "no device; torch built " + _cuda_build(torch)),
        ("model cache", str(cache_root())),
        ("model aliases", ", ".join(ALIASES)),
    ]
    built = [("pycotmech._C", "built" if ops.cpp_missing is None else ops.cpp_missing), ("pycotmech._core", core())]
    running = [(name, f"CPU: {where['cpu']}, CUDA: {where['cuda']}") for name, where in ops.describe().items()]
    return [("Versions", versions), ("Machine", machine), ("Compiled modules", built), ("Ops", running)]


def installed_version(package: str) -> str:
    """The version of an installed distribution, or "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cuda_build(torch: Any) -> str:
    return f"with CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"


def _bfloat16() -> str:
    from pycotmech import ops

    if ops.widens_bfloat16():
        return "on CPU in float32, weights widened a slice at a time: no bfloat16 units, or not used (PYCOTMECH_ISA)"
    return "on CPU as PyTorch computes them"


def core() -> str:
    """Says which instruction set is used and which compiler built it, or that the module is not built."""
    if importlib.util.find_spec("pycotmech._core") is None:
        return "not built"
    from pycotmech import _core

    built = _core.build()
    how = "optimised" if built["optimized"] else "not optimised"
    return f"built, instruction set {_core.isa()}, compiler {built.get('compiler', 'unknown')}, {how}"
