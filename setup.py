"""Builds the two compiled modules. Both are optional: without a compiler the package runs on the PyTorch reference.

pycotmech._C     the CPU kernels, bound to PyTorch through its stable C++ interface, so one build serves every torch >= 2.10
pycotmech._core  the torch-free face of the same core: instruction set, build flags, the core on numpy arrays (tests)
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).parent
CXX = ["-O3", "-std=c++20", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]


def sources(*patterns: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern))


class OptionalBuild(BuildExtension):
    """A failed or impossible compilation costs speed, never the installation."""

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:
            if os.environ.get("PYCOTMECH_REQUIRE_BUILD"):
                raise
            self.extensions = []
            print(
                f"pycotmech: the C++ kernels were not built ({type(error).__name__}: {error}).\n"
                "pycotmech: installing without them; every op then runs on its PyTorch reference (slower, same values).",
                file=sys.stderr,
            )


def extensions() -> list[Extension]:
    import pybind11

    core = sources("csrc/core/*.cpp")
    return [
        CppExtension(
            "pycotmech._C",
            [*sources("csrc/ops/*.cpp", "csrc/ops/*.c"), *core],
            include_dirs=[str(ROOT / "csrc")],
            extra_compile_args={"cxx": [*CXX, "-DTORCH_TARGET_VERSION=0x020a000000000000"]},
            py_limited_api=True,
        ),
        Extension(
            "pycotmech._core",
            [*sources("csrc/python/*.cpp"), *core],
            include_dirs=[str(ROOT / "csrc"), pybind11.get_include()],
            extra_compile_args=CXX,
            language="c++",
        ),
    ]


setup(ext_modules=extensions(), cmdclass={"build_ext": OptionalBuild})
