"""Optional packages: which extra has each, and the one line that says so where one is missing."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from pycotmech._warnings import warn


class OptionalPackage(NamedTuple):
    """extra: of pycotmech, which installs it. distribution: its name in the package index. purpose: what needs it, in the
    plural."""

    extra: str
    distribution: str
    purpose: str


OPTIONAL = {
    "matplotlib": OptionalPackage("report", "matplotlib", "figures"),
    "plotly": OptionalPackage("interactive", "plotly", "figures that answer to the mouse"),
    "sklearn": OptionalPackage("probes", "scikit-learn", "probes"),
    "pyarrow": OptionalPackage("tables", "pyarrow", "Parquet files and datasets folders"),
    "sentencex": OptionalPackage("traces", "sentencex", "traces that are cut into sentences by sentencex"),
    "ray": OptionalPackage("ray", "ray", "workers of the engine ray"),
    "triton": OptionalPackage("gpu", "triton", "the kernels for GPUs"),
    "torchao": OptionalPackage("quantised", "torchao", "models quantised by torchao"),
}
"""By the name that is imported."""


class MissingPackage(ModuleNotFoundError):
    """An optional package is not installed. The message names the command that installs it."""


def command_for(package: str) -> str:
    """The command that installs an optional package."""
    return f"pip install 'pycotmech[{OPTIONAL[package].extra}]'"


def explained(error: ModuleNotFoundError) -> str | None:
    """What to say where an import failed for an optional package that is not installed; None for any other module."""
    package = (error.name or "").partition(".")[0]
    return None if package not in OPTIONAL or isinstance(error, MissingPackage) else _sentence(package)


def missing(package: str) -> str | None:
    """Says how to install an optional package that is not installed; None if it is."""
    return None if is_installed(package) else _sentence(package)


def warn_of_missing(package: str, consequence: str) -> bool:
    """Whether an optional package is not installed; warns of what follows if so."""
    why = missing(package)
    if why is not None:
        warn(f"{consequence}: {why}")
    return why is not None


@contextmanager
def optional_import() -> Iterator[None]:
    """Imports in the block that fail for a missing optional package raise `MissingPackage` with the command to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        text = explained(error)
        if text is None:
            raise
        raise MissingPackage(text, name=error.name, path=error.path) from None


def is_installed(package: str) -> bool:
    """Whether a package can be found. It is not imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _sentence(package: str) -> str:
    of = OPTIONAL[package]
    return f"{of.purpose} need {of.distribution}, which is not installed: {command_for(package)}"
