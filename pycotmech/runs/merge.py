"""Puts the folders of parts of a run (`points`) together into one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pycotmech.display import Described, Facts
from pycotmech.files.text import printable
from pycotmech.runs.experiment import write_records
from pycotmech.runs.folder import checked_path, open_folder, opening, refuse_other_settings
from pycotmech.runs.lazy import open_sweeps
from pycotmech.runs.progress import ProgressReporter
from pycotmech.runs.store import ResultAxes, SweepState, SweepStore, stored_identity
from pycotmech.runs.work import EXAMPLES_FILE, prompts_digest

_OF_A_PART = ("points", "prompts")
"""Entries of an identity in which parts of one run differ."""


@dataclass(frozen=True)
class MergeOutcome(Described):
    """points: which examples the folder holds now. finished: sweeps in it; pending: sweeps that no part has finished; repeated:
    sweeps that several parts had finished, all alike."""

    folder: Path
    points: tuple[int, int]
    finished: int
    pending: int
    repeated: int

    def described(self) -> Facts:
        counts = {"finished": self.finished, "pending": self.pending, "in several parts": self.repeated}
        first, stop = self.points
        facts = {"examples": f"{first} to {stop - 1}", **{name: f"{n} sweeps" for name, n in counts.items()}}
        return Facts(f"Merged into {self.folder}", facts, go_on=opening(self.folder))


@dataclass(frozen=True)
class _Part:
    """data: the results, read on demand, an entry for each of the examples from `start` to `stop`. state: of its sweeps.
    digests: of the prompts of each example."""

    folder: Path
    identity: dict[str, Any]
    data: xr.Dataset
    state: NDArray[np.int8]
    start: int
    digests: list[str]

    @property
    def stop(self) -> int:
        return self.start + len(self.state)

    def records(self) -> Iterator[dict[str, Any]]:
        return _records(self.folder / EXAMPLES_FILE)


def merge(
    out: str | os.PathLike, parts: Sequence[str | os.PathLike], *, progress: ProgressReporter | None = None
) -> MergeOutcome:
    """Writes what the folders of parts hold into the folder `out`, which `pycotmech run` then continues like any other.

    The parts must have been made with the same model, weights, settings and versions, and their points must follow one another
    without a gap. Where points overlap, results must be equal or differ by rounding only; the part with more finished sweeps
    counts, or the first of those given. A merge that was interrupted is continued by the same call. The parts stay as they are.

    Raises ValueError naming the difference, FileNotFoundError for a folder without results, and what `open_folder` raises.
    Cost: two reads of the parts' examples and one of their results, one write. Memory is that of one example.
    """
    progress = progress or ProgressReporter()
    folders = [checked_path(part, "parts") for part in parts]
    if not folders:
        raise ValueError("parts: none given; expected folders of parts of one run")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError("parts: a folder is given twice; expected each part once")
    if checked_path(out).resolve() in {folder.resolve() for folder in folders}:
        raise ValueError(f"out: {out} is one of the parts; expected another folder")
    found = [_part(folder) for folder in folders]
    identity = _common_identity(found)
    points = min(part.start for part in found), max(part.stop for part in found)
    chosen = _chosen(found, points)
    repeated = _check_overlaps(found)
    of = max((part.identity["points"][2] for part in found if "points" in part.identity), default=points[1])
    if points != (0, of) and any("points" in part.identity for part in found):
        identity["points"] = [*points, of]
    identity["prompts"] = prompts_digest(_merged_records(chosen, points))
    with open_folder(out) as folder:
        stored = stored_identity(folder)
        refuse_other_settings(folder, stored, identity)
        write_records(folder / EXAMPLES_FILE, _merged_records(chosen, points))
        store = SweepStore.resume(folder) if stored is not None else _new_store(folder, found, chosen, points, identity)
        _copy(chosen, points, store, progress)
        state = store.state()
    finished, pending = int((state == SweepState.FINISHED).sum()), int((state == SweepState.PENDING).sum())
    return MergeOutcome(folder, points, finished, pending, repeated)


def _part(folder: Path) -> _Part:
    """Raises ValueError where the examples of a part are not those of its results."""
    if not folder.is_dir():
        raise FileNotFoundError(f"parts: there is no folder {printable(folder)}")
    try:
        data = open_sweeps(folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"parts: {error}") from error
    identity = dict(data.attrs["identity"])
    file = folder / EXAMPLES_FILE
    if not file.is_file():
        raise FileNotFoundError(f"parts: {printable(folder)} has no {EXAMPLES_FILE}; run its command again, which writes it")
    digests: list[str] = []

    def seen() -> Iterator[dict[str, Any]]:
        for record in _records(file):
            digests.append(prompts_digest([record]))
            yield record

    try:
        intact = prompts_digest(seen()) == identity.get("prompts") and len(digests) == data.sizes["example"]
        start = int(identity.get("points", (0,))[0])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        intact, start = False, 0
    if not intact:
        raise ValueError(
            f"parts: {printable(file)} does not hold the examples of these results; remove it and run the command again"
        )
    return _Part(folder, identity, data, np.asarray(data["state"].values), start, digests)


def _records(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)


def _merged_records(chosen: Sequence[_Part], points: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """The examples in order, each from the part that was chosen for it. The files are read once, line by line."""
    reading: dict[Path, tuple[Iterator[dict[str, Any]], int]] = {}
    for e, part in enumerate(chosen, points[0]):
        records, at = reading.get(part.folder, (part.records(), part.start))
        for _ in range(at, e):
            next(records)
        yield next(records)
        reading[part.folder] = records, e + 1


def _common_identity(parts: Sequence[_Part]) -> dict[str, Any]:
    """What all parts agree on. Raises ValueError naming what they do not."""
    first = {k: v for k, v in parts[0].identity.items() if k not in _OF_A_PART}
    for part in parts[1:]:
        other = {k: v for k, v in part.identity.items() if k not in _OF_A_PART}
        names = [name for name in dict.fromkeys((*first, *other)) if first.get(name) != other.get(name)]
        if names:
            differ = "; ".join(f"{n} is {_shown(first.get(n))} and {_shown(other.get(n))}" for n in names)
            raise ValueError(f"parts: {parts[0].folder} and {part.folder} are of different runs: {differ}")
        for axis in ("step", "layer", "head"):
            if not np.array_equal(part.data[axis], parts[0].data[axis]):
                raise ValueError(f"parts: {parts[0].folder} and {part.folder} have different axes: {axis}")
    return first


def _check_overlaps(parts: Sequence[_Part]) -> int:
    """How many sweeps several parts have finished. Raises ValueError where they do not agree within the noise floor."""
    repeated: set[tuple[int, int]] = set()
    for i, a in enumerate(parts):
        for b in parts[:i]:
            for e in range(max(a.start, b.start), min(a.stop, b.stop)):
                if a.digests[e - a.start] != b.digests[e - b.start]:
                    raise ValueError(f"parts: {b.folder} and {a.folder} have different prompts in example {e}")
                finished = (a.state[e - a.start] == SweepState.FINISHED) & (b.state[e - b.start] == SweepState.FINISHED)
                if not finished.any():
                    continue
                one, other = a.data.isel(example=e - a.start).load(), b.data.isel(example=e - b.start).load()
                for s in np.flatnonzero(finished).tolist():
                    if (why := _difference(one.isel(step=s), other.isel(step=s))) is not None:
                        raise ValueError(
                            f"parts: {b.folder} and {a.folder} differ in example {e}, step {int(one['step'][s])}: {why}"
                        )
                    repeated.add((e, s))
    return len(repeated)


def _difference(a: xr.Dataset, b: xr.Dataset) -> str | None:
    """How two results of one sweep differ beyond rounding; None if they do not."""
    floor = max(float(a["noise_floor"]), float(b["noise_floor"]))
    largest = float(np.nanmax(np.abs(a["effect"].values.astype(float) - b["effect"].values), initial=0.0))
    if largest > floor:
        return f"an effect by {largest:.3g}, with a noise floor of {floor:.3g}"
    scale = abs(float(a["clean_metric"]) - float(a["corrupted_metric"]))
    for name in ("clean_metric", "corrupted_metric"):
        apart = abs(float(a[name]) - float(b[name]))
        if apart > floor * scale:
            return f"{name} by {apart:.3g}, with a noise floor of {floor * scale:.3g}"
    return None


def _chosen(parts: Sequence[_Part], points: tuple[int, int]) -> list[_Part]:
    """The part from which each example is taken: of those that hold it the first with the fewest pending sweeps. Raises
    ValueError naming the examples that no part holds."""
    out: list[_Part] = []
    for e in range(*points):
        holding = [part for part in parts if part.start <= e < part.stop]
        if not holding:
            end = min(part.start for part in parts if part.start > e)
            raise ValueError(f"parts: no part holds the examples {e}:{end}; expected parts without a gap")
        out.append(min(holding, key=lambda part: int((part.state[e - part.start] == SweepState.PENDING).sum())))
    return out


def _new_store(
    folder: Path, parts: Sequence[_Part], chosen: Sequence[_Part], points: tuple[int, int], identity: Mapping[str, Any]
) -> SweepStore:
    data = parts[0].data
    names = [str(part.data["name"].values[e - part.start]) for e, part in enumerate(chosen, points[0])]
    about = dict(data.attrs["about"])
    about["parts"] = [
        {"folder": part.folder.name, "points": [part.start, part.stop], "plan": part.data.attrs["about"].get("plan")}
        for part in parts
    ]
    axes = ResultAxes(
        names, data["step"].values.tolist(), data["kind"].values.tolist(), data.sizes["layer"], data.sizes["head"]
    )
    return SweepStore.create(folder, axes, identity=identity, about=about)


def _copy(chosen: Sequence[_Part], points: tuple[int, int], store: SweepStore, progress: ProgressReporter) -> None:
    written, graded = store.state(), store.graded()
    progress.begin("merging", len(chosen), "example")
    for i, part in enumerate(chosen):
        progress.at(i, part.folder.name)
        at = points[0] + i - part.start
        right = part.data["right"][at].values
        if not (np.array_equal(written[i], part.state[at]) and np.array_equal(graded[i], right)):
            row = part.data.isel(example=at).load()
            store.put(i, {str(name): row[name].values for name in row.data_vars})
    progress.end()


def _shown(value: Any) -> str:
    return "not set" if value is None else printable(value)
