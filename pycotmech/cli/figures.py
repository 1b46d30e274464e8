"""`pycotmech figures`: the figures of a results folder as files with captions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from pycotmech.cli import options as o
from pycotmech.cli.output import say_json


def figures(
    folder: Annotated[str, typer.Argument(help="A results folder of run, sweep, paper, trace or attention, finished or not.")],
    out: Annotated[
        str | None, o.plain("The folder that the figures are written to (figures in the folder by default).", metavar="FOLDER")
    ] = None,
    only: Annotated[
        str | None,
        o.written("Names of figures, or experiments of the paper such as E8, separated by commas (all by default)."),
    ] = None,
    formats: Annotated[
        str,
        o.written(
            "One or more of png, svg and pdf, separated by commas.", "--format", autocompletion=o.one_of("png", "svg", "pdf")
        ),
    ] = "png",
    dpi: Annotated[float, o.written("The pixels per inch of a PNG.")] = 150,
    listed: Annotated[
        bool, o.shown("List the figures that can be made, and those that cannot with the reason, and stop.", "--list")
    ] = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Write the figures of a results folder as files, and their captions as captions.md.

    A caption says what is shown, of which model, over how many examples, and what the bars are. The model is not loaded.
    """
    from pycotmech.runs.results import open_results

    opened = open_results(folder)
    if listed:
        found = {name: {"title": d.title, "source": d.source} for name, d in opened.drawings().items()}
        missing = opened.missing_drawings()
        if as_json:
            return say_json({"figures": found, "missing": missing})
        for name, about in found.items():
            o.say(f"{name:<32} {about['title']}{f' ({source})' if (source := about['source']) else ''}")
        _say_missing(missing)
        return None
    words = None if only is None else [part.strip() for part in only.split(",") if part.strip()]
    endings = [part.strip().lower().lstrip(".") for part in formats.split(",") if part.strip()]
    place = o.path(out, "out")
    place = opened.folder / "figures" if place is None else place
    made = opened.save_figures(place, only=words, formats=endings, dpi=dpi)
    if as_json:
        say_json({"files": made.files, "captions": made.captions, "failures": made.failures, "missing": made.missing})
    elif not quiet:
        o.say(
            f"{sum(map(len, made.files.values()))} files of {len(made.files)} figures are in {place}; captions: {made.captions}"
        )
        _say_missing(made.missing)
    for name, why in made.failures.items():
        o.say(f"pycotmech: not drawn: {name}: {why}", err=True)
    if made.failures:
        raise typer.Exit(1)
    return None


def _say_missing(missing: Mapping[str, str]) -> None:
    """Says which figures the folder has no results for."""
    for name, why in missing.items():
        o.say(f"not there: {name}: {why}")
