"""What a results folder gives other tools without the model: circuits of MIB, pages of CircuitsVis (docs/formats.md).

A folder holds numbers of heads, and no attention patterns. What needs the model is refused with the function that takes it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np
from numpy.typing import ArrayLike

from pycotmech.files.text import printable

TOOLS = ("mib", "headvis", "circuitsvis")
_WITH_MODEL = {
    "mib": "pycotmech.exports.mib_circuit(pycotmech.patch_heads(model, clean, corrupted), model.cfg), then write_mib",
    "headvis": "pycotmech.exports.write_headvis(folder, model, prompts, dataset=...)",
    "circuitsvis": "pycotmech.exports.circuitsvis_attention(model, tokens, layer=...), then write_circuitsvis",
}


class StepScores(NamedTuple):
    """How much each head matters at one step. values: [L, H], NaN where it is not known. step: its number."""

    values: np.ndarray
    step: int


class HeadValues(NamedTuple):
    """A number of each layer, piece of text and head. values: [L, T, H]. texts: T pieces, as they are shown."""

    values: np.ndarray
    texts: Sequence[str]


class HeadSource(Protocol):
    """A results folder as the exports here read it."""

    folder: Path

    @cached_property
    def provenance(self) -> dict[str, Any]: ...

    def head_scores(self, name: str | None = None, *, step: int | None = None) -> StepScores: ...

    def head_values(self, name: str | None = None) -> HeadValues: ...


def needs_model(to: str, why: str) -> NoReturn:
    """Raises ValueError: why a folder cannot give this, and which function can with the model."""
    raise ValueError(f"to: {to} cannot be made from this folder, {why}. With the model call {_WITH_MODEL[to]}")


def export_for_tool(
    source: HeadSource,
    to: str,
    path: str | os.PathLike,
    name: str | None = None,
    *,
    step: int | None = None,
    task: str | None = None,
    model: str | None = None,
) -> Path:
    """Writes what a folder stores for one of `TOOLS`, and returns what was written.

    "mib": PATH/{task}_{model}/importances.json, the effect of each head at a step as its importance; task is "step-N" by
        default, model the name of the folder's model.
    "circuitsvis": a page PATH that draws a number of each head (`HeadValues`); needs the package circuitsvis.
    "headvis": refused, since it needs whole attention patterns.
    Raises ValueError naming the argument, and the function to call with the model where a folder does not suffice.
    """
    if to == "headvis":
        needs_model(to, "which stores no attention patterns")
    if to == "circuitsvis":
        from pycotmech.exports import circuitsvis_values, write_circuitsvis

        for argument, value in {"step": step, "task": task, "model": model}.items():
            if value is not None:
                raise ValueError(f"{argument}: belongs to mib; expected none with {to}")
        page = Path(path).expanduser()
        if not page.parent.is_dir():
            raise FileNotFoundError(f"out: there is no folder {page.parent}")
        write_circuitsvis(page, circuitsvis_values(*source.head_values(name)))
        return page
    from pycotmech.exports import mib_circuit, write_mib

    scores = source.head_scores(name, step=step)
    circuit = mib_circuit(scores.values, _sizes(source, scores))
    own = printable(source.provenance.get("model") or "model").rstrip("/").rpartition("/")[2]
    named = re.sub(r"[^A-Za-z0-9.-]+", "-", own).strip(".-") or "model"
    return write_mib(path, circuit, task=task or f"step-{scores.step}", model=model or named)


def _sizes(source: HeadSource, scores: StepScores) -> Any:
    """The model's sizes that a circuit has, as they are stored."""
    from pycotmech.exports.mib import CircuitSizes

    stored = source.provenance.get("sizes")
    stored = stored if isinstance(stored, dict) else {}
    sizes = [n for name in ("n_layers", "n_heads", "d_model") if type(n := stored.get(name)) is int and n > 0]
    if len(sizes) < 3 or type(stored.get("parallel")) is not bool:
        where = f"open_results(folder).head_scores(step={scores.step}).values"
        raise ValueError(
            f"folder: {printable(source.folder)} does not hold the sizes of its model, as folders of earlier versions. With "
            f"the model call pycotmech.exports.mib_circuit(pycotmech.{where}, model.cfg), then write_mib"
        )
    if tuple(sizes[:2]) != scores.values.shape:
        raise ValueError(
            f"folder: {printable(source.folder)} holds scores {list(scores.values.shape)} of a model of {sizes[:2]}"
        )
    return CircuitSizes(*sizes, parallel=stored["parallel"])


def chosen_step(step: int | None, known: ArrayLike) -> int:
    """The step asked for, or the only one. Raises ValueError naming `step` and those that are there."""
    steps = [int(s) for s in np.asarray(known)]
    if step is None and len(steps) == 1:
        return steps[0]
    if step not in steps:
        expected = f"one of {', '.join(map(str, steps))}" if steps else "none: no step is finished"
        raise ValueError(f"step: {'missing' if step is None else f'got {step}'}; expected {expected}")
    return int(step)
