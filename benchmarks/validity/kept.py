"""Stores results as a JSON line for each model, so that a run that is stopped loses nothing and can continue."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pycotmech.runs.provenance import versions

MODELS, TABLES = "models.jsonl", "tables.json"


class Store:
    """The results of one folder, of one set of settings.

    settings: what changes a verdict (seed, number of examples, ...). Raises ValueError if the folder holds results of others.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.folder, self.settings = folder, dict(settings)
        folder.mkdir(parents=True, exist_ok=True)
        if fresh:
            for name in (MODELS, TABLES):
                (folder / name).unlink(missing_ok=True)
        other = next((line["settings"] for line in lines(folder) if line["settings"] != self.settings), None)
        if other is not None:
            raise ValueError(
                f"out: {folder} contains results of {other}, not of {self.settings}; expected --fresh or another folder"
            )

    def add(self, part: str, name: str, result: Mapping[str, Any]) -> None:
        """Appends a line: of which part and model, the result, and what it was made with."""
        line = {"part": part, "name": name, **result, "settings": self.settings, "made": made()}
        with (self.folder / MODELS).open("a+b") as file:
            if file.tell():  # what an earlier run left unfinished ends here
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(line, default=str).encode() + b"\n")

    def verdicts(self, part: str, name: str) -> set[str]:
        """The claims that a model has verdicts of."""
        return {
            claim for line in lines(self.folder) if (line["part"], line["name"]) == (part, name) for claim in line["verdicts"]
        }

    def put(self, table: str, rows: list[dict[str, Any]], **about: Any) -> None:
        """Keeps a table of a simulation, in place of an earlier one."""
        path = self.folder / TABLES
        tables = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        tables[table] = {"rows": rows, **about, "made": made()}
        path.write_text(json.dumps(tables, indent=1, default=str) + "\n", "utf-8")


def lines(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of a folder; one that was cut off while it was written is left out."""
    path = folder / MODELS
    for text in path.read_text("utf-8").splitlines() if path.is_file() else ():
        try:
            yield json.loads(text)
        except ValueError:
            continue


def models(folder: Path) -> list[dict[str, Any]]:
    """One entry for each model of each part: its lines, the later of two verdicts on one claim."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for line in lines(folder):
        key = line["part"], line["name"]
        before = found.get(key, {})
        found[key] = line | {"verdicts": {**before.get("verdicts", {}), **line["verdicts"]}}
    return list(found.values())


def tables(folder: Path) -> dict[str, Any]:
    """The tables of simulations by name."""
    path = folder / TABLES
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def made() -> dict[str, str]:
    """With what and when."""
    return {
        **versions(),
        "commit": commit(),
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def processor() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] \
        if info.is_file() else []  # fmt: skip
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """Of the checkout, with a plus sign if files of the package or of the benchmarks differ from it; "unknown" without git."""
    root = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "pycotmech", "benchmarks", "csrc", "tests/reference")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
