"""Times in words."""

from __future__ import annotations


def shown_time(seconds: float) -> str:
    """1.4 s, 35 s, 4.2 min, 3.1 h."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
