"""Builds the compiled modules. They are optional: without a compiler the package runs on the PyTorch reference.

pycotmech._C     the CPU kernels, bound to PyTorch through its stable C++ interface, so one build serves every torch >= 2.10
pycotmech._core  the torch-free face of the same core: instruction set, build flags
pycotmech/_cuda_topk.so  the one CUDA C++ kernel, where nvcc is found: plain pointers, loaded through ctypes

Both modules use Python's limited API, so that one wheel serves every Python >= 3.11.

PYCOTMECH_PURE=1           builds no module: a wheel for every platform (py3-none-any), which runs on the reference.
PYCOTMECH_REQUIRE_BUILD=1  makes a failed compilation an error, for wheels.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).parent
CXX = ["-O3", "-std=c++20", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]
PURE = os.environ.get("PYCOTMECH_PURE", "") not in ("", "0")
REQUIRED = os.environ.get("PYCOTMECH_REQUIRE_BUILD", "") not in ("", "0")


def sources(*patterns: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern))


# Those of them that this nvcc knows; other GPUs compile the PTX of the first.
CUDA_ARCHS = ("80", "86", "89", "90", "100", "120")


def find_nvcc() -> str | None:
    found = shutil.which("nvcc")
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if found is None and home and (Path(home) / "bin" / "nvcc").is_file():
        found = str(Path(home) / "bin" / "nvcc")
    return found


def build_cuda(nvcc: str, target: Path) -> None:
    """Needs neither a GPU nor PyTorch's CUDA headers. A newer target is left as it is."""
    inputs = [*(ROOT / "csrc/cuda").iterdir(), ROOT / "csrc/core/topk.h", Path(__file__)]
    newest = max(p.stat().st_mtime for p in inputs)
    if target.is_file() and target.stat().st_mtime > newest:
        return
    known = subprocess.run([nvcc, "--list-gpu-code"], check=True, capture_output=True, text=True).stdout.split()
    archs = [a for a in CUDA_ARCHS if f"sm_{a}" in known]
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    codes.append(f"-gencode=arch=compute_{archs[0]},code=compute_{archs[0]}")
    target.parent.mkdir(parents=True, exist_ok=True)
    made = target.with_suffix(".new")
    command = [nvcc, "-O3", "-std=c++17", "-shared", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-cudart", "static"]
    subprocess.run([*command, *codes, f"-I{ROOT / 'csrc'}", "csrc/cuda/topk.cu", "-o", str(made)], check=True, cwd=ROOT)
    made.replace(target)


def optional_build() -> type:
    """PyTorch's build command, in which a failed or impossible compilation costs speed, never the installation."""
    from torch.utils.cpp_extension import BuildExtension

    class OptionalBuild(BuildExtension):
        def run(self) -> None:
            self.run_cpp()
            nvcc = find_nvcc() if sys.platform == "linux" else None
            if nvcc is not None:
                try:
                    build_cuda(nvcc, (ROOT if self.inplace else Path(self.build_lib)) / "pycotmech" / "_cuda_topk.so")
                except (OSError, subprocess.CalledProcessError, IndexError) as error:
                    print(f"pycotmech: no CUDA kernel for attn_topk ({error}); it runs on PyTorch there.", file=sys.stderr)

        def run_cpp(self) -> None:
            try:
                super().run()
            except Exception as error:
                if REQUIRED:
                    raise
                self.extensions = []
                print(
                    f"pycotmech: the C++ kernels were not built ({type(error).__name__}: {error}).\n"
                    "pycotmech: installing without them; every op then runs on its PyTorch reference (slower, same values).",
                    file=sys.stderr,
                )

    return OptionalBuild


def extensions() -> list[Extension]:
    from torch.utils.cpp_extension import CppExtension

    return [
        CppExtension(
            "pycotmech._C",
            [*sources("csrc/ops/*.cpp", "csrc/ops/*.c"), *sources("csrc/core/*.cpp")],
            include_dirs=[str(ROOT / "csrc")],
            extra_compile_args={"cxx": [*CXX, "-DTORCH_TARGET_VERSION=0x020a000000000000"]},
            py_limited_api=True,
        ),
        Extension(
            "pycotmech._core",
            [*sources("csrc/python/*.cpp"), "csrc/core/cpu.cpp"],
            include_dirs=[str(ROOT / "csrc")],
            extra_compile_args=CXX,
            language="c++",
            py_limited_api=True,  # PyTorch's build command then defines Py_LIMITED_API
        ),
    ]


compiled = {} if PURE else {
    "ext_modules": extensions(),
    "cmdclass": {"build_ext": optional_build()},
    "options": {"bdist_wheel": {"py_limited_api": "cp311"}},
}  # fmt: skip
setup(packages=[*find_packages(include=["pycotmech", "pycotmech.*"]), "pycotmech.kernels"], **compiled)
