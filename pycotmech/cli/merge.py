"""`pycotmech merge`: the folders of parts as one."""

from __future__ import annotations

from typing import Annotated

import typer

from pycotmech.cli import options as o
from pycotmech.cli.output import first_page, plain, report_of, say_json


def merge(
    out: Annotated[str, typer.Argument(help="The new folder. If it contains an interrupted merge, that merge is continued.")],
    parts: Annotated[list[str], typer.Argument(help="Folders of runs with --points, of the same settings.")],
    top: o.Top = 5,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Combine the folders of parts of a run (--points), and write the report.

    The parts must agree in model, weights, settings and versions, and together contain every example. Results in several
    parts must agree within the noise floor. The command of the full run continues OUT.
    """
    from pycotmech.cli.bars import Bars, stopped
    from pycotmech.cli.report import page_at_end, shown_report
    from pycotmech.runs.merge import merge as merged
    from pycotmech.runs.views_of_run import keep_views_of_parts

    if top < 1:
        raise ValueError(f"top: got {top}; expected 1 or more")
    bars = Bars(quiet)
    try:
        outcome = merged(out, parts, progress=bars)
    except KeyboardInterrupt:
        stopped(bars, out)
        raise
    if outcome.finished:
        keep_views_of_parts(outcome.folder, parts)
        shown_report(outcome.folder, top, quiet or as_json)
        page_at_end(outcome.folder)
    if as_json:
        say_json({**plain(outcome), "report": report_of(outcome.folder) if outcome.finished else None})
    elif not quiet:
        o.say(
            f"\nexamples {outcome.points[0]} to {outcome.points[1] - 1}: {outcome.finished} sweeps finished, {outcome.pending} "
            f"pending, {outcome.repeated} in several parts; results.zarr is in {out}; open {first_page(outcome.folder)}"
        )
