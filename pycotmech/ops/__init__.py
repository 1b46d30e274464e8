"""Fused kernels. One file per op: its plain PyTorch reference, its shape function, its checked public function.

On CPU the ops run in C++ (`csrc/`), on CUDA in Triton (`kernels/`), and anywhere on the PyTorch reference.
"""

from pycotmech.ops._registry import cpp_missing, describe
from pycotmech.ops.add_rms_norm import add_rms_norm

__all__ = ["add_rms_norm", "cpp_missing", "describe"]
