"""Which instruction sets this processor has, and the environment that holds all arithmetic to one of them.

    python tests/instruction_sets.py --below     names of the sets below the best one, one a line
    python tests/instruction_sets.py avx2        NAME=VALUE for the environment of a test run, for `env`

The compiled kernels and PyTorch choose the set when they are loaded, so that each needs a process of its own.
"""

import os
import subprocess
import sys

CODE = "from pycotmech import _core; print(_core.isa())"
LIMITS = {
    "portable": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
    "avx512_bf16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "amx": {},
}
"""From the least to the best: what limits PyTorch's own kernels, oneDNN and MKL to the same set."""


def environment(name: str) -> dict[str, str]:
    return {"PYCOTMECH_ISA": name, **LIMITS[name]}


def available() -> list[str]:
    """The sets that the compiled kernels can use here, from the least to the best; none without compiled kernels."""
    env = {k: v for k, v in os.environ.items() if k != "PYCOTMECH_ISA"}
    found = subprocess.run([sys.executable, "-c", CODE], env=env, capture_output=True, text=True)
    names = list(LIMITS)
    return names[: names.index(found.stdout.strip()) + 1] if found.returncode == 0 else []


if __name__ == "__main__":
    wanted = sys.argv[1]
    print("\n".join(available()[:-1] if wanted == "--below" else [f"{k}={v}" for k, v in environment(wanted).items()]))
