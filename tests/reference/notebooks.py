"""The notebooks of examples/notebooks: their cells, how the tests run them, and how their outputs are made.

    make bench-peers notebooks                           # environments, then all of them
    python -m tests.reference.notebooks first_finding    # runs one in a Jupyter kernel, and stores what it shows

Cells tagged `peers` need the libraries of .venv-peers, and cells tagged `install` install; the tests leave both out.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "notebooks"

SMALLER = (
    (r"smollm2-135m(-cot)?", "tiny-cot"),
    (r"^n, shots = \d+, \d+", "n, shots = 3, 1"),
)
"""What is written smaller in the quick tests, so that a notebook takes seconds."""


@dataclass(frozen=True)
class Cell:
    """source: without lines for IPython alone (%magics). printed: what it printed when it was stored; shown: what its last
    line showed then, as text."""

    number: int
    source: str
    tags: frozenset[str]
    printed: str
    shown: str


@dataclass(frozen=True)
class Ran:
    """names: what the cells have left. printed: by cell."""

    names: dict[str, Any]
    printed: dict[int, str]


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.ipynb").read_text("utf-8"))


def code(name: str) -> list[Cell]:
    """The cells of code."""
    out = []
    for cell in read(name)["cells"]:
        if cell["cell_type"] == "code":
            lines = "".join(cell["source"]).splitlines()
            source = "\n".join("" if line.startswith("%") else line for line in lines)
            tags = frozenset(cell["metadata"].get("tags", ()))
            texts = [(output["output_type"] == "stream", _text(output)) for output in cell["outputs"]]
            parts = ["".join(text for printed, text in texts if printed is kind) for kind in (True, False)]
            out.append(Cell(len(out) + 1, source, tags, *parts))
    return out


def prose(name: str) -> str:
    """All text cells."""
    return "\n\n".join("".join(cell["source"]) for cell in read(name)["cells"] if cell["cell_type"] == "markdown")


def run(name: str, *, small: bool, without: tuple[str, ...] = ("peers", "install"), folder: Path) -> Ran:
    """Runs the cells in this process, without those of some tags.

    small: on tiny-cot, with fewer examples. folder: for the cells' sources, so that a traceback shows them.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = {}
    for cell in code(name):
        if cell.tags.isdisjoint(without):
            source = cell.source
            for pattern, replacement in SMALLER if small else ():
                source = re.sub(pattern, replacement, source, flags=re.M)
            path = folder / f"{name}_{cell.number}.py"
            path.write_text(source, "utf-8")
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(source, str(path), "exec"), namespace)
            printed[cell.number] = out.getvalue()
    return Ran(namespace, printed)


def _text(output: dict[str, Any]) -> str:
    shown = output.get("text", output.get("data", {}).get("text/plain", ""))
    return shown if isinstance(shown, str) else "".join(shown)


def store(name: str, *, timeout: int = 900) -> None:
    """Runs a notebook in a Jupyter kernel of this environment and writes it with what it shows (extra `notebooks`)."""
    import nbclient
    import nbformat

    path = FOLDER / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    cells = notebook.cells
    notebook.cells = [cell for cell in cells if "install" not in cell.metadata.get("tags", ())]
    nbclient.NotebookClient(notebook, timeout=timeout, resources={"metadata": {"path": str(FOLDER)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of this run
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _lasting(output)]
    notebook.cells = cells
    nbformat.write(notebook, path)


def _lasting(output: Any) -> bool:
    """Whether an output is worth keeping: no warnings of libraries, which name files of this machine, and no progress bars."""
    return output.get("name") != "stderr" and "application/vnd.jupyter.widget-view+json" not in output.get("data", {})


if __name__ == "__main__":
    for chosen in sys.argv[1:] or names():
        store(chosen)
