"""What a phase finds: facts, checks and figures, written line by line. A figure stands on a check that passed before it."""

from __future__ import annotations

import json
import math
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FACT, CHECK, FIGURE, WITHHELD, NOT_RUN, FAILED = "fact", "check", "figure", "withheld", "not run", "failed"
BAD = (WITHHELD, FAILED)
NO_TIME = "no time left"
"""Why a phase, or a part of one, was not run."""


class Found:
    """Writes rows to a file of JSON lines as they come, so that a process that is killed leaves what it had.

    path: the file; None: rows are kept in `rows` only.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def _add(self, kind: str, what: str, **values: Any) -> None:
        row = {"kind": kind, "what": what, **{name: _plain(value) for name, value in values.items()}}
        self.rows.append(row)
        if self.path is not None:
            with self.path.open("a") as f:
                f.write(json.dumps(row, default=str) + "\n")

    def fact(self, what: str, value: Any) -> None:
        """What needs no check: a version, a size, a count."""
        self._add(FACT, what, value=value)

    def check(self, what: str, error: float, limit: float) -> bool:
        """Records an error and its limit; returns whether the error is within it. One that is not a number never is."""
        error, limit = float(error), float(limit)
        passed = not math.isnan(error) and error <= limit
        self._add(CHECK, what, value=error, limit=limit, passed=passed)
        return passed

    def figure(self, what: str, value: float, unit: str, *, checked: bool, spread: tuple[float, float] | None = None) -> None:
        """Records a figure; withheld without its value if its check failed. spread: lowest and highest of the repeated runs."""
        if not isinstance(checked, bool):
            raise TypeError(f"checked: got {checked!r}; expected what `check` returned")
        if not math.isfinite(value):
            self._add(WITHHELD, what, unit=unit, value=f"it is {float(value)}")
        elif checked:
            self._add(FIGURE, what, value=float(value), unit=unit, spread=spread)
        else:
            self._add(WITHHELD, what, unit=unit, value="its check failed")

    def not_run(self, what: str, reason: str = NO_TIME) -> None:
        self._add(NOT_RUN, what, value=reason)

    def failed(self, what: str, reason: str) -> None:
        self._add(FAILED, what, value=reason)

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """A part of a phase: an error in it is recorded, and the phase goes on unless the device no longer answers."""
        try:
            yield
        except Exception as error:
            self.failed(what, f"{type(error).__name__}: {str(error).strip()[:400]}")
            traceback.print_exc(file=sys.stderr)
            import torch  # not above: what only reads rows starts at once

            if torch.cuda.is_available():
                torch.cuda.synchronize()  # raises again after a device assert, which ends the phase
                torch.cuda.empty_cache()


def _plain(value: Any) -> Any:
    """JSON has no infinity, and nothing that is not a number."""
    if isinstance(value, tuple | list):
        return [_plain(x) for x in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that may have been cut off in its last line."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
