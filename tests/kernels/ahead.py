"""Compiles what a wrapper really launches, for a named GPU, on a machine without one; and reads the machine code.

`fake_gpu("sm_90")` puts a stub in the place of Triton's driver and turns launches into compilations (Triton's own
warm-up mode, or before Triton 3.9 its launches with `warmup`). The specialisation by strides and alignment is that of
the call. Nothing is executed.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from pycotmech.kernels import colsum as colsum_module
from pycotmech.kernels import extract, prefix_attn, rows, rows_entries
from triton.backends.compiler import GPUTarget

_BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_SASS = re.compile(r"^\s*(?:/\*[0-9a-f]+\*/)?\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)[.\s;]", re.M)
MMA = {"sm_80": "HMMA", "sm_86": "HMMA", "sm_120": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma"}
"""The tensor-core instruction of each GPU; sm_90 and sm_100 fall back to HMMA for tiles of less than 64 rows."""


class _StubDriver:
    launcher_cls = None

    def __init__(self, arch: str):
        cuda = arch.startswith("sm_")
        self.number = int(arch[3:])
        self.target = GPUTarget("cuda", self.number, 32) if cuda else GPUTarget("hip", arch, 64)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.number  # Triton remembers the target of each device number

    def get_current_stream(self, device=None):
        return 0

    def set_current_device(self, device):
        pass

    def get_active_torch_device(self):
        return torch.device("cuda", 0)

    def get_device_capability(self, device=None):
        return divmod(self.number, 10)


@contextlib.contextmanager
def fake_gpu(arch: str):
    """Yields the list into which every launch in the block is compiled for `arch`."""
    os.environ.setdefault("TRITON_CACHE_DIR", str(Path(__file__).resolve().parents[2] / ".triton"))
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    compiled: list = []
    driver = triton.runtime.driver
    before = driver._active
    driver.set_active(_StubDriver(arch))
    try:
        with _compiling(compiled):
            yield compiled
    finally:
        driver._active = before


def _compiling(compiled: list) -> contextlib.AbstractContextManager:
    """Launches in the block are compiled into this list."""
    try:
        from triton._compile_warmup import compile_warmup_only
    except ModuleNotFoundError:
        return _launches_that_compile(compiled)

    class Dispatcher:
        current_test = None

        def dispatch(self, *args, kernel, grid, test, **options):
            compiled.append(kernel.warmup(*args, grid=grid, **options))
            return compiled[-1]

    return compile_warmup_only(Dispatcher())


@contextlib.contextmanager
def _launches_that_compile(compiled: list):
    """The same before Triton 3.9, which has no warm-up mode of its own."""
    launch = triton.JITFunction.run

    def run(self, *args, grid, warmup, **options):
        compiled.append(launch(self, *args, grid=grid, warmup=True, **options))
        return compiled[-1]

    triton.JITFunction.run = run
    try:
        yield
    finally:
        triton.JITFunction.run = launch


@dataclass(frozen=True)
class Report:
    kernel: str
    registers: int
    spilled: int
    """Bytes of stack on NVIDIA, spilled vector registers on AMD."""
    shared: int
    mma: Counter
    """Tensor-core instructions by name."""
    async_loads: int
    """Asynchronous copies into shared memory: cp.async (LDGSTS) and TMA (UTMALDG)."""
    opcodes: Counter
    loops: tuple[Counter, ...] = ()
    """The instructions of each loop that has none in it, on NVIDIA, in the order of the code."""


def _loops(sass: str) -> tuple[Counter, ...]:
    ops: list[str] = []
    labels: dict[str, int] = {}
    found: list[tuple[int, int]] = []
    for line in sass.splitlines():
        if label := re.match(r"(\.L_\w+):", line):
            labels[label[1]] = len(ops)
        elif op := _SASS.match(line):
            ops.append(op[1])
            target = re.search(r"\bBRA\b.*`\((\.L_\w+)\)", line)
            if target and target[1] in labels:
                found.append((labels[target[1]], len(ops)))
    return tuple(Counter(ops[a:b]) for a, b in found if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in found))


def read(compiled, arch: str) -> Report:
    name, shared = compiled.metadata.name, compiled.metadata.shared
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]
        vgprs, spilled = (int(re.search(rf"\.{x}_count:?\s+(\d+)", text)[1]) for x in ("vgpr", "vgpr_spill"))
        ops = Counter(re.findall(r"^\s+([a-z]\w+)", text, re.M))
        mma = Counter({"v_mfma": sum(n for op, n in ops.items() if op.startswith("v_mfma"))})
        return Report(name, vgprs, spilled, shared, +mma, 0, ops)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        usage = subprocess.run([_BIN / "cuobjdump", "--dump-resource-usage", path], capture_output=True, text=True, check=True)
        sass = subprocess.run([_BIN / "nvdisasm", "-c", path], capture_output=True, text=True, check=True)
    registers, stack = (int(x) for x in re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout).groups())
    ops = Counter(_SASS.findall(sass.stdout))
    spilled = stack + ops["LDL"] + ops["STL"]
    mma = Counter({op: ops[op] for op in set(MMA.values()) if ops[op]})
    return Report(name, registers, spilled, shared, mma, ops["LDGSTS"] + ops["UTMALDG"], ops, _loops(sass.stdout))


def _attention(dtype, D, H=8, Hkv=8, T=1000):
    q = torch.empty(2, H, T, D, dtype=dtype)
    k, v = (torch.empty(2, Hkv, 1000, D, dtype=dtype) for _ in range(2))
    return q, k, v


def _extract(dtype, D, *, G=0, C=0, topk=0, limits=False, sinks=False, entropy=True):
    q, k, v = _attention(dtype, D, Hkv=2)
    segments = torch.empty(1000, dtype=torch.int32) if G else None
    readout = torch.empty(1, 8, 1000, C) if C else None
    starts = torch.empty(2, dtype=torch.int32) if limits else None
    window, softcap = (100, 30.0) if limits else (0, 0.0)
    sink = torch.empty(8) if sinks else None
    extract.attn_extract(q, k, v, segments, G, readout, starts, D**-0.5, entropy, topk, window, softcap, sink)


def top_keys_beside(dtype, D, G, limits):
    _extract(dtype, D, G=G, topk=8, limits=limits, sinks=True)


def _pattern(dtype, D):
    q, k, _ = _attention(dtype, D, Hkv=2)
    return q, k, torch.empty(2, 8, 1000)


def _colsum(dtype, D, limits):
    starts = torch.empty(2, dtype=torch.int32) if limits else None
    tail = (D**-0.5, 100 if limits else 0, 30.0 if limits else 0.0)
    colsum_module.attn_colsum(*_pattern(dtype, D), torch.empty(1, 1, 1000), starts, *tail)


def indices(n=70):
    return torch.empty(n, dtype=torch.int64)


def _prefix(dtype, D, *, R=4096, cuts=False, softcap=0.0, sinks=False, H=12, Hkv=4, keys=500):
    q = torch.empty(R, H, D, dtype=dtype)
    shared, own = torch.empty(keys, 2, Hkv, D, dtype=dtype), torch.empty(R, 2, Hkv, D, dtype=dtype)
    table = torch.empty(R, 4, dtype=torch.int32)
    cut = torch.empty(5, 4, dtype=torch.int32) if cuts else None
    kv = (shared[:, 0], shared[:, 1], own[:, 0], own[:, 1])
    prefix_attn.prefix_attn(q, *kv, table, D**-0.5, 0, softcap, cut, torch.empty(H) if sinks else None)


LAUNCHES = {
    # kind of configs.TILES: the calls that use it, the plain one first, the one with the most to hold last
    "extract_plain": (lambda t, D: _extract(t, D), lambda t, D: _extract(t, D, limits=True)),
    "extract_segments": (lambda t, D: _extract(t, D, G=10), lambda t, D: _extract(t, D, G=32, limits=True)),
    "extract_topk": (lambda t, D: _extract(t, D, topk=8), lambda t, D: _extract(t, D, topk=8, limits=True)),
    "extract_columns": (lambda t, D: _extract(t, D, C=3), lambda t, D: _extract(t, D, G=64, C=64, limits=True)),
    "colsum": (lambda t, D: _colsum(t, D, False), lambda t, D: _colsum(t, D, True)),
    "rows": (lambda t, D: rows_entries.attn_rows(*_pattern(t, D), indices(), None, D**-0.5, 0, 0.0),),
    "entries": (lambda t, D: rows_entries.attn_entries(*_pattern(t, D), indices(), indices(), None, D**-0.5, 0, 0.0),),
    "prefix": (lambda t, D: _prefix(t, D), lambda t, D: _prefix(t, D, softcap=30.0)),
    "prefix_few": (lambda t, D: _prefix(t, D, R=300), lambda t, D: _prefix(t, D, R=300, softcap=30.0)),
    "prefix_cuts": (lambda t, D: _prefix(t, D, cuts=True), lambda t, D: _prefix(t, D, cuts=True, softcap=30.0)),
}

SINK_LAUNCHES = {
    # the last calls of LAUNCHES with attention sinks besides
    "extract_plain": lambda t, D: _extract(t, D, limits=True, sinks=True),
    "extract_segments": lambda t, D: _extract(t, D, G=32, limits=True, sinks=True),
    "extract_columns": lambda t, D: _extract(t, D, G=64, C=64, limits=True, sinks=True),
    "prefix": lambda t, D: _prefix(t, D, softcap=30.0, sinks=True),
    "prefix_few": lambda t, D: _prefix(t, D, R=300, softcap=30.0, sinks=True),
    "prefix_cuts": lambda t, D: _prefix(t, D, cuts=True, softcap=30.0, sinks=True),
}


SPLIT_LAUNCHES = {
    # few rows after a long prefix: the shared keys in parts, and the kernel that joins them
    "prefix_few": lambda t, D: _prefix(t, D, R=8, softcap=30.0, sinks=True, keys=8192),
    "prefix_cuts": lambda t, D: _prefix(t, D, R=8, cuts=True, softcap=30.0, sinks=True, keys=8192),
}


def _norm(delta):
    x = torch.empty(64, 4096)
    rows.add_rms_norm(x, delta, torch.empty(4096, dtype=torch.bfloat16), 1e-5)


def _rope_keys(R, H, hkv, D):
    q, k, v, *out = torch.empty(R, H + 4 * hkv, D, dtype=torch.bfloat16).split((H, hkv, hkv, hkv, hkv), 1)
    rows.rope_keys(q, k, v, torch.empty(R, D), torch.empty(R, D), *out)


ROW_LAUNCHES = {
    "add_rms_norm": lambda: _norm(torch.empty(64, 4096, dtype=torch.bfloat16)),
    "rope": lambda: rows.rope(torch.empty(64, 32, 128, dtype=torch.bfloat16), torch.empty(64, 128), torch.empty(64, 128)),
    "rope_keys": lambda: _rope_keys(64, 32, 8, 128),
    "swiglu": lambda: rows.swiglu(*torch.empty(2, 64, 11008, dtype=torch.bfloat16)),
}


def compile_for(arch: str, launch, *args) -> list[Report]:
    """One report for each kernel that `launch(*args)` starts on `arch`; of several columns launches the last counts."""
    with fake_gpu(arch) as compiled:
        launch(*args)
    return [read(c, arch) for c in compiled]
