"""What a run would do and need, checked and predicted before it starts; nothing is written."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pycotmech.cost import DataSheet, Demand, device_named, of_plan, speed_and_device
from pycotmech.cot.tools.cost import Cost, rows_cost
from pycotmech.display import Described
from pycotmech.runs.experiment import checked_settings
from pycotmech.runs.folder import checked_path, existing_place, refuse_other_settings
from pycotmech.runs.provenance import model_identity
from pycotmech.runs.settings import Settings, torch_threads
from pycotmech.runs.speed import shown_time
from pycotmech.runs.store import STORE, SweepState, open_store, stored_identity
from pycotmech.runs.variables import VARIABLES
from pycotmech.runs.work import SweepUnit, SweepWork, work_of_pairs, work_of_task
from pycotmech.runs.workers import EngineChoice, threads_of
from pycotmech.runs.workers.sharing import weights_bytes

if TYPE_CHECKING:
    from pycotmech.engine.planner import Plan
    from pycotmech.model import Model

_SAMPLE = 24
"""How many units are planned, spread evenly; the others are taken to be like them."""
_BLOCK = 4096
"""Bytes that a file takes on the disk at least."""
_PILOT, _MOST = 2, 256
"""Examples from which the time of more is predicted, and the most that a time budget chooses."""
_REPORT = 2 << 20
"""Bytes of the tables and figures of a report."""


@dataclass(frozen=True, kw_only=True)
class Prediction(Described):
    """What is predicted of every run.

    out: the folder. finished: what is done already. token_forwards, flop: of what remains. flop_per_second: of one worker.
    seconds: predicted from short runs of this model here, with workers as fast as one alone.
    weights_bytes: of the model; workers on this machine share them. worker_bytes: that a worker may need beside them, by what
    needs most. free_bytes: memory that is free here.
    disk_bytes: that the folder will grow by; disk_free_bytes: free there. notes: what else to know; problems: why the run would
    fail.
    """

    out: str
    model: str
    finished: int
    engine: str
    workers: int
    threads: int
    token_forwards: float
    flop: float
    flop_per_second: float
    seconds: float
    weights_bytes: int
    worker_bytes: int
    free_bytes: int
    disk_bytes: int
    disk_free_bytes: int
    notes: tuple[str, ...]
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Estimate(Prediction):
    """What a run would do.

    examples, sweeps: in the folder when it is complete; finished: sweeps that are done already; units: passes that remain.
    Before grading every step counts as right, so that sweeps, units, work and time are upper bounds, and the work is that of
    the units that remain and of grading. plan: of the largest unit, which needs most memory.
    plan_for: the GPU by whose data sheet time and memory are predicted; "" if from short runs here.
    Further fields as in `Prediction`.
    """

    examples: int
    steps: int
    sweeps: int
    units: int
    plan: str
    plan_for: str

    def __str__(self) -> str:
        lines = [
            f"{self.model}: {self.examples} examples of {self.steps} steps, {self.sweeps} sweeps at most, {self.finished} of "
            f"them finished; {self.units} units to do",
            f"engine {self.engine}, workers: {self.workers}, threads of each: {self.threads}",
            f"work: {self.token_forwards:,.0f} token-forwards, {self.flop / 1e12:,.2f} TFLOP; one worker "
            f"{f'on {self.plan_for}' if self.plan_for else 'here'} does {self.flop_per_second / 1e9:,.0f} GFLOP/s",
            f"the largest unit: {self.plan}" if self.plan else "nothing remains to be done",
            f"time: about {shown_time(self.seconds)}{self.plan_for and f' on {self.plan_for}, by its data sheet'}",
            shown_memory(self.weights_bytes, self.worker_bytes, self.free_bytes, self.plan_for),
            f"disk: {self.disk_bytes / 1e6:,.1f} MB in {self.out}, where {self.disk_free_bytes / 1e9:,.1f} GB are free",
        ]
        return "\n".join([*lines, *shown_end(self.notes, self.problems)])


def shown_memory(weights: int, worker: int, free: int, plan_for: str = "") -> str:
    """The line of an estimate about memory. All in bytes; worker: what each may need beside the weights; plan_for: the GPU that
    has the free memory, this machine by default."""
    gib = 2**30
    return (
        f"memory: {weights / gib:.2f} GiB of weights, shared, and {worker / gib:.2f} GiB for each worker; "
        f"{free / gib:.1f} GiB are free{plan_for and f' on {plan_for}'}"
    )


def shown_end(notes: Iterable[str], problems: Iterable[str]) -> list[str]:
    """The last lines of an estimate."""
    return [*(f"note: {note}" for note in notes), *(f"problem: {problem}" for problem in problems), "nothing was written"]


def estimate_run(
    settings: Settings,
    out: str | os.PathLike,
    *,
    engine: str | None = None,
    workers: int | None = None,
    ray_address: str | None = None,
    points: slice | tuple[int, int] | None = None,
    accept_version: bool = False,
    plan_for: str | None = None,
) -> Estimate:
    """Checks everything that `pycotmech.runs.run` checks before its first sweep, and predicts what it would need. Nothing is
    written. Arguments as in `run`.

    plan_for: a GPU by name (`pycotmech.cost.DEVICES`) for which time and memory are predicted, from its data sheet.

    Raises what `run` raises for arguments, prompts, model and folder. Cost: the model is loaded, and two forward passes of up
    to 512 tokens and a short sweep are timed.
    """
    from pycotmech.engine.memory import free_bytes
    from pycotmech.model import Model

    planned = None if plan_for is None else device_named(plan_for, "plan_for")
    choice = EngineChoice(engine, workers, ray_address)
    settings, pairs = checked_settings(settings, choice, points)
    folder = checked_path(out)
    place = existing_place(folder)
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"out: nothing can be written in {place}. Give another folder")
    stored, identity = stored_identity(folder), settings.identity()
    refuse_other_settings(folder, stored, identity, accept_version=accept_version)
    model = Model.from_pretrained(settings.model, dtype=settings.dtype, device=settings.device)
    threads = threads_of(choice, settings)
    with torch_threads(min(threads, os.cpu_count() or 1)):
        work = work_of_task(model, settings) if pairs is None else work_of_pairs(model, pairs, settings)
        if stored is not None:
            identity |= {**model_identity(model), "prompts": work.digest()}
            refuse_other_settings(folder, stored, identity, accept_version=accept_version)
        return _estimate(
            model, work, settings, choice, folder, place, threads, stored is not None,
            free_bytes(model.device) if planned is None else int(planned.memory) - weights_bytes(model), planned,
        )  # fmt: skip


def examples_within(settings: Settings, out: str | os.PathLike, minutes: float, **how: Any) -> int:
    """Returns the largest number of examples whose predicted time fits into so many minutes, from 1 to 256; if the folder holds
    results of the task, their number. how: arguments of `estimate_run`.

    Raises ValueError if not even one example fits, and what `estimate_run` raises. Cost: that of `estimate_run`.
    """
    if not 0 < minutes < math.inf:
        raise ValueError(f"minutes: got {minutes}; expected a positive number")
    for name in ("examples", "pairs", "points"):
        if getattr(settings, name) is not None:
            raise ValueError(f"minutes: chooses the number of examples, and {name} is given as well; expected one of the two")
    stored = stored_identity(checked_path(out))
    if stored is not None and isinstance(stored.get("examples"), int):
        return stored["examples"]
    found = estimate_run(replace(settings, examples=_PILOT), out, **how)
    n = math.floor(60 * minutes / (found.seconds / _PILOT))
    if n < 1:
        raise ValueError(
            f"minutes: one example takes about {shown_time(found.seconds / _PILOT)}, more than the {shown_time(60 * minutes)} "
            "given; expected a longer time, or fewer steps"
        )
    return min(n, _MOST)


def _estimate(
    model: Model, work: SweepWork, settings: Settings, choice: EngineChoice, folder: Path, place: Path, threads: int,
    resumed: bool, free: int, planned: DataSheet | None,
) -> Estimate:  # fmt: skip
    state, graded = _progress(folder) if resumed else (np.zeros((len(work.names), len(work.steps)), int), 0)
    wanted = [row for row in work.batches(lambda unit: state[unit.example, unit.step] != SweepState.SKIPPED, settings)]
    batches = [b for b in wanted if any(state[u.example, u.step] == SweepState.PENDING for u in b)]
    n = choice.n_workers(threads)
    memory_gb = settings.memory_gb or max(1e-3, round(free / 2 / 2**30 / (n if settings.device == "cpu" else 1), 3))
    sample = [batches[i] for i in np.linspace(0, len(batches) - 1, min(_SAMPLE, len(batches))).round().astype(int)]
    plans = [_plan(model, work, batch, settings, memory_gb) for batch in sample]
    scale = len(batches) / max(1, len(plans))
    cfg = model.cfg
    forward, machine = speed_and_device(model, planned)
    demand = scale * sum((of_plan(cfg, plan, metric=settings.metric) for plan in plans), Demand())
    flop, rows = (scale * sum(getattr(plan, name) for plan in plans) for name in ("flop", "token_forwards"))
    rows += scale * sum(plan.base_token_forwards for plan in plans)
    kept_flop, kept_rows = _kept(model, work, max(0, len(batches) - n))
    flop, rows = max(flop - kept_flop, 0.0), max(rows - kept_rows, 0.0)
    grading = _grading(model, work, len(work.units) - graded)
    share = rows / max(rows + kept_rows, 1e-9)  # of the plans' work that is done
    seconds = share * machine.seconds(cfg, demand) + grading.flop / forward
    largest = max(plans, key=lambda plan: plan.bytes_in_flight, default=None)
    worker = 0 if largest is None else largest.bytes_in_flight
    disk = _disk_bytes(work, model, new=not resumed, pending=len({u.example for b in batches for u in b}))
    disk_free = shutil.disk_usage(place).free
    problems = []
    if disk > disk_free:
        problems.append(f"disk: {disk / 1e6:,.1f} MB are needed in {folder}, and {disk_free / 1e6:,.1f} MB are free")
    if n * worker > free:
        problems.append(f"memory: {n} workers may need {n * worker / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free")
    notes = list(model.notes)
    if settings.device == "cpu" and n * threads > (cores := os.cpu_count() or 1):
        notes.append(f"{n} workers of {threads} threads share {cores} cores")
    return Estimate(
        out=str(folder), model=model.name, examples=len(work.names), steps=len(work.steps),
        sweeps=int((state != SweepState.SKIPPED).sum()), finished=int((state == SweepState.FINISHED).sum()),
        units=len(batches), engine=choice.engine, workers=n, threads=threads,
        token_forwards=rows + grading.token_forwards, flop=flop + grading.flop, flop_per_second=forward,
        seconds=seconds / n,
        weights_bytes=weights_bytes(model), worker_bytes=worker, free_bytes=free, disk_bytes=disk, disk_free_bytes=disk_free,
        plan="" if largest is None else str(largest), plan_for="" if planned is None else planned.name,
        notes=tuple(notes), problems=tuple(problems),
    )  # fmt: skip


def _progress(folder: Path) -> tuple[np.ndarray, int]:
    """The states of a folder's sweeps, and how many of its examples are graded."""
    arrays = open_store(folder / STORE, "r")
    graded = np.asarray(arrays["right"][:])
    return np.asarray(arrays["state"][:]), int((graded >= 0).any(1).sum())


def _plan(model: Model, work: SweepWork, batch: Sequence[SweepUnit], settings: Settings, memory_gb: float) -> Plan:
    from pycotmech.patching import plan_heads
    from pycotmech.runs.pairs import sweep_options

    pairs, others = [unit.pair for unit in batch], [work.others[unit.example][unit.step] for unit in batch]
    options = sweep_options(settings, lambda name: [getattr(pair, name) for pair in pairs], others)
    return plan_heads(model, [p.clean for p in pairs], [p.corrupted for p in pairs], memory_gb=memory_gb, **options)


def _kept(model: Model, work: SweepWork, times: int) -> tuple[float, float]:
    """FLOP and token-forwards of the examples' shared beginning, which a worker computes once, so many times."""
    from pycotmech.engine.planner import prefix_work

    if work.examples is None or not times:
        return 0.0, 0.0
    shared = prefix_work(model.family, len(work.examples.shared_ids))
    return times * shared.flop, times * shared.layer_rows / model.cfg.n_layers


def _grading(model: Model, work: SweepWork, examples: int) -> Cost:
    """Cost of grading so many examples."""
    units = [unit for e in range(min(examples, _SAMPLE)) if (unit := work.grading(e, e)) is not None]
    if not units:
        return Cost()
    rows = examples * sum(len(unit.tokens) for unit in units) / len(units)
    return rows_cost(model.cfg, rows, read=rows if units[0].positions is None else examples)


def _disk_bytes(work: SweepWork, model: Model, *, new: bool, pending: int) -> int:
    """What the results of so many examples take, and what the folder itself does if it is new."""
    sizes = {"example": 1, "step": len(work.steps), "layer": model.cfg.n_layers, "head": model.cfg.n_heads}
    of_example = 0
    for variable in VARIABLES.values():
        size = int(np.prod([sizes[axis] for axis in variable.axes])) * np.dtype(variable.dtype).itemsize
        of_example += -(-size // _BLOCK) * _BLOCK
    lines = [len(json.dumps(record, ensure_ascii=False)) for record, _ in zip(work.records(), range(_SAMPLE))]
    text = round(len(work.names) * sum(lines) / len(lines)) if new else 0
    return pending * of_example + text + _REPORT
