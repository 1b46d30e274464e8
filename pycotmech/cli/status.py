"""`pycotmech status`: how far a results folder is."""

from __future__ import annotations

from typing import Annotated

import typer

from pycotmech.cli import options as o
from pycotmech.cli.output import say_json


def status(
    folder: Annotated[str, typer.Argument(help="A results folder of run, sweep, paper, attention or trace.")],
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Show what is finished, pending, skipped and failed, how fast the work goes, and whether a process is writing now.

    Nothing in the folder is changed, and a process that writes to it is not disturbed.
    """
    from pycotmech.runs.status import status_of

    found = status_of(folder)
    if as_json:
        say_json(found.to_dict())
    else:
        o.say(found)
