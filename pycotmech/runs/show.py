"""The table and the figures of a result, as files beside its data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pycotmech._optional import warn_of_missing
from pycotmech.files.whole import holds_text, is_whole_png
from pycotmech.files.write import replacing, write_text

if TYPE_CHECKING:
    from pycotmech.cot.tools.result import Analysis


def show(result: Analysis, tables: Path, figures: Path, *, damaged_only: bool = False) -> None:
    """Writes the table of a result and all that it draws: <name>.csv into the folder `tables`; <name>.png, and
    <name>_<figure>.png for each further figure, into `figures`. damaged_only: only those that are missing or not what was
    written. Without matplotlib nothing is drawn, and a warning says so."""
    table, text = tables / f"{result.name}.csv", result.table().to_csv(index=False, lineterminator="\n")
    if not (damaged_only and holds_text(table, text)):
        write_text(table, text)
    if warn_of_missing("matplotlib", "no figures are drawn"):
        return
    drawn = {result.name: result.plot, **{f"{result.name}_{name}": draw for name, draw in result.figures().items()}}
    for name, draw in drawn.items():
        path = figures / f"{name}.png"
        if not (damaged_only and is_whole_png(path)):
            with replacing(path) as temporary:
                draw(path=temporary)
