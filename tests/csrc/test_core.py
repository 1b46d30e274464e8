"""The torch-free core, as plain C++ programs under sanitizers; see the .cpp files for what they check.

All of them are in one file, which one worker of pytest-xdist runs, so that what the programs share is compiled once.
"""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

CORE = Path(__file__).parent.parent.parent / "csrc" / "core"
# Fresh memory is all ones, a NaN: what is used before it is written shows in the results.
FRESH = {"ASAN_OPTIONS": "malloc_fill_byte=255:max_malloc_fill_size=1000000000"}
# The same for blocks of any size.
POISON = {"ASAN_OPTIONS": "max_malloc_fill_size=1073741824:malloc_fill_byte=255"}
LEVELS = ["portable", "avx2", "avx512", "avx512_bf16", "amx"]
FLAGS = {
    "avx2": {"avx2", "fma"},
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "avx512_bf16": {"avx512_bf16"},
    "amx": {"amx_bf16", "amx_tile"},
}


def levels_here() -> list[str]:
    """What the processor offers according to the operating system: no level may go untested in silence."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return LEVELS[:1]
    with open("/proc/cpuinfo") as f:
        have = set(next(line for line in f if line.startswith("flags")).split(":")[1].split())
    out = LEVELS[:1]
    for level in LEVELS[1:]:
        if not FLAGS[level] <= have:
            break
        out.append(level)
    return out


@pytest.mark.parametrize("program", ["gemm_test", "prefix_attn_test", "rows_test", "vec_test"])
def test_every_level(cpp_test, program):
    assert cpp_test(program, env=FRESH) == levels_here()


def test_level_can_be_lowered(cpp_test):
    assert cpp_test("vec_test", env={"PYCOTMECH_ISA": "portable"}) == ["portable"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the AMX source is only in x86-64 builds")
@pytest.mark.parametrize("program", ["gemm_test", "prefix_attn_test"])
def test_amx_source_with_emulated_tiles(cpp_test, program):
    defines = ('PCM_AMX_EMULATION="amx_emulation.h"',)
    assert cpp_test(program, args=("amx",), defines=defines, env=FRESH) == ["amx"]


@pytest.mark.parametrize("name", sorted(p.name for p in CORE.glob("*_a*x*.cpp")))
def test_no_shared_function_is_compiled_for_a_special_level(compiler, tmp_path, name):
    """A weak symbol (an inline function of the standard library, say) in such an object could be the copy that the
    linker keeps for the whole program, and would then fault on a lesser processor."""
    out = tmp_path / "one.o"
    subprocess.run([compiler, "-std=c++20", "-O1", f"-I{CORE.parent}", "-c", CORE / name, "-o", out], check=True)
    symbols = subprocess.run(["nm", "-C", "--defined-only", out], check=True, capture_output=True, text=True).stdout
    shared = [line for line in symbols.splitlines() if line.split()[1] in "WVuwv"]
    exported = [line for line in symbols.splitlines() if line.split()[1] in "TDRB"]
    assert not shared and all("pcm::k" in line for line in exported), symbols


# ---- attention and its top-k --------------------------------------------------------------------------------------------


def test_topk_at_every_level(cpp_test):
    assert cpp_test("topk_test") == levels_here()


@pytest.mark.parametrize("level", levels_here())
def test_attention(cpp_test, level):
    assert cpp_test("attn_test", env={**POISON, "PYCOTMECH_ISA": level}) == [level]


def test_cuda_kernel_between_barriers(cpp_test):
    assert cpp_test("topk_cuda_test") == ["ok"]
