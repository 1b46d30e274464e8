"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pycotmech.files.text import printable

TASK = "The task (instead of --pairs)"
PATCH = "What is patched and measured"
RUN = "How it runs"

Model = Annotated[
    str,
    typer.Option(help="The model: smollm2-135m, smollm2-135m-cot, tiny-cot; a folder, a GGUF file, or a Hugging Face name."),
]
# A path as text: of an empty text pathlib makes the current folder.
Out = Annotated[str, typer.Option(metavar="FOLDER", help="The results folder. An interrupted run in it is continued.")]
Pairs = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help='Your own prompts: a JSONL file of {"clean", "corrupted", "answer", "wrong", "name"}, as text or token ids.',
    ),
]
Examples = Annotated[
    int | None, typer.Option(help="The number of problems (10 by default; for paper 8).", rich_help_panel=TASK)
]
Shots = Annotated[
    int | None,
    typer.Option(help="The number of demonstrations before the problem (8 by default; for tiny-cot 4).", rich_help_panel=TASK),
]
Style = Annotated[str | None, typer.Option(help="The wording: every (default) or paper.", rich_help_panel=TASK)]
Order = Annotated[
    str | None,
    typer.Option(help="The order of the premises: forward, backward, membership_first or shuffled.", rich_help_panel=TASK),
]
Ontology = Annotated[str | None, typer.Option(help="The ontology: fictional (default) or false.", rich_help_panel=TASK)]
Direction = Annotated[
    str,
    typer.Option(help="denoise patches clean heads into the corrupted run; noise does the reverse.", rich_help_panel=PATCH),
]
Metric = Annotated[
    str, typer.Option(help="The metric: kl, logit_diff or prob, read at the last position.", rich_help_panel=PATCH)
]
Positions = Annotated[
    str,
    typer.Option(
        help="Where heads are patched: all, last, or numbers such as 12,13,-1 (negative from the end).", rich_help_panel=PATCH
    ),
]
Dtype = Annotated[
    str, typer.Option(help="The model's dtype: auto, float32, bfloat16, float16 or float64.", rich_help_panel=RUN)
]
Device = Annotated[str, typer.Option(help="The device: cpu, cuda, cuda:1, ...", rich_help_panel=RUN)]
Seed = Annotated[int, typer.Option(help="Seed for examples and the noise floor.", rich_help_panel=RUN)]
Memory = Annotated[
    float | None,
    typer.Option(
        "--memory-gb", help="The memory that a sweep may use, in GB (half of what is free by default).", rich_help_panel=RUN
    ),
]
Threads = Annotated[
    int | None, typer.Option(help="The number of PyTorch's threads (one per core by default).", rich_help_panel=RUN)
]
Top = Annotated[int, typer.Option(help="The number of heads shown per step.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
# Looked at by the shell's main(), which turns every other error into one line.
Debug = Annotated[bool, typer.Option("--debug", help="Show the full traceback of an error.")]


def say(text: object = "", *, err: bool = False) -> None:
    """Prints lines of text. Control characters that came with names, notes or tokens are shown as escapes."""
    typer.echo(printable(text, lines=True), err=err)


def numbers(text: str | None, name: str) -> tuple[int, ...] | None:
    """Reads 0,5,-1. Raises ValueError naming the option."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"{name}: got {text!r}; expected numbers separated by commas") from None


def positions(text: str) -> tuple[int, ...] | None:
    """Reads all (None), last, or numbers."""
    if text in ("all", "last"):
        return None if text == "all" else (-1,)
    try:
        return numbers(text, "positions")
    except ValueError:
        raise ValueError(f"positions: got {text!r}; expected all, last, or numbers such as 12,13,-1") from None


def path(text: str | None, name: str) -> Path | None:
    """The path of a file to read. Raises ValueError naming the option if the text is empty."""
    if text is None:
        return None
    if not text.strip():
        raise ValueError(f"{name}: the name is empty; expected a file")
    return Path(text).expanduser()


def new_file(text: str | None, name: str) -> Path | None:
    """The path of a file to write; its folder is made. Raises ValueError or PermissionError naming the option."""
    found = path(text, name)
    if found is None:
        return None
    from pycotmech.runs.folder import check_writable, made_folder

    check_writable(made_folder(found.absolute().parent, name), name)
    if found.is_dir():
        raise ValueError(f"{name}: {found} is a folder; expected a file")
    return found
