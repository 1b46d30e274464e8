"""Figures with a title above and small print below, their axes, and how they are saved."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from pycotmech.figures import fonts
from pycotmech.figures.library import Figure, Text, rc_context

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as PlainFigure

PALETTE = ("#d55e00", "#0072b2", "#009e73", "#bbbbbb", "#dddddd", "#cc79a7", "#e69f00", "#56b4e9")
"""Few-shot red, question blue, generated green, as in the paper's maps, in the tones of Okabe and Ito (2008), which people who
see red and green alike tell apart; greys for what is none of them."""
_DPI = 150


def framed(
    rows: int, columns: int, title: str, lines: Sequence[str], *, width: float = 4.0, height: float = 3.0, **kwargs: Any
) -> tuple[Figure, NDArray]:
    """Returns a figure with its title and small print, and its axes [rows, columns], each of this size in inches."""
    size = (max(5.5, columns * width + 0.6), rows * height + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **kwargs)
    return finished(figure, title, lines), axes


def finished(figure: Figure, title: str, lines: Sequence[str], *, path: str | PathLike | None = None) -> Figure:
    """Writes the title above the figure, and below it in small print what it was made from; saves it if a path is given.

    Both are wrapped to the figure's width; the figure's label keeps them as they are (`caption`).
    """
    figure.set_label("\n".join([" ".join(title.split("\n")), *(" ".join(line.split()) for line in lines)]))
    width = figure.get_figwidth()
    big = [part for line in title.splitlines() for part in _wrapped(line, int(width * 8.6))]
    figure.suptitle("\n".join(big), fontsize=11, fontweight="bold")
    fine = [part for line in lines for part in _wrapped(line, int(width * 14))]
    figure.supxlabel("\n".join(fine), fontsize=7.5, color="0.35", linespacing=1.3)
    return saved(figure, path)


def _wrapped(text: str, columns: int) -> list[str]:
    return textwrap.wrap(text, columns) or [""]


def caption(figure: PlainFigure) -> tuple[str, list[str]]:
    """The title and the lines of small print of a figure that `finished` has finished; empty for another one."""
    title, *lines = str(figure.get_label()).split("\n")
    return title, [line for line in lines if line]


def saved(figure: Figure, path: str | PathLike | None) -> Figure:
    """Returns the figure, written to `path` if one is given. Its texts hold tokens: a dollar sign begins no formula."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # type: ignore[attr-defined]
        text.set_fontfamily(fonts.families(text.get_fontfamily()))  # type: ignore[attr-defined]
    if path is not None:
        save_as(figure, path)
    return figure


def save_as(figure: PlainFigure, path: str | PathLike, *, dpi: float = _DPI) -> None:
    """Writes a figure in the format of the file's ending. Texts of an SVG or PDF stay texts, and a PDF carries its fonts; the
    same figure gives the same bytes."""
    made = {".png": {"Software": "pycotmech"}, ".svg": {"Creator": "pycotmech", "Date": None}}
    made[".pdf"] = {"Creator": "pycotmech", "CreationDate": None}
    how: dict[Any, Any] = {"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "pycotmech", "pdf.fonttype": 42}
    how["font.family"] = fonts.families()
    with rc_context(how), fonts.one_warning():  # for what is made while it is drawn
        figure.savefig(path, dpi=dpi, metadata=made.get(Path(path).suffix.lower()))


def small(axis: Axes, *, title: str = "", across: str = "", up: str = "") -> None:
    """Small labels, ticks and title, without the frame's upper and right sides."""
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(across, fontsize=8)
    axis.set_ylabel(up, fontsize=8)
    axis.tick_params(labelsize=7, length=2)
    axis.spines[["top", "right"]].set_visible(False)
