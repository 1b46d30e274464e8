"""What a run of the paper's analyses would do and need, predicted before it starts; nothing is written."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycotmech.cot.tools.cost import Cost
from pycotmech.paper.plan import CostPlan, Line
from pycotmech.runs.estimate import Prediction, shown_end, shown_memory
from pycotmech.runs.folder import existing_place
from pycotmech.runs.speed import shown_time
from pycotmech.runs.workers.sharing import weights_bytes

if TYPE_CHECKING:
    from pycotmech.cot.tools.registry import Description
    from pycotmech.model import Model

_RESULT = 1 << 20
"""Bytes of the table, the figures and the small arrays of an analysis."""
_VALUES = 24
"""Bytes of each value by example, step, layer and head: three arrays of float64. An upper bound; most analyses keep less."""


@dataclass(frozen=True)
class SettingEstimate:
    """One setting of the task. steps: of all examples, that the model gets right. analyses: what each would do, with whether it
    is finished. failure: why the setting cannot be made."""

    examples: int = 0
    steps: int = 0
    analyses: tuple[dict[str, Any], ...] = ()
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class PaperEstimate(Prediction):
    """What a run of the paper's analyses would do.

    settings: by name. analyses, finished: of all settings. With several workers the time is as long as the analyses take that
    wait for one another. disk_bytes: an upper bound. Further fields as in `pycotmech.runs.estimate.Prediction`.
    """

    settings: Mapping[str, SettingEstimate]
    analyses: int

    def __str__(self) -> str:
        lines = [
            f"{self.model}: analyses: {self.analyses}, {self.finished} of them finished; settings of the task: "
            f"{', '.join(self.settings)}",
            f"engine {self.engine}, workers: {self.workers}, threads of each: {self.threads}",
            f"work that remains: {self.token_forwards:,.0f} token-forwards, {self.flop / 1e12:,.2f} TFLOP",
            f"time: about {shown_time(self.seconds)}",
            shown_memory(self.weights_bytes, self.worker_bytes, self.free_bytes),
            f"disk: at most {self.disk_bytes / 1e6:,.1f} MB in {self.out}, where {self.disk_free_bytes / 1e9:,.1f} GB are free",
        ]
        lines += [f"setting {name}: cannot be made: {s.failure}" for name, s in self.settings.items() if s.failure]
        return "\n".join([*lines, *shown_end(self.notes, self.problems)])


def estimate(
    folder: Path,
    model: Model,
    plans: Mapping[str, tuple[Sequence[Description], CostPlan]],
    finished: Mapping[str, Sequence[str]],
    failures: Mapping[str, str],
    *,
    engine: str,
    workers: int,
    threads: int,
) -> PaperEstimate:
    """Returns the estimate of a run into `folder`.

    plans: of each setting that can be made its analyses and their costs. finished: names of those that the folder holds.
    failures: why other settings cannot be made.
    """
    from pycotmech.engine.memory import free_bytes

    settings: dict[str, SettingEstimate] = {name: SettingEstimate(failure=why) for name, why in failures.items()}
    work, seconds, disk = Cost(), 0.0, 0.0
    for name, (entries, plan) in plans.items():
        done = set(finished.get(name, ()))
        left = [line for line in plan.lines if line.name not in done]
        work += sum((line.ours for line in left), Cost())
        seconds += time_of(entries, left, workers)
        w = plan.workload
        disk += len(left) * (_RESULT + _VALUES * w.cells * model.cfg.n_layers * model.cfg.n_heads)
        analyses = tuple(
            {
                "name": line.name, "source": line.source, "token_forwards": line.ours.token_forwards, "flop": line.ours.flop,
                "seconds": line.seconds, "bytes": line.ours.memory, "finished": line.name in done,
            }
            for line in plan.lines
        )  # fmt: skip
        settings[name] = SettingEstimate(w.examples, w.cells, analyses)
    free, disk_free = free_bytes(model.device), shutil.disk_usage(existing_place(folder)).free
    problems = []
    if disk > disk_free:
        problems.append(f"disk: {disk / 1e6:,.1f} MB may be needed in {folder}, and {disk_free / 1e6:,.1f} MB are free")
    if (beyond := workers * work.memory) > free:
        problems.append(f"memory: {workers} workers may need {beyond / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free")
    speeds = [plan.flop_per_second for _, plan in plans.values()]
    return PaperEstimate(
        out=str(folder), model=model.name, settings=settings,
        analyses=sum(len(s.analyses) for s in settings.values()),
        finished=sum(a["finished"] for s in settings.values() for a in s.analyses),
        engine=engine, workers=workers, threads=threads, token_forwards=work.token_forwards, flop=work.flop,
        flop_per_second=speeds[0] if speeds else 0.0, seconds=seconds,
        weights_bytes=weights_bytes(model), worker_bytes=round(work.memory),
        free_bytes=free, disk_bytes=round(disk), disk_free_bytes=disk_free, notes=tuple(model.notes), problems=tuple(problems),
    )  # fmt: skip


def time_of(entries: Sequence[Description], lines: Sequence[Line], workers: int) -> float:
    """Returns the seconds that these analyses take if so many workers do them, the longest first, each as soon as what it needs
    is done."""
    seconds = {line.name: line.seconds for line in lines}
    needs = {e.name: {n for n in e.needs if n in seconds} for e in entries if e.name in seconds}
    free, running, now = workers, [], 0.0
    while needs or running:
        for name in sorted((n for n, its in needs.items() if not its), key=lambda n: -seconds[n]):
            if free:
                del needs[name]
                running.append((now + seconds[name], name))
                free -= 1
        if not running:
            raise ValueError(f"entries: {', '.join(needs)} need one another")
        now, done = min(running)
        running.remove((now, done))
        free += 1
        for its in needs.values():
            its.discard(done)
    return now
