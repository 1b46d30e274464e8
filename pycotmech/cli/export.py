"""`pycotmech export`: results as tables, arrays, or files of other tools."""

from __future__ import annotations

from typing import Annotated

import typer

from pycotmech.cli import options as o
from pycotmech.cli.output import say_json

_FORMATS = ("parquet", "csv", "json", "safetensors", "mib", "circuitsvis")


def export(
    folder: Annotated[str, typer.Argument(help="A results folder of run, sweep, paper, attention or trace, finished or not.")],
    to: Annotated[str, o.plain(f"The format: {', '.join(_FORMATS)}.", autocompletion=o.one_of(*_FORMATS))],
    out: Annotated[
        str,
        o.plain(
            "The file to write; a folder for mib, and if the results have several datasets and --name is not given.",
            metavar="FILE",
        ),
    ],
    name: Annotated[str | None, o.written("The dataset to write, such as patch_steps (paper).")] = None,
    variables: Annotated[
        str | None, o.written("The variables to write, separated by commas, such as effect,noise_floor (all by default).")
    ] = None,
    step: Annotated[int | None, o.written("The step whose heads are written, if there are several (mib).")] = None,
    task: Annotated[str | None, o.written("The task's name for MIB, such as ioi (step-N by default).")] = None,
    model_name: Annotated[
        str | None, o.written("The model's name for MIB, such as gpt2 (that in the results by default).", "--model-name")
    ] = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Write results to a file for other programs.

    Parquet, CSV and JSON hold a long table: a row for each cell, with a column for each axis, label and variable. safetensors
    holds the arrays as they are. Parquet needs pyarrow (the extra tables). mib is a folder with importances.json, the effects
    of heads at one step (run, sweep, paper); circuitsvis is a page of head values (docs/formats.md). For exports that need the
    model, the error names the Python function to call.
    """
    from pycotmech.runs.results import open_results

    if not out.strip():
        raise ValueError("out: the name is empty; expected a file")
    chosen = None if variables is None else [part.strip() for part in variables.split(",") if part.strip()]
    written = open_results(folder).export(to, out, name, variables=chosen, step=step, task=task, model=model_name)
    if as_json:
        say_json({"format": to, "files": written})
    elif not quiet:
        o.say(f"written: {', '.join(map(str, written))}")
