"""HTML for notebooks: a heading in words, facts, a table, how to go on. No script, no style sheet; every text is escaped.

Colours are those of the page, with lines in half-transparent grey, so that it can be read on light and dark pages alike.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pycotmech.display.view import View, plain
from pycotmech.files.text import printable

if TYPE_CHECKING:
    import pandas as pd

_LONGEST_LINE = 400
"""Characters of a line of text that are shown."""
_MOST_LINES, _MOST_ROWS, _MOST_COLUMNS = 12, 10, 14
_BAR = 60
"""Width of the longest bar beside a value, in pixels."""
_POSITIVE, _NEGATIVE = "#4c8ac0", "#cf5f5f"  # as in the maps; legible on white and on black
_LINE = "1px solid rgba(128,128,128,.35)"
_CELL = "padding:.15em .8em .15em 0;border:0;background:none"


def escaped(text: Any, longest: int = _LONGEST_LINE) -> str:
    """Text as HTML: one printable line, cut to `longest` characters."""
    line = printable(text)
    return html.escape(line if len(line) <= longest else f"{line[: longest - 1]}…")


def card(title: str, *body: str, kind: str = "") -> str:
    """A part of a page. title: text; kind: the name of a class. body: HTML."""
    small = f' <span style="opacity:.65;font-weight:normal">{escaped(kind)}</span>' if kind else ""
    head = f'<div style="font-weight:600;margin-bottom:.2em">{escaped(title)}{small}</div>'
    return f'<div style="font-size:13px;line-height:1.5;max-width:64em;text-align:left">{head}{"".join(body)}</div>'


def lines(texts: Sequence[str]) -> str:
    """Lines of text."""
    more = [f"… and {len(texts) - _MOST_LINES} more"] if len(texts) > _MOST_LINES else []
    return "".join(f'<div style="opacity:.8">{escaped(text)}</div>' for text in [*texts[:_MOST_LINES], *more])


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table. columns: texts. rows: HTML. numbers: the columns that are aligned to the right."""

    def cell(tag: str, i: int, text: str, line: str) -> str:
        align = "right" if i in numbers else "left"
        weight = ";font-weight:600" if tag == "th" else ""
        return f'<{tag} style="{_CELL};border-bottom:{line};text-align:{align}{weight}">{text}</{tag}>'

    head = "".join(cell("th", i, escaped(name, 60), _LINE) for i, name in enumerate(columns))
    body = "".join(f"<tr>{''.join(cell('td', i, text, '0') for i, text in enumerate(row))}</tr>" for row in rows)
    head = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    style = "border-collapse:collapse;margin:.5em 0;font-size:inherit;color:inherit"
    return f'<table style="{style}">{head}<tbody>{body}</tbody></table>'


def facts(items: Sequence[tuple[str, Any]]) -> str:
    """Names and what they are, as a table; a mapping within is a table within."""
    rows = []
    for name, value in items:
        text = facts(list(value.items())) if isinstance(value, Mapping) else escaped(value)
        rows.append((f'<span style="opacity:.7">{escaped(name, 60)}</span>', text))
    return table(("", ""), rows)


def going_on(steps: Sequence[tuple[str, str]]) -> str:
    """What to ask next: code, and what it gives."""
    shown = [
        f'<div><code>{escaped(code)}</code> <span style="opacity:.7">{escaped(gives)}</span></div>' for code, gives in steps
    ]
    return f'<div style="margin-top:.3em;opacity:.9">{"".join(shown)}</div>' if shown else ""


METHODS = (".plot() · .to_plotly() · .to_dataframe() · .to_xarray()", "")
"""What every result offers."""


def html_of_view(view: View, kind: str) -> str:
    """A result: its strongest cells with their values beside the noise floor. kind: the name of its class."""
    found = view.strongest()
    largest = max((abs(value) for _, value in found), default=0.0)
    beside = [name for name, values in view.beside.items() if not _empty(values)]
    columns = ["", view.label, "", *beside]
    rows = []
    for index, value in found:
        # a figure space keeps the digits below one another where a sign is missing
        row = [escaped(view.place(index), 120), escaped(view.number(value)), _bar(value, largest)]
        row += [escaped(plain(view.beside[name][index]), 120) for name in beside]
        if view.floor is not None:
            row.append("below the noise floor" if abs(value) <= view.floor else "")
        rows.append(row)
    if view.floor is not None:
        columns.append(f"noise floor {view.floor:.2g}")
    numbers = [1, *(3 + i for i, name in enumerate(beside) if view.beside[name].dtype.kind in "fiu")]
    shown = table(columns, rows, numbers) if rows else lines(["no value differs from 0"])
    n = int(np.count_nonzero(np.isfinite(view.values)))
    sizes = ", ".join(f"{axis}: {size}" for axis, size in zip(view.axes, view.values.shape, strict=True))
    note = f"the {len(rows)} strongest of {n:,} values [{sizes}]" if rows else f"[{sizes}]"
    below = f'<div style="opacity:.65">{escaped(note)}</div>'
    return card(view.title, lines(view.facts), shown, below, going_on([*view.go_on, METHODS]), kind=kind)


def html_of_table(title: str, texts: Sequence[str], frame: pd.DataFrame, steps: Sequence[tuple[str, str]], kind: str) -> str:
    """An analysis: its findings and the first rows of its table. steps: as `going_on` takes them."""
    shown = frame.iloc[:_MOST_ROWS, :_MOST_COLUMNS]
    rows = [[escaped(plain(value), 60) for value in row] for row in shown.itertuples(index=False)]
    numbers = [i for i, dtype in enumerate(shown.dtypes) if getattr(dtype, "kind", "O") in "fiu"]
    n, m = frame.shape
    cut = [f"the first {_MOST_ROWS} of {n} rows"] if n > _MOST_ROWS else []
    cut += [f"{_MOST_COLUMNS} of {m} columns"] if m > _MOST_COLUMNS else []
    below = f'<div style="opacity:.65">{escaped(", ".join(cut))}</div>' if cut else ""
    found = table([str(name) for name in shown.columns], rows, numbers) if rows else ""
    return card(title, lines(texts), found, below, going_on(steps), kind=kind)


def _bar(value: float, largest: float) -> str:
    """The size of a value, blue above 0 and red below."""
    width = round(_BAR * abs(value) / largest) if largest and math.isfinite(value) else 0
    colour = _POSITIVE if value > 0 else _NEGATIVE
    return f'<span style="display:inline-block;height:.7em;width:{width}px;background:{colour}"></span>'


def _empty(values: np.ndarray) -> bool:
    """Whether there is no number."""
    return values.dtype.kind == "f" and not np.isfinite(values).any()
