"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from pycotmech.files.text import printable


def _panel(title: str | None) -> Callable[..., Any]:
    """A maker of options under a title of the help."""

    def option(text: str, *names: str, **more: Any) -> Any:
        return typer.Option(*names, help=text, rich_help_panel=title, **more)

    return option


plain, task, patch, analysed, written, how, shown = map(
    _panel,
    (
        None, "The task (instead of --pairs)", "What is patched and measured", "What is analysed", "What is written",
        "How it runs", "What is shown",
    ),
)  # fmt: skip


def one_of(*words: str) -> Callable[[str], list[str]]:
    """What the shell's completion offers for an option."""

    def offered(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return offered


MODELS = ("smollm2-135m", "smollm2-135m-cot", "gemma3-270m", "tiny-cot")

Model = Annotated[
    str,
    plain(
        "The model: smollm2-135m, smollm2-135m-cot, gemma3-270m, tiny-cot; a folder, a GGUF file, or a Hugging Face name.",
        autocompletion=one_of(*MODELS),
    ),
]
# A path is a text here: of an empty text pathlib makes the current folder.
Out = Annotated[str, plain("The results folder. If it contains an interrupted run, that run is continued.", metavar="FOLDER")]
_PAIRS = (
    "Your own prompts: a JSONL, CSV or Parquet file, or a datasets folder, with clean, corrupted, answer, wrong and name "
    "(docs/formats.md)."
)
Pairs = Annotated[str | None, plain(_PAIRS, metavar="FILE")]
Examples = Annotated[int | None, task("The number of problems (10 by default; for paper 8).")]
Shots = Annotated[int | None, task("The number of demonstrations before the problem (8 by default; for tiny-cot 4).")]
Style = Annotated[
    str | None,
    task("The wording: every (default), paper, each or all.", autocompletion=one_of("every", "paper", "each", "all")),
]
Template = Annotated[
    str | None,
    task("Put the prompts into the tokenizer's chat template: chat (none by default).", autocompletion=one_of("chat")),
]
Think = Annotated[bool, task("With --template chat: put the solution into a <think> block.")]
Order = Annotated[
    str | None,
    task(
        "The order of the premises: forward, backward, membership_first or shuffled.",
        autocompletion=one_of("forward", "backward", "membership_first", "shuffled"),
    ),
]
Ontology = Annotated[
    str | None, task("The ontology: fictional (default) or false.", autocompletion=one_of("fictional", "false"))
]
Direction = Annotated[
    str,
    patch(
        "Patch clean heads into the corrupted run (denoise), or corrupted heads into the clean run (noise).",
        autocompletion=one_of("denoise", "noise"),
    ),
]
Metric = Annotated[
    str,
    patch("The metric: kl, logit_diff or prob, read at the last position.", autocompletion=one_of("kl", "logit_diff", "prob")),
]
Positions = Annotated[
    str,
    patch(
        "The positions at which heads are patched: all, last, or numbers such as 12,13,-1 (negative from the end).",
        autocompletion=one_of("all", "last"),
    ),
]
Controls = Annotated[
    bool,
    patch("Measure the random control of 6 % of the heads and the sham position, which take about a tenth of the time."),
]
Dtype = Annotated[
    str,
    how(
        "The model's dtype: auto, float32, bfloat16, float16 or float64.",
        autocompletion=one_of("auto", "float32", "bfloat16", "float16", "float64"),
    ),
]
Device = Annotated[str, how("The device: cpu, cuda, cuda:1, ...", autocompletion=one_of("cpu", "cuda"))]
Seed = Annotated[int, how("Seed for examples and the noise floor.")]
Memory = Annotated[float | None, how("The memory a sweep may use, in GB (half of what is free by default).", "--memory-gb")]
Threads = Annotated[int | None, how("The number of PyTorch's threads (one per core by default).")]
Verify = Annotated[
    bool, how("Read all weights again to verify them, even if the sizes and times of their files have not changed.", "--verify")
]
AcceptVersion = Annotated[
    bool,
    how("Continue results that were started with another version of pycotmech, PyTorch or transformers.", "--accept-version"),
]
Engine = Annotated[
    str | None,
    how(
        "Where the work runs: serial (this process), local (processes on this machine) or ray. With --workers, local.",
        autocompletion=one_of("serial", "local", "ray"),
    ),
]
Workers = Annotated[
    int | None,
    how(
        "The number of workers, each with a replica of the model (by default the number of cores divided by --threads).",
        metavar="N",
    ),
]
RayAddress = Annotated[str | None, how("The address of a Ray cluster, or auto; by default Ray is started on this machine.")]
Points = Annotated[
    str | None,
    how(
        "Run only these examples, or pairs of the file, counted from 0. pycotmech merge combines the folders of the parts.",
        metavar="START:STOP",
    ),
]
DryRun = Annotated[
    bool, how("Check everything and print what the run would do and need, without writing anything.", "--dry-run")
]
Estimate = Annotated[bool, how("Like --dry-run, as JSON.", "--estimate")]
PlanFor = Annotated[
    str | None,
    how(
        "With --dry-run, --estimate or --plan: predict times on a GPU from its data sheet (a100, h100, h200, b200).",
        metavar="DEVICE",
    ),
]
Minutes = Annotated[
    float | None,
    task("A time limit instead of --examples: use the largest number of examples whose predicted time fits."),
]
Top = Annotated[int, shown("The number of heads shown per step.")]
Json = Annotated[
    bool, shown("Print one JSON object instead of text. Progress and errors still go to standard error.", "--json")
]
Quiet = Annotated[bool, shown("Print only errors, and with --json the object.", "--quiet", "-q")]
# Looked at by the shell's main(), which turns every other error into one line.
Debug = Annotated[bool, shown("Show the full traceback of an error.", "--debug")]


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


def points(text: str | None) -> Any:
    """Reads START:STOP, of which one may be missing. Raises ValueError naming the option."""
    if text is None:
        return None
    from pycotmech.runs.settings import Points as PointsOf

    start, colon, stop = text.partition(":")
    try:
        if not colon:
            raise ValueError
        return PointsOf(int(start or 0), int(stop) if stop.strip() else None)
    except ValueError:
        raise ValueError(f"points: got {text!r}; expected START:STOP, such as 0:500") from None


def path(text: str | None, name: str) -> Path | None:
    """The path of a file to read. Raises ValueError naming the option if the text is empty."""
    if text is None:
        return None
    if not text.strip():
        raise ValueError(f"{name}: the name is empty; expected a file")
    return Path(text).expanduser()


def check_plan_for(name: str | None, alone: bool, options: str = "--dry-run or --estimate") -> None:
    """Refuses a GPU to predict for where something is run, and one that is not known. alone: whether one of `options`, which
    run nothing, is given."""
    if name is None:
        return
    from pycotmech.cost import device_named

    if not alone:
        raise ValueError(f"plan_for: got {name!r} for a run here; expected it with {options}")
    device_named(name, "plan_for")


def new_file(text: str | None, name: str) -> Path | None:
    """The path of a file to write; its folder is made. Raises ValueError or PermissionError naming the option."""
    found = path(text, name)
    if found is None:
        return None
    from pycotmech.runs.folder import check_writable, made_folder

    check_writable(made_folder(found.absolute().parent, name), name)
    try:
        if found.is_dir():
            raise ValueError(f"{name}: {found} is a folder; expected a file")
    except OSError as error:  # a name that is too long
        raise ValueError(f"{name}: {found.name[:60]}... cannot be written ({error.strerror})") from error
    return found
