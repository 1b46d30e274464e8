"""Comparisons of arrays that say in one line what is wrong: name, worst entry, how many times the tolerance it is off.

`assert_allclose` and `assert_close` assert what numpy's and PyTorch's functions of these names do, with the same arguments and
defaults. A failure reads

    sweep.values: [2, 5] is 0.4127, expected 0.4125: 21 times the tolerance (3 of 12 entries beyond it)

with the names of the axes (layer 2, head 5) for a labelled array or where `axes` names them.
"""

from __future__ import annotations

import ast
import inspect
import linecache
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def assert_allclose(
    actual: Any, desired: Any, rtol: float = 1e-7, atol: float = 0.0, *, axes: Sequence[str] = (), **options: Any
) -> None:
    """`numpy.testing.assert_allclose`."""
    __tracebackhide__ = True
    try:
        np.testing.assert_allclose(actual, desired, rtol=rtol, atol=atol, **options)
    except AssertionError as error:
        raise AssertionError(_line(actual, desired, rtol, atol, axes) or str(error)) from None


def assert_close(
    actual: Any, desired: Any, *, rtol: float | None = None, atol: float | None = None, axes: Sequence[str] = (), **options: Any
) -> None:
    """`torch.testing.assert_close`; rtol, atol: None for the defaults of the dtype."""
    __tracebackhide__ = True
    try:
        torch.testing.assert_close(actual, desired, rtol=rtol, atol=atol, **options)
    except AssertionError as error:
        if rtol is None or atol is None:
            rtol, atol = _DEFAULTS.get(getattr(actual, "dtype", None), (0.0, 0.0))
        raise AssertionError(_line(actual, desired, rtol, atol, axes) or str(error)) from None


_DEFAULTS = {torch.float64: (1e-7, 1e-7), torch.float32: (1.3e-6, 1e-5), torch.bfloat16: (1.6e-2, 1e-5)}
"""rtol, atol of `torch.testing.assert_close`."""


def _line(actual: Any, desired: Any, rtol: float, atol: float, axes: Sequence[str]) -> str | None:
    """The line for two arrays of one shape (or one that broadcasts); None for anything else."""
    try:
        got, want = np.broadcast_arrays(_array(actual), _array(desired))
    except (TypeError, ValueError):
        return None
    if got.size == 0:
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        off, tolerance = np.abs(got - want), atol + rtol * np.abs(want)
        ratio = np.where(off == 0, 0.0, off / tolerance)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    ratio = np.where(same, 0.0, np.where(np.isnan(ratio), np.inf, ratio))
    if not (ratio > 1).any():
        return None  # dtypes, devices or shapes differ, which the library's own words say
    worst = np.unravel_index(int(ratio.argmax()), ratio.shape)
    names = tuple(axes) or tuple(getattr(actual, "dims", ()))
    where = f"[{', '.join(map(str, worst))}]"
    if len(names) == len(worst) and names:
        where = ", ".join(f"{name} {i}" for name, i in zip(names, worst, strict=True))
    entry = f"{where} is" if ratio.ndim else "is"
    beyond = f" ({int((ratio > 1).sum())} of {ratio.size} entries beyond it)" if ratio.ndim else ""
    return (
        f"{_expression()}: {entry} {got[worst]:.6g}, expected {want[worst]:.6g}: {ratio[worst]:.3g} times the tolerance{beyond}"
    )


def _array(x: Any) -> np.ndarray:
    if isinstance(x, torch.Tensor):
        return x.detach().to("cpu", torch.float64).numpy()
    return np.asarray(x, dtype=np.float64)


def _expression() -> str:
    """The source of the first argument in the test's call."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    if frame is None:
        return "values"
    lines = "".join(linecache.getlines(frame.f_code.co_filename))
    for node in ast.walk(ast.parse(lines)):
        if isinstance(node, ast.Call) and node.args and node.lineno <= frame.f_lineno <= (node.end_lineno or node.lineno):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("assert_allclose", "assert_close"):
                return ast.unparse(node.args[0])
    return "values"
