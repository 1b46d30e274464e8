"""`pycotmech report`: one HTML page of any results folder, and the tables and figures of a run."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pycotmech.cli import options as o
from pycotmech.cli.output import say_json

if TYPE_CHECKING:
    from pycotmech.runs.report.folder import Report
    from pycotmech.runs.results_base import Results


def report(
    folder: Annotated[str, typer.Argument(help="A results folder of run, sweep, paper, trace or attention, finished or not.")],
    out: Annotated[str | None, o.plain("The file of the page (report.html in the folder by default).", metavar="FILE")] = None,
    serve: Annotated[bool, o.plain("Open the page in a browser, served by this machine until Ctrl-C.", "--serve")] = False,
    heads: Annotated[
        bool,
        o.plain(
            "Load the model and store what the strongest heads attend to and write, for folders without heads.json.", "--heads"
        ),
    ] = False,
    device: Annotated[
        str | None, o.plain("With --heads: the model's device (that of the results by default).", metavar="DEVICE")
    ] = None,
    accept_version: Annotated[
        bool,
        o.plain("With --heads: use results of the paper that another version of pycotmech computed.", "--accept-version"),
    ] = False,
    top: o.Top = 5,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Write the report of a results folder as one HTML file that needs no network.

    For a run, its tables, figures and summary are written again too. The model is loaded with --heads only.
    """
    from pycotmech.runs.results import SweepResults, open_results

    page, silent = o.new_file(out, "out"), quiet or as_json
    opened = open_results(folder)
    if heads:
        store_heads(opened, silent, device=device, accept_version=accept_version)
    elif device is not None or accept_version:
        raise ValueError(f"{'device' if device is not None else 'accept_version'}: has a meaning with --heads only")
    files: list[Path] = []
    if isinstance(opened, SweepResults):
        files = shown_report(folder, top, silent).files
        if not silent:
            o.say(f"\nwritten: {', '.join(path.name for path in files)}")
    written = write_page(folder, silent, page)
    if as_json:
        say_json({"folder": opened.folder, "kind": opened.kind, "page": written, "files": [path.name for path in files]})
    if serve:
        from pycotmech.report.serve import serve as serve_page

        serve_page(written, say=lambda address: o.say(f"{address}  (Ctrl-C ends the server)"))


def store_heads(opened: Results, quiet: bool, *, device: str | None, accept_version: bool) -> None:
    """Stores what the strongest heads of a folder attend to and write, and says what came of it."""
    from pycotmech.cli.bars import Bars
    from pycotmech.runs.head_views import FILE
    from pycotmech.runs.results import PaperResults, SweepResults

    if isinstance(opened, SweepResults):
        from pycotmech.runs.views_of_run import make_views_of_run

        there = make_views_of_run(opened.folder, device=device, progress=Bars(quiet))
    elif isinstance(opened, PaperResults):
        from pycotmech.paper.views import make_views

        there = make_views(opened.folder, device=device, accept_version=accept_version, progress=Bars(quiet))
    else:
        raise ValueError(f"heads: {opened.folder} is a folder of {opened.kind}; expected one of run, sweep or paper")
    if not quiet:
        o.say(
            f"{FILE}: what the strongest heads attend to and write" if there
            else f"{FILE} is not written: no finished step has a head beyond noise floor and control"
        )  # fmt: skip


def shown_report(folder: str | PathLike, top: int, quiet: bool) -> Report:
    """Builds the tables and figures of a run's folder and prints its table and sentences."""
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


def write_page(folder: str | PathLike, quiet: bool, path: Path | None = None) -> Path:
    """Writes the HTML page of a folder and says where it is."""
    from pycotmech.report import write_report

    written = write_report(folder, path)
    if not quiet:
        o.say(f"\nreport: {written}")
    return written


def page_at_end(folder: str | PathLike) -> None:
    """`write_page` at the end of a command whose results are complete without it: what keeps it from being written is said."""
    try:
        write_page(folder, quiet=True)
    except (OSError, ValueError) as error:
        o.say(f"pycotmech: the report could not be written: {error}", err=True)
