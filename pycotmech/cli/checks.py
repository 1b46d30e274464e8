"""The checks of `pycotmech doctor`: each says what it found, whether that works, and what to do otherwise."""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from pycotmech._optional import OPTIONAL, command_for, is_installed
from pycotmech.cli.info import core, installed_version

_CLEAN, _CORRUPTED = (
    "Max is a lempus . Every lempus is a tumpus . Max is a",
    "Max is a lempus . Every lempus is a wumpus . Max is a",
)
_REINSTALL = "pip install --force-reinstall --no-deps pycotmech"
_TOLERANCE = 1e-4
"""Of the largest effect: what a sweep in float32 may differ from hooked forward passes."""
_LEAST_DISK = 1e9
"""Bytes that a converted model and a small results folder take."""


_Row = tuple[str, bool | None, str] | tuple[str, bool | None, str, str]
"""The fields of a `Check` after its group."""


@dataclass(frozen=True)
class Check:
    """works: None if this says neither that something works nor that it does not, such as an extra that is not installed.
    remedy: what to do, or nothing."""

    group: str
    name: str
    works: bool | None
    found: str
    remedy: str = ""


def checks() -> list[Check]:
    """Makes all checks. An error of one is its finding, and the others are made."""
    parts = {
        "Packages": (required_packages, optional_packages, model_weights),
        "Compiled": (compiled, cuda),
        "What it computes": (exactness, results_store),
        "Machine": (memory, cache),
    }
    found = []
    for group, makers in parts.items():
        for make in makers:
            try:
                found += [Check(group, *row) for row in make()]
            except Exception as error:  # whatever it is, it is what the user asked for
                what = " ".join(str(error).split()) or type(error).__name__
                found.append(Check(group, make.__name__.replace("_", " "), False, f"{type(error).__name__}: {what}"))
    return found


def required_packages() -> Iterator[_Row]:
    """What pycotmech cannot do without, beside the versions that it takes."""
    from packaging.requirements import Requirement  # of transformers too

    yield "python", sys.version_info >= (3, 11), platform.python_version()
    try:
        declared = metadata.requires("pycotmech") or []
    except metadata.PackageNotFoundError:
        yield "pycotmech", None, "runs from a checkout, so that requirements are not checked", "pip install -e ."
        return
    for requirement in map(Requirement, declared):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed_version(requirement.name)
        fits = version != "not installed" and requirement.specifier.contains(version.partition("+")[0], prereleases=True)
        yield requirement.name, fits, version, "" if fits else f"pip install '{requirement.name}{requirement.specifier}'"


def optional_packages() -> Iterator[_Row]:
    """What the extras bring."""
    for package, of in OPTIONAL.items():
        if is_installed(package):
            yield of.distribution, True, f"{installed_version(of.distribution)}, for {of.purpose}"
        else:
            yield of.distribution, None, f"not installed; {of.purpose} need it", command_for(package)


def model_weights() -> Iterator[_Row]:
    """The weights of the models that have a short name."""
    from pycotmech.model.aliases import INSTALL

    for package, command in INSTALL.items():
        version = installed_version(package)
        there = version != "not installed"
        yield (
            package,
            there or None,
            f"{version}, weights" if there else "not installed; weights of a model",
            "" if there else command,
        )


def compiled() -> Iterator[_Row]:
    """The C++ kernels and what they use of this processor."""
    from pycotmech import ops

    file = next(iter(Path(ops.__file__).resolve().parent.parent.glob("_C*.*")), None)
    if ops.cpp_missing is None:
        yield "C++ kernels", True, "loaded"
        slow = sorted(name for name, where in ops.describe().items() if where["cpu"] != "C++")
        yield "ops on CPU", True, f"C++ for all but {', '.join(slow)}" if slow else "C++ for all"
    elif file is not None:
        yield "C++ kernels", False, ops.cpp_missing, _REINSTALL
    else:
        native = platform.system() == "Linux" and platform.machine() == "x86_64"
        remedy = (
            "install a wheel for Linux x86-64, or with a C++20 compiler: pip install --no-build-isolation ." if native else ""
        )
        yield "C++ kernels", None, "not built; every op runs on its PyTorch reference (slower, same values)", remedy
    yield "processor", None, core().removeprefix("built, ")
    wide = "in float32: no units for it are used" if ops.widens_bfloat16() else "on the processor's own units"
    yield "bfloat16", None, f"multiplied {wide}"


def cuda() -> Iterator[_Row]:
    """A GPU, if there is one: one op on it beside its reference on the CPU."""
    import torch

    from pycotmech import ops

    if not torch.cuda.is_available():
        built = f"PyTorch is built with CUDA {torch.version.cuda}" if torch.version.cuda else "PyTorch is built without CUDA"
        yield "CUDA", None, f"no device; {built}"
        return
    name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    yield "CUDA", True, f"{name}, compute capability {major}.{minor}, CUDA {torch.version.cuda}"
    x, weight = torch.randn(64, 256), torch.randn(256)
    there = ops.add_rms_norm(x.cuda(), None, weight.cuda(), 1e-6).cpu()
    fits = bool(torch.allclose(there, ops.add_rms_norm(x, None, weight, 1e-6), atol=1e-4))
    kinds = sorted({where["cuda"] for where in ops.describe().values()})
    yield (
        "kernels",
        fits,
        f"{' and '.join(kinds)}; {'agree' if fits else 'do not agree'} with the CPU",
        "" if fits else "report this",
    )


def exactness() -> Iterator[_Row]:
    """A sweep of the model that comes with the package beside hooked forward passes, one for each of four heads."""
    import torch

    import pycotmech as pcm

    model = pcm.Model.from_pretrained("tiny-cot")
    yield "tiny-cot", True, f"{model.cfg.n_layers} layers of {model.cfg.n_heads} heads, loaded"
    clean, corrupted = model.to_tokens(_CLEAN), model.to_tokens(_CORRUPTED)
    sweep = pcm.patch_heads(model, clean, corrupted)
    L, H = sweep.values.shape
    heads = [(l, (3 * l + 1) % H) for l in range(L)]
    expected = torch.tensor([hooked(model.hf, clean, corrupted, l, h, model.cfg.d_head) for l, h in heads])
    error = float((torch.tensor([float(sweep.raw[l, h]) for l, h in heads]) - expected).abs().max())
    bound = _TOLERANCE * float(abs(sweep.raw - sweep.corrupted_metric[0]).max())
    fits = error <= bound
    yield (
        "sweep",
        fits,
        f"differs from hooked forward passes by {error:.1e} at most, of {bound:.1e} allowed",
        "" if fits else _REINSTALL,
    )


def hooked(hf, clean, corrupted, layer: int, head: int, d_head: int) -> float:
    """KL(P_clean || P_patched) at the last position, of a plain forward pass of the Hugging Face model with one head patched at
    all positions."""
    import torch

    projection = hf.model.layers[layer].self_attn.o_proj
    part, kept = slice(head * d_head, (head + 1) * d_head), {}

    def keep(module, inputs):
        kept["z"] = inputs[0].clone()

    def patch(module, inputs):
        z = inputs[0].clone()
        z[..., part] = kept["z"][..., part]
        return (z,)

    last = []
    with torch.no_grad():
        for tokens, hook in ((clean, keep), (corrupted, patch)):
            handle = projection.register_forward_pre_hook(hook)
            try:
                last.append(hf(tokens[None]).logits[0, -1].double().log_softmax(-1))
            finally:
                handle.remove()
    return float((last[0].exp() * (last[0] - last[1])).sum())


def results_store() -> Iterator[_Row]:
    """Arrays that are written with checksums and read again."""
    import numpy as np
    import xarray as xr

    from pycotmech.files.arrays import load_arrays, save_arrays

    data = xr.Dataset({"effect": (("layer", "head"), np.arange(6, dtype="f4").reshape(2, 3))})
    with tempfile.TemporaryDirectory() as folder:
        save_arrays(data, Path(folder) / "store.zarr")
        same = bool(load_arrays(Path(folder) / "store.zarr")["effect"].equals(data["effect"]))
    yield (
        "results store",
        same,
        "written and read" if same else "what was read is not what was written",
        "" if same else _REINSTALL,
    )


def memory() -> Iterator[_Row]:
    """Processors and what is free."""
    import os

    import torch

    from pycotmech.engine.memory import free_bytes

    yield "processors", None, f"{os.cpu_count()}, of which PyTorch uses {torch.get_num_threads()}"
    yield "free memory", None, f"{free_bytes(torch.device('cpu')) / 2**30:.1f} GiB"


def cache() -> Iterator[_Row]:
    """The folder of converted models."""
    from pycotmech.model.converted import cache_root

    root = cache_root()
    place = root
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    try:
        with tempfile.TemporaryFile(dir=place):
            writable = True
    except OSError:
        writable = False
    found = f"{root}, {free / 1e9:.1f} GB free" + ("" if writable else ", not writable")
    yield "model cache", writable and free > _LEAST_DISK, found, "" if writable else "set PYCOTMECH_CACHE to a folder of yours"
