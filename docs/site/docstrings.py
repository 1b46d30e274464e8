"""Extension of Griffe, which reads the docstrings for the reference: it turns the house's style into Markdown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))

import house_style


class HouseStyle(griffe.Extension):
    """Rewrites the docstring of every object."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            names = [p.name for p in obj.parameters if p.name not in ("self", "cls")] if obj.is_function else ()
            obj.docstring.value = house_style.markdown(obj.docstring.value, names)
