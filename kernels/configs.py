"""Tile shapes of the attention kernels: a small fixed table, chosen by what compiles without spills (docs/kernels.md).

Nothing is tuned at run time: what the tests compile ahead of time is what runs. A GPU that is not listed takes the
shapes of its family: 8.6 also serves 8.7, 8.9 and 12.x (100 KB of shared memory), 10.0 for 10.3, gfx942 for every AMD
GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pycotmech.kernels import launch

MAX_HEAD = 256
SHARED_MEMORY = {"sm_80": 166912, "sm_86": 101376, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}
"""Bytes that one program may ask for."""


_Tile = tuple[int, int, int, int]


@dataclass(frozen=True)
class Config:
    block_m: int
    block_n: int
    warps: int
    stages: int
    tma: bool = False
    """Tensor descriptors (TMA) in place of pointers, for 16-bit inputs whose strides and addresses allow them."""
    precision: str = "tf32"
    """Of float32 products; 16-bit inputs are multiplied exactly and added in float32 whatever this says."""
    parts: int = 2
    """bfloat16 parts of a weight in the products with segments and readouts: 1e-3, 1e-6, 1e-8 of relative error."""


def family(arch: str) -> str:
    if not arch.startswith("sm_"):
        return "gfx942"
    number = int(arch[3:])
    if number < 80:
        raise RuntimeError(f"the Triton kernels need a GPU of compute capability 8.0 or later, this one is {arch}")
    return {80: "sm_80", 90: "sm_90", 100: "sm_100", 103: "sm_100"}.get(number, "sm_86")


def padded(D: int) -> int:
    """The power of two that holds a head of size D in a tile."""
    if not 1 <= D <= MAX_HEAD:
        raise ValueError(f"the head size must be 1 to {MAX_HEAD} on a GPU, got {D}")
    return max(32, 1 << (D - 1).bit_length())


def columns(n: int, dtype: torch.dtype) -> int:
    """The width of the tile that holds n columns of a small product, a power of two; 0 for none.

    Beside float32 inputs at least 32: at 16 the scores take four times the instructions on NVIDIA, and spill.
    """
    return 0 if n == 0 else max(32 if dtype == torch.float32 else 16, 1 << (n - 1).bit_length())


TILES: dict[str, dict[str, tuple[_Tile, _Tile]]] = {
    # kind -> family -> (block_m, block_n, warps, stages) for heads up to 128 and up to 256; 16-bit inputs
    "extract_plain": {
        "sm_80": ((128, 64, 8, 3), (64, 32, 8, 2)),
        "sm_86": ((64, 32, 4, 3), (64, 32, 8, 2)),
        "sm_90": ((128, 128, 8, 2), (64, 32, 4, 2)),
        "sm_100": ((128, 128, 8, 2), (64, 32, 4, 2)),
        "gfx942": ((64, 32, 4, 2), (64, 32, 4, 2)),
    },
    "extract_segments": {
        "sm_80": ((128, 32, 8, 3), (16, 32, 4, 2)),
        "sm_86": ((64, 32, 4, 3), (16, 32, 4, 2)),
        "sm_90": ((128, 64, 8, 3), (64, 32, 4, 2)),
        "sm_100": ((128, 64, 8, 3), (64, 32, 4, 2)),
        "gfx942": ((64, 32, 4, 2), (32, 32, 4, 2)),
    },
    "extract_columns": {
        "sm_80": ((64, 32, 4, 2), (32, 32, 4, 2)),
        "sm_86": ((64, 32, 4, 3), (32, 32, 4, 2)),
        "sm_90": ((128, 64, 8, 2), (64, 32, 4, 2)),
        "sm_100": ((128, 64, 8, 3), (64, 32, 4, 2)),
        "gfx942": ((64, 32, 4, 2), (32, 32, 4, 2)),
    },
    "extract_topk": {
        "sm_80": ((128, 64, 8, 3), (64, 32, 4, 2)),
        "sm_86": ((64, 32, 4, 2), (32, 32, 4, 2)),
        "sm_90": ((128, 64, 8, 3), (64, 32, 4, 2)),
        "sm_100": ((128, 64, 8, 3), (64, 64, 4, 2)),
        "gfx942": ((64, 32, 4, 2), (32, 32, 4, 2)),
    },
    "colsum": {
        "sm_80": ((64, 128, 8, 3), (32, 32, 4, 2)),
        "sm_86": ((64, 128, 8, 3), (32, 32, 4, 2)),
        "sm_90": ((64, 128, 8, 3), (64, 128, 8, 2)),
        "sm_100": ((64, 128, 8, 3), (64, 128, 8, 2)),
        "gfx942": ((64, 64, 4, 2), (32, 32, 4, 2)),
    },
    "rows": {
        "sm_80": ((64, 64, 4, 1), (16, 64, 4, 1)),
        "sm_86": ((64, 64, 4, 1), (16, 64, 4, 1)),
        "sm_90": ((64, 64, 4, 1), (64, 64, 4, 1)),
        "sm_100": ((64, 64, 4, 1), (64, 64, 4, 1)),
        "gfx942": ((64, 64, 4, 1), (16, 64, 4, 1)),
    },
    "entries": {
        "sm_80": ((32, 1, 4, 1), (16, 1, 4, 1)),
        "sm_86": ((32, 1, 4, 1), (16, 1, 4, 1)),
        "sm_90": ((32, 1, 4, 1), (16, 1, 4, 1)),
        "sm_100": ((32, 1, 4, 1), (16, 1, 4, 1)),
        "gfx942": ((32, 1, 4, 1), (16, 1, 4, 1)),
    },
    "prefix": {
        "sm_80": ((128, 32, 8, 3), (32, 32, 4, 2)),
        "sm_86": ((64, 32, 4, 3), (32, 32, 4, 2)),
        "sm_90": ((128, 64, 8, 3), (64, 16, 4, 2)),
        "sm_100": ((128, 64, 8, 3), (64, 64, 4, 2)),
        "gfx942": ((64, 32, 4, 2), (32, 32, 4, 2)),
    },
    "prefix_few": {
        "sm_80": ((64, 32, 4, 2), (32, 32, 4, 2)),
        "sm_86": ((64, 32, 4, 3), (32, 32, 4, 2)),
        "sm_90": ((64, 64, 4, 2), (64, 16, 4, 2)),
        "sm_100": ((64, 64, 4, 2), (64, 64, 4, 2)),
        "gfx942": ((64, 32, 4, 2), (32, 32, 4, 2)),
    },
    "prefix_cuts": {
        "sm_80": ((64, 32, 4, 2), (16, 16, 4, 2)),
        "sm_86": ((64, 32, 4, 2), (16, 16, 4, 2)),
        "sm_90": ((64, 16, 4, 2), (32, 32, 4, 2)),
        "sm_100": ((64, 32, 4, 2), (32, 32, 4, 2)),
        "gfx942": ((32, 32, 4, 2), (16, 32, 4, 2)),
    },
}
FLOAT32_TILES: dict[str, dict[str, tuple[_Tile, _Tile]]] = {
    "extract_plain": {
        "cuda": ((16, 32, 4, 2), (16, 16, 8, 1)),
        "gfx942": ((16, 32, 4, 2), (16, 16, 4, 2)),
    },
    "extract_segments": {
        "cuda": ((16, 32, 4, 2), (16, 16, 8, 1)),
        "gfx942": ((16, 32, 4, 2), (16, 16, 4, 2)),
    },
    "extract_columns": {
        "cuda": ((16, 32, 4, 2), (16, 16, 8, 1)),
        "gfx942": ((16, 32, 4, 2), (16, 16, 4, 2)),
    },
    "extract_topk": {
        "cuda": ((16, 32, 4, 2), (16, 32, 8, 1)),
        "gfx942": ((16, 32, 4, 2), (16, 16, 4, 2)),
    },
    "colsum": {
        "cuda": ((16, 32, 4, 2), (16, 16, 4, 1)),
        "gfx942": ((16, 32, 4, 2), (16, 16, 4, 2)),
    },
    "rows": {
        "cuda": ((16, 64, 4, 1), (16, 32, 8, 1)),
        "gfx942": ((16, 64, 4, 1), (16, 64, 4, 1)),
    },
    "entries": {
        "cuda": ((32, 1, 4, 1), (16, 1, 4, 1)),
        "gfx942": ((32, 1, 4, 1), (16, 1, 4, 1)),
    },
    "prefix": {
        "cuda": ((16, 32, 4, 2), (16, 16, 8, 1)),
        "gfx942": ((16, 32, 4, 2), (16, 16, 4, 2)),
    },
    "prefix_few": {
        "cuda": ((16, 32, 4, 2), (16, 16, 8, 1)),
        "gfx942": ((16, 32, 4, 2), (16, 16, 4, 2)),
    },
    "prefix_cuts": {
        "cuda": ((16, 16, 2, 1), (16, 16, 8, 2)),
        "gfx942": ((16, 16, 4, 1), (16, 16, 4, 2)),
    },
}
# end of the table
SPILLING = {
    (kind, 32, 256)
    for kind in ("extract_plain", "extract_segments", "extract_columns", "colsum", "rows", "prefix", "prefix_few")
}
"""NVIDIA entries (kind, bits, head) that keep a few values of each thread in local memory: right, but slower."""

_DESCRIPTOR_FAMILIES = ("sm_90", "sm_100")
WITHOUT_LOOP = ("rows", "entries")
"""Kinds that read each tile once: nothing to pipeline."""
_WITHOUT_DESCRIPTORS = (*WITHOUT_LOOP, "prefix_cuts")


BOUNDED = ("sm_90",)
"""Families whose top keys are found with a bound (`extract_topk`), for 16-bit inputs that go by descriptors. Elsewhere the
products lie in other registers, and scores would have to be exchanged between threads to be listed (on 10.0 that spills)."""


@dataclass(frozen=True)
class Key:
    """What a configuration is for."""

    kind: str
    family: str
    bits: int
    D: int


def entries() -> list[Key]:
    """Every entry of the tables. The float32 tiles, too small for the newer instructions, are one program for all NVIDIA
    GPUs and are listed under sm_80."""
    families = {16: list(SHARED_MEMORY), 32: ["sm_80", "gfx942"]}
    return [Key(kind, f, bits, D) for kind in TILES for bits in (16, 32) for f in families[bits] for D in (128, 256)]


def shared_limit(family: str, bits: int) -> int:
    """Bytes of shared memory that a program of the tables may ask for."""
    return SHARED_MEMORY["sm_86" if bits == 32 and family != "gfx942" else family]


def pick(kind: str, dtype: torch.dtype, D: int, *, descriptors: bool = False, arch: str | None = None) -> Config:
    """The configuration of a launch. descriptors: the tensors allow them; where they do not, a GPU that would use them
    takes the pointers and tiles of 8.6, which need the least of everything."""
    name = family(launch.arch() if arch is None else arch)
    if dtype == torch.float32:
        amd = name == "gfx942"
        tile = FLOAT32_TILES[kind]["gfx942" if amd else "cuda"][padded(D) > 128]
        return Config(*tile, precision="ieee" if amd else "tf32x3", parts=3)
    if dtype not in (torch.bfloat16, torch.float16):
        raise TypeError(f"the Triton kernels take float32, bfloat16 and float16, got {dtype}")
    tma = name in _DESCRIPTOR_FAMILIES and kind not in _WITHOUT_DESCRIPTORS
    if tma and not descriptors:
        name, tma = "sm_86", False
    return Config(*TILES[kind][name][padded(D) > 128], tma=tma)


def bounded(dtype: torch.dtype, *, descriptors: bool) -> bool:
    """Whether `extract_topk` looks for keys with a bound, which the pass before it has to find."""
    return dtype != torch.float32 and descriptors and family(launch.arch()) in BOUNDED
