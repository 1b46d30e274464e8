"""Keeps what a long analysis has finished, so that it continues from there after an interruption."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pycotmech.files.arrays import load_arrays, save_arrays

if TYPE_CHECKING:
    from pycotmech.model import Model
    from pycotmech.traces.trace import Trace

PAUSE = 2.0
"""Seconds between two writings: what a process that is killed can lose beside the part in progress."""

Arrays = Mapping[str, NDArray]


class Parts:
    """Finished parts of one analysis in a folder of their own, which is removed when the analysis is finished.

        with Parts("suppress.parts", identity={"weights": "sha256:..."}) as parts:
            found = pcm.traces.suppress(model, trace, parts=parts)
            found.save("out")

    path: of the folder. identity: what must be the same for parts to be used again, beside the analysis, its settings and its
    traces, which are compared anyway: the model's weights above all. Values of JSON.

    An exception or Ctrl-C in the block leaves the folder with all finished parts. A process that is killed loses the part in
    progress and what was finished in the last `PAUSE` seconds.
    """

    def __init__(self, path: str | PathLike, identity: Any = None) -> None:
        self.path, self.identity = Path(path), json.dumps(identity, sort_keys=True, default=str)
        self._waiting: tuple[str, Arrays] | None = None
        self._written = time.monotonic()

    def read(self, key: str) -> dict[str, NDArray]:
        """What was kept under this key; empty if nothing was, or if it is damaged."""
        try:
            found = load_arrays(self.path)
        except (ValueError, OSError):
            return {}
        if found.attrs.get("key") != key or found.attrs.get("identity") != self.identity:
            return {}
        return {str(name): values.values.copy() for name, values in found.items()}

    def keep(self, key: str, arrays: Arrays) -> None:
        """Keeps arrays in the place of those that were kept before. They are written at once or, within `PAUSE` seconds of the
        last writing, later: what they hold may grow until then, and must be valid at any time."""
        self._waiting = key, arrays
        if time.monotonic() - self._written >= PAUSE:
            self._write()

    def _write(self) -> None:
        if self._waiting is None:
            return
        (key, arrays), self._waiting = self._waiting, None
        data = {n: ([f"{n}_{i}" for i in range(np.ndim(v))], np.asarray(v)) for n, v in arrays.items()}
        save_arrays(xr.Dataset(data, attrs={"key": key, "identity": self.identity}), self.path)
        self._written = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is not None:
            self._write()
        elif self.path.is_dir() and not self.path.is_symlink():
            shutil.rmtree(self.path, ignore_errors=True)


def key_of(analysis: str, model: Model, traces: list[Trace], **settings: Any) -> str:
    """What decides the parts of an analysis: its name, the model's name and sizes, the settings, and tokens, sentences and
    answers of its traces."""
    made = [analysis, model.name, str(model.cfg), settings]
    digest = hashlib.sha256(json.dumps(made, sort_keys=True, default=str).encode())
    for trace in traces:
        where = None if trace.answer is None else [trace.answer.start, trace.answer.stop]
        digest.update(json.dumps([trace.tokens.tolist(), trace.spans().tolist(), where]).encode())
    return digest.hexdigest()
