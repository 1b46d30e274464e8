"""Warnings that point at the line that called the package, however deep inside it they arise."""

from __future__ import annotations

import os
import sys
import warnings

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_IMPORT = "<frozen importlib"  # `warnings.warn` does not count the frames of an import


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issues a warning at the first caller outside the package, or at the outermost frame if there is none."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_PACKAGE, _IMPORT)):
        frame = frame.f_back
        level += not frame.f_code.co_filename.startswith(_IMPORT)
    warnings.warn(message, category, stacklevel=level)
