"""Fused kernels. One file per op: its plain PyTorch reference, its shape function, its checked public function.

On CPU the ops run in C++ (`csrc/`), on CUDA in Triton (`kernels/`), and anywhere on the PyTorch reference.

Tests: `test_attn_arguments.py` for `_attention` and `_arguments`; `test_attn_reference.py` for `_registry`;
`test_attn_weights.py` for `attn_colsum`, `attn_entries`, `attn_rows`, `attn_topk`; `test_rows.py` for `add_rms_norm`, `rope`,
`rope_keys`, `swiglu`; the others have tests of their own names.
"""

from pycotmech.ops._registry import cpp_missing, describe
from pycotmech.ops.add_rms_norm import add_rms_norm
from pycotmech.ops.attn_colsum import attn_colsum
from pycotmech.ops.attn_entries import attn_entries
from pycotmech.ops.attn_extract import Extract, attn_extract
from pycotmech.ops.attn_rows import attn_rows
from pycotmech.ops.attn_topk import attn_topk
from pycotmech.ops.head_delta import head_delta
from pycotmech.ops.linear import linear, matmul, widens_bfloat16
from pycotmech.ops.prefix_attn import check_rows, prefix_attn
from pycotmech.ops.rope import rope
from pycotmech.ops.rope_keys import rope_keys
from pycotmech.ops.swiglu import swiglu

__all__ = [
    "Extract",
    "add_rms_norm",
    "attn_colsum",
    "attn_entries",
    "attn_extract",
    "attn_rows",
    "attn_topk",
    "check_rows",
    "cpp_missing",
    "describe",
    "head_delta",
    "linear",
    "matmul",
    "prefix_attn",
    "rope",
    "rope_keys",
    "swiglu",
    "widens_bfloat16",
]
