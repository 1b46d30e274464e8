"""What figures take from matplotlib, and the only import of it: where it is missing, the error says how to install it."""

from __future__ import annotations

import io

from pycotmech._optional import optional_import

with optional_import():
    from matplotlib import colormaps, font_manager, rc_context, rcParams
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure as PlainFigure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Arc, Patch, Rectangle
    from matplotlib.text import Text
    from matplotlib.ticker import FixedLocator


class Figure(PlainFigure):
    """A matplotlib figure that notebooks show whether or not pyplot is loaded."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with rc_context({"text.parse_math": False}):  # tokens may hold dollar signs
            self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


__all__ = [
    "Arc",
    "Figure",
    "FixedLocator",
    "Line2D",
    "ListedColormap",
    "Patch",
    "Rectangle",
    "Text",
    "colormaps",
    "font_manager",
    "rcParams",
    "rc_context",
]
