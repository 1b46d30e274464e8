"""`pycotmech report`: tables, figures and summary of a results folder."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Annotated

import typer

from pycotmech.cli import options as o

if TYPE_CHECKING:
    from pycotmech.runs.report.folder import Report


def report(
    folder: Annotated[str, typer.Argument(help="A results folder of `pycotmech run`, finished or not.")],
    top: o.Top = 5,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Rebuild the tables, figures and summary of a results folder from what is finished in it."""
    made = shown_report(folder, top, quiet)
    if not quiet:
        o.say(f"\nwritten: {', '.join(path.name for path in made.files)}")


def shown_report(folder: str | PathLike, top: int, quiet: bool) -> Report:
    """Builds the report of a folder and prints its table and sentences."""
    from pycotmech.runs.report import build_report

    made = build_report(folder, top=top)
    if not quiet:
        o.say(f"\n{made.headline}.")
        for note in made.notes:
            o.say(f"Note: {note}.")
        o.say(f"\n{made.table}\n\n{made.legend}\n")
        for sentence in made.sentences:
            o.say(f"* {sentence}")
    return made
