"""`pycotmech export`: results as Parquet, CSV, JSON or safetensors."""

from __future__ import annotations

from typing import Annotated

import typer

from pycotmech.cli import options as o


def export(
    folder: Annotated[str, typer.Argument(help="A results folder of run, sweep, paper or attention, finished or not.")],
    to: Annotated[str, o.plain("The format: parquet, csv, json or safetensors.")],
    out: Annotated[
        str,
        o.plain("The file to write; a folder, if the results have several datasets and --name is not given.", metavar="FILE"),
    ],
    name: Annotated[str | None, o.plain("The dataset to write, such as patch_steps (paper).")] = None,
    variables: Annotated[
        str | None, o.plain("The variables to write, separated by commas, such as effect,noise_floor (all by default).")
    ] = None,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Write results to a file for other programs.

    Parquet, CSV and JSON hold a long table: a row for each cell, with a column for each axis, label and variable. safetensors
    holds the arrays as they are. Parquet needs pyarrow (pycotmech[export]).
    """
    from pycotmech.runs.results import open_results

    if not out.strip():
        raise ValueError("out: the name is empty; expected a file")
    chosen = None if variables is None else [part.strip() for part in variables.split(",") if part.strip()]
    written = open_results(folder).export(to, out, name, variables=chosen)
    if not quiet:
        o.say(f"written: {', '.join(map(str, written))}")
