"""The shell: puts the commands together and turns errors into one line and an exit code; commands import PyTorch."""

from __future__ import annotations

import inspect
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from pycotmech import __version__
from pycotmech._optional import explained
from pycotmech.cli.attention import attention
from pycotmech.cli.demo import demo
from pycotmech.cli.doctor import doctor
from pycotmech.cli.export import export
from pycotmech.cli.figures import figures
from pycotmech.cli.info import info
from pycotmech.cli.merge import merge
from pycotmech.cli.paper import paper
from pycotmech.cli.report import report
from pycotmech.cli.run import run
from pycotmech.cli.status import status
from pycotmech.cli.sweep import sweep
from pycotmech.cli.trace import trace
from pycotmech.files.text import printable

GROUPS: dict[str, tuple[Callable[..., None], ...]] = {
    "Start here": (demo, doctor),
    "Jobs": (run, paper, trace, sweep, attention),
    "Results": (report, figures, status, export, merge),
    "This installation": (info,),
}
"""Commands by the title under which the help lists them."""

EXAMPLES = {
    "demo": ("pycotmech demo", "pycotmech demo --fetch"),
    "doctor": ("pycotmech doctor", "pycotmech doctor --json > doctor.json"),
    "run": (
        "pycotmech run --model smollm2-135m --out results --examples 10",
        "pycotmech run --model smollm2-135m --pairs mine.jsonl --out my-results --metric logit_diff",
        "pycotmech run --model smollm2-135m --out results --minutes 30 --workers 2",
    ),
    "paper": (
        "pycotmech paper --model smollm2-135m --out paper-results --plan",
        "pycotmech paper --model smollm2-135m --out paper-results --minutes 60",
    ),
    "trace": ("pycotmech trace --model smollm2-135m --traces traces.jsonl --out trace-results --plan",),
    "sweep": (
        'pycotmech sweep --model tiny-cot --clean "Rex is a lempus . Rex is a" --corrupted "Rex is a tumpus . Rex is a"',
        "pycotmech sweep --model smollm2-135m --pairs mine.jsonl --screen 40 --json",
    ),
    "attention": (
        "pycotmech attention --model smollm2-135m --text prompt.txt --out looks",
        "pycotmech attention --model smollm2-135m --text prompt.txt --out looks --segments question=12:40",
    ),
    "report": ("pycotmech report results", "pycotmech report results --serve", "pycotmech report results --heads"),
    "figures": (
        "pycotmech figures paper-results --out figures --format pdf,svg",
        "pycotmech figures paper-results --only E8 --list",
    ),
    "status": ("pycotmech status results --json",),
    "export": (
        "pycotmech export results --to csv --out heads.csv --variables effect,noise_floor",
        "pycotmech export paper-results --to parquet --out patch_steps.parquet --name patch_steps",
    ),
    "merge": ("pycotmech merge whole part-1 part-2",),
    "info": ("pycotmech info",),
}
"""For each command, lines that the end of its help shows."""

_BAD_INPUT = "2 bad input, a missing package, or a full disk"
_CONTINUED = "130 stopped by Ctrl-C or SIGTERM; the same command continues"
_USUAL = ("0 done", _BAD_INPUT, "130 stopped by Ctrl-C or SIGTERM")
EXIT_CODES = {
    "demo": ("0 done", "1 a sweep failed", _BAD_INPUT, _CONTINUED),
    "doctor": ("0 everything that should work works", "1 something does not work", *_USUAL[1:]),
    "run": ("0 done", "1 a sweep failed", _BAD_INPUT, _CONTINUED),
    "paper": ("0 done", "1 an analysis failed", _BAD_INPUT, _CONTINUED),
    "trace": ("0 done", "1 an analysis failed", _BAD_INPUT, _CONTINUED),
    "sweep": ("0 done", "1 a sweep failed (with --out)", _BAD_INPUT, f"{_CONTINUED} (with --out)"),
    "report": ("0 done, also if Ctrl-C ended --serve", *_USUAL[1:]),
    "merge": ("0 done", _BAD_INPUT, _CONTINUED),
    "figures": ("0 done", "1 a figure failed", *_USUAL[1:]),
}
"""The exit codes of commands that have others than the usual ones; the help shows them. 1 is also an error inside pycotmech."""


def _paragraphs(command: Callable[..., None]) -> str:
    """The docstring of a command, a line for each paragraph: the help breaks lines where the terminal ends."""
    return "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(command.__doc__ or "").split("\n\n"))


app = typer.Typer(
    name="pycotmech",
    help="Exact, fast analysis of how language models reason step by step.",
    epilog="Exit codes: 0 done; 1 part of the work failed, and is named; 2 bad input; 130 stopped.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for title, commands in GROUPS.items():
    for command in commands:
        codes = f"Exit codes: {'; '.join(EXIT_CODES.get(command.__name__, _USUAL))}."
        shown = "\n\n".join(["Examples:", *EXAMPLES[command.__name__], codes])
        app.command(rich_help_panel=title, epilog=shown, help=_paragraphs(command))(command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pycotmech {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None: ...


def main() -> None:
    """Runs the console script and exits with one of `EXIT_CODES`. An error of the user's is one line on standard error."""
    try:
        _main()
    except (KeyboardInterrupt, typer.Abort):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C while Python ends would change the exit code
        sys.exit(130)


def _main() -> None:
    for stream in (sys.stdout, sys.stderr):  # what the encoding of a terminal or pipe lacks is shown as an escape
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    before, shown = signal.signal(signal.SIGTERM, _stop), warnings.formatwarning
    if "--debug" not in sys.argv:
        warnings.formatwarning = _warning  # type: ignore[assignment]
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        sys.exit(app(prog_name="pycotmech", standalone_mode=False) or 0)
    except typer.Abort:
        raise
    except Exception as error:
        if hasattr(error, "format_message"):  # the command line itself is wrong
            _fail_usage(error)
        if "--debug" in sys.argv:
            raise
        expected = isinstance(error, (ValueError, TypeError, OSError, NotImplementedError, ImportError))
        text = explained(error) if isinstance(error, ModuleNotFoundError) else None
        _fail(
            text or str(error) or type(error).__name__, 2 if expected else 1, "" if expected else f" ({type(error).__name__})"
        )
    finally:
        signal.signal(signal.SIGTERM, before)
        warnings.formatwarning = shown


def _warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """A warning as the shell shows it: one line without the place in the code, which --debug names."""
    return f"pycotmech: warning: {printable(' '.join(str(message).split()))}\n"


def _fail_usage(error: Any) -> NoReturn:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        sys.exit(error.exit_code)
    context = getattr(error, "ctx", None)
    name = context.command_path if context is not None else "pycotmech"
    _fail(error.format_message(), error.exit_code, f" ({name} --help shows what there is)")


def _fail(text: str, code: int, hint: str = "") -> NoReturn:
    print(f"pycotmech: error: {printable(' '.join(text.split()))}{hint}", file=sys.stderr)
    sys.exit(code)


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt
