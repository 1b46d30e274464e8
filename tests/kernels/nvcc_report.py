"""What nvcc says of the CUDA kernel of attn_topk on each GPU, compiled ahead of time; no GPU and no driver needed."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ARCHS = ("sm_80", "sm_90a", "sm_100a")
SHARED_LIMIT = {"sm_80": 166912, "sm_90a": 232448, "sm_100a": 232448}  # bytes a block may ask for
NAMES = {"f": "float32", "13__nv_bfloat16": "bfloat16", "6__half": "float16"}


@dataclass(frozen=True)
class Row:
    kernel: str
    arch: str
    dtype: str
    registers: int
    stack: int  # bytes
    spill_stores: int  # bytes
    spill_loads: int  # bytes
    shared: int  # bytes of a block at head size 256, the largest


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(home) / "bin"))


def shared_bytes(D: int) -> int:
    """As topk_shared in csrc/cuda/topk_kernel.h: lists and buffers, queries, a tile of keys, thresholds and counts."""
    padded = (D + 63) // 64 * 64
    return 32 * (2 * 64 * 8 + 8) + (32 * padded + 32 * 68) * 4


def compile_for(nvcc: str, arch: str) -> str:
    """The report of ptxas, every warning included."""
    with tempfile.TemporaryDirectory() as folder:
        code = f"-gencode=arch={arch.replace('sm', 'compute')},code={arch}"
        command = [nvcc, "-O3", "-std=c++17", f"-I{ROOT / 'csrc'}", "-cubin", code, "-Xptxas", "-v"]
        done = subprocess.run(
            [*command, str(ROOT / "csrc/cuda/topk.cu"), "-o", f"{folder}/topk.cubin"], capture_output=True, text=True
        )
    if done.returncode:
        raise RuntimeError(f"nvcc failed for {arch}:\n{done.stderr}")
    return done.stdout + done.stderr


@functools.cache
def rows() -> tuple[Row, ...]:
    """One row for each GPU and dtype. RuntimeError where there is no nvcc."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise RuntimeError("nvcc was not found")
    out = []
    for arch in ARCHS:
        report = compile_for(nvcc, arch)
        for part in report.split("Compiling entry function")[1:]:
            mangled = re.search(r"topk_kernelI(\w+?)E+v", part)
            figures = [
                re.search(pattern, part)
                for pattern in (
                    r"Used (\d+) registers",
                    r"(\d+) bytes stack frame",
                    r"(\d+) bytes spill stores",
                    r"(\d+) bytes spill loads",
                )
            ]
            if mangled is None or None in figures:
                raise RuntimeError(f"the report of ptxas for {arch} has another form:\n{part}")
            numbers = [int(m.group(1)) for m in figures if m is not None]
            out.append(Row("attn_topk", arch, NAMES[mangled.group(1)], *numbers, shared_bytes(256)))
    return tuple(out)
