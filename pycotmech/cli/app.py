"""The shell: puts the commands together and turns errors into one line and an exit code; commands import PyTorch."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated, Any, NoReturn

import typer

from pycotmech import __version__
from pycotmech.cli.attention import attention
from pycotmech.cli.export import export
from pycotmech.cli.info import info
from pycotmech.cli.merge import merge
from pycotmech.cli.paper import paper
from pycotmech.cli.report import report
from pycotmech.cli.run import run
from pycotmech.cli.status import status
from pycotmech.cli.sweep import sweep
from pycotmech.cli.trace import trace
from pycotmech.files.text import printable

app = typer.Typer(
    name="pycotmech",
    help="Exact, fast analysis of how language models reason step by step.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (run, sweep, paper, attention, trace, report, status, merge, export, info):
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pycotmech {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None: ...


def main() -> None:
    """The console script: one line and exit code 2 for bad input, 130 when stopped by Ctrl-C or SIGTERM."""
    before = signal.signal(signal.SIGTERM, _stop)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        sys.exit(app(prog_name="pycotmech", standalone_mode=False) or 0)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "format_message"):  # the command line itself is wrong
            _fail_usage(error)
        if "--debug" in sys.argv:
            raise
        expected = isinstance(error, (ValueError, TypeError, OSError, NotImplementedError, ImportError))
        _fail(str(error) or type(error).__name__, 2 if expected else 1, "" if expected else f" ({type(error).__name__})")
    finally:
        signal.signal(signal.SIGTERM, before)


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
