"""What figures take from matplotlib, and the only import of it: where it is missing, the error says how to install it."""

from __future__ import annotations

from pycotmech._optional import optional_import

with optional_import():
    from matplotlib import colormaps, rc_context
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Arc, Patch, Rectangle
    from matplotlib.text import Text
    from matplotlib.ticker import FixedLocator

__all__ = ["Arc", "Figure", "FixedLocator", "Line2D", "ListedColormap", "Patch", "Rectangle", "Text", "colormaps", "rc_context"]
