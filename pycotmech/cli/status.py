"""`pycotmech status`: how far a results folder is."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from pycotmech.cli import options as o


def status(
    folder: Annotated[str, typer.Argument(help="A results folder of run, sweep, paper, attention or trace.")],
    as_json: Annotated[bool, o.plain("Print one JSON object instead of lines of text.", "--json")] = False,
    debug: o.Debug = False,
) -> None:
    """Show what is finished, pending, skipped and failed, how fast it goes, and whether a process writes now.

    Nothing in the folder is changed, and a process that writes to it is not disturbed.
    """
    from pycotmech.runs.status import status_of

    found = status_of(folder)
    o.say(json.dumps(found.to_dict(), ensure_ascii=True) if as_json else found)
