"""`pycotmech doctor`: what works on this machine, how fast it is, and what to install."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from pycotmech.cli import options as o
from pycotmech.cli.output import say_json

if TYPE_CHECKING:
    from pycotmech.cli.checks import Check
    from pycotmech.cli.machine import Speed

_MARKS = {True: "ok", False: "FAULT", None: "-"}


def doctor(as_json: o.Json = False, quiet: o.Quiet = False, debug: o.Debug = False) -> None:
    """Check this installation in a few seconds: does everything work, how fast is it here, what could be installed?

    Runs a small sweep and compares it with hooked forward passes, writes and reads a results store, and measures the speed of
    matrix products, of the memory, and of a sweep. The exit code is 1 if something that should work does not.
    """
    from pycotmech.cli.checks import checks
    from pycotmech.cli.machine import measured

    found = checks()
    speed = measured()
    faults = [check for check in found if check.works is False]
    if as_json:
        say_json({"works": not faults, "checks": found, "speed": speed})
    elif not quiet:
        o.say(text(found, speed))
    if faults:
        if not as_json:
            for check in faults:
                o.say(f"pycotmech: {check.name}: {check.found}{f'. {check.remedy}' if check.remedy else ''}", err=True)
        raise typer.Exit(1)


def text(found: list[Check], speed: Speed) -> str:
    """The checks and speeds as lines of text."""
    lines = []
    for title in dict.fromkeys(check.group for check in found):
        lines += ["" if lines else None, title]
        rows = [check for check in found if check.group == title]
        width = max(len(check.name) for check in rows)
        for check in rows:
            lines.append(f"  {_MARKS[check.works]:<5}  {check.name:<{width}}  {check.found}")
            if check.remedy:
                lines.append(f"  {'':<5}  {'':<{width}}  -> {check.remedy}")
    lines += ["", "Speed of this machine", *(f"  {line}" for line in str(speed).splitlines())]
    faults = sum(check.works is False for check in found)
    lines += ["", f"{faults} fault{'s' if faults > 1 else ''}" if faults else "Everything that should work works."]
    return "\n".join(line for line in lines if line is not None)
