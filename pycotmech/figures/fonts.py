"""Fonts for texts in any script: Matplotlib's own has no Chinese, Japanese or Korean characters and no emoji."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache

from pycotmech._warnings import warn
from pycotmech._words import plural
from pycotmech.figures.library import font_manager, rcParams

_WIDER = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei",
    "Droid Sans Fallback", "Arial Unicode MS", "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "SimHei", "Malgun Gothic",
    "Noto Emoji", "Segoe UI Emoji", "Symbola",
)  # fmt: skip
"""Those of Linux, macOS and Windows, in the order in which a missing character is looked for."""
_MISSING = re.compile(r"Glyph (\d+) .*missing from")


@cache
def wider() -> tuple[str, ...]:
    """Those of the wider fonts that are installed."""
    there = set(font_manager.get_font_names())
    return tuple(name for name in _WIDER if name in there)


def families(own: Iterable[str] | None = None) -> list[str]:
    """Fonts of a text (None: Matplotlib's present one), and the wider ones: a character is taken from the first that has it."""
    return list(dict.fromkeys([*(rcParams["font.family"] if own is None else own), *wider()]))


@contextmanager
def one_warning() -> Iterator[None]:
    """Characters that no installed font has are named in one warning, and not in one for each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    missing: dict[str, None] = {}
    for w in caught:
        if found := _MISSING.match(str(w.message)):
            missing[chr(int(found[1]))] = None
        else:
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
    if missing:
        shown = "".join(list(missing)[:8]) + ("..." if len(missing) > 8 else "")
        warn(
            f"no installed font has {plural(len(missing), 'character')} of this figure ({shown}), drawn as boxes; a "
            "font such as Noto Sans CJK has them"
        )
