"""Makes Triton's interpreter right for bfloat16. As it stands (3.9) it multiplies the raw bits of bfloat16 operands and
rounds float32 to bfloat16 toward zero (triton issue 11584). Tests only; test_shim.py checks it."""

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_BITWISE = (np.bitwise_and, np.bitwise_or, np.bitwise_xor)


def widen(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(x: np.ndarray) -> np.ndarray:
    """float32 -> the bits of the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded).reshape(np.shape(x))


def _is_bf16(handle: TensorHandle) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _as_float32(handle: TensorHandle) -> TensorHandle:
    return TensorHandle(widen(handle.data), tl.float32) if _is_bf16(handle) else handle


def install() -> None:
    if hasattr(InterpreterBuilder, "_bf16_by_pycotmech"):
        return
    InterpreterBuilder._bf16_by_pycotmech = True
    dot, cast, binary, convert = (
        getattr(InterpreterBuilder, name) for name in ("create_dot", "cast_impl", "binary_op", "create_fp_to_fp")
    )

    def create_dot(self, a, b, d, *rest):
        return dot(self, _as_float32(a), _as_float32(b), d, *rest)

    def cast_impl(self, source, to):
        target = to.scalar
        if _is_bf16(source) and target != tl.bfloat16:
            return TensorHandle(widen(source.data).astype(interpreter._get_np_dtype(to)), target)
        if target == tl.bfloat16 and not _is_bf16(source):
            return TensorHandle(narrow(source.data.astype(np.float32)), target)
        return cast(self, source, to)

    def create_fp_to_fp(self, source, to, rounding):
        if _is_bf16(source) or to.scalar == tl.bfloat16:
            return cast_impl(self, source, to)
        return convert(self, source, to, rounding)

    def binary_op(self, a, b, op):
        if not _is_bf16(a) or op in _BITWISE:
            return binary(self, a, b, op)
        out = op(widen(a.data), widen(b.data))
        return TensorHandle(out, tl.int1) if out.dtype == np.bool_ else TensorHandle(narrow(out), tl.bfloat16)

    InterpreterBuilder.create_dot = create_dot
    InterpreterBuilder.cast_impl = cast_impl
    InterpreterBuilder.create_fp_to_fp = create_fp_to_fp
    InterpreterBuilder.binary_op = binary_op
