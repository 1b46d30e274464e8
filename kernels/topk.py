"""attn_topk on NVIDIA GPUs: CUDA C++ (csrc/cuda/topk.cu), since Triton has no sorted insertion without many shuffles.

The library is built by setup.py where nvcc is found, and loaded at the first call. It takes raw pointers and a stream,
so it needs neither PyTorch's headers nor a driver at build time. Without it the op runs on its PyTorch reference.
"""

from __future__ import annotations

import ctypes
import functools
import warnings
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def _find() -> Path | None:
    import pycotmech

    path = Path(pycotmech.__file__).resolve().parent / "_cuda_topk.so"
    return path if path.is_file() else None


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel, or None where it was not built (said once)."""
    path = _find()
    if path is None or torch.version.hip is not None:
        why = "AMD GPUs have none" if torch.version.hip is not None else "it is built where nvcc is found"
        message = f"pycotmech: no CUDA kernel for attn_topk ({why}); it runs on the PyTorch reference"
        warnings.warn(message, stacklevel=2)
        return None
    lib = ctypes.CDLL(str(path))
    pointer, i32, i64, f64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_double
    lib.pcm_cuda_topk.argtypes = [*[pointer] * 6, i32, *[i64] * 6, *[i64] * 9, i32, f64, i64, f64, pointer]
    lib.pcm_cuda_topk.restype = ctypes.c_int
    lib.pcm_cuda_error.argtypes = [ctypes.c_int]
    lib.pcm_cuda_error.restype = ctypes.c_char_p
    return lib


def call(
    lib: ctypes.CDLL,
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    starts: Tensor | None,
    p: Tensor,
    i: Tensor,
    scale: float,
    window: int,
    softcap: float,
    stream: int,
) -> None:
    """One launch; RuntimeError with CUDA's own words if it is refused. The results are ready when the stream is."""
    B, H, T, D = q.shape
    strides = (*q.stride()[:3], *k.stride()[:3], *lse.stride())
    error = lib.pcm_cuda_topk(
        *(x.data_ptr() for x in (q, k, lse)),
        None if starts is None else starts.data_ptr(),
        *(p.data_ptr(), i.data_ptr(), DTYPES[q.dtype]),
        *(B, H, k.shape[1], T, k.shape[2], D, *strides),
        *(p.shape[-1], scale, window, softcap, stream),
    )
    if error:
        raise RuntimeError(f"attn_topk: the kernel could not be launched: {lib.pcm_cuda_error(error).decode()}")


def attn_topk(
    q: Tensor, k: Tensor, lse: Tensor, topk: int, starts: Tensor | None, scale: float, window: int, softcap: float
) -> tuple[Tensor, Tensor]:
    lib = library()
    if lib is None or q.dtype not in DTYPES:
        from pycotmech.ops.attn_topk import reference  # only here: kernels are below the ops

        return reference(q, k, lse, topk, starts, scale, window, softcap)
    if not 1 <= topk <= 64:
        raise ValueError(f"topk must be 1 to 64, got {topk}")
    if q.shape[-1] > 256:
        raise ValueError(f"q has head size {q.shape[-1]}; the CUDA kernel of attn_topk takes up to 256")
    if q.stride(-1) != 1 or k.stride(-1) != 1:
        raise ValueError("q and k must be contiguous in their last dim")
    p = torch.empty((*q.shape[:3], topk), dtype=torch.float32, device=q.device)
    i = torch.empty((*q.shape[:3], topk), dtype=torch.int32, device=q.device)
    with torch.cuda.device(q.device):
        stream = torch.cuda.current_stream(q.device).cuda_stream
        call(lib, q, k, lse, starts, p, i, scale, window, softcap, stream)
    return p, i
