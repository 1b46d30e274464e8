"""A run of very many tiny units through the real scheduler, real processes and the real store: throughput, memory, files.

    python -m benchmarks.scale                          # 100,000 units in a temporary folder
    python -m benchmarks.scale --units 2000 --folder /mnt/disk

A unit is one example of `--steps` steps; a worker answers it at once with random sweeps of `--layers` x `--heads` heads. What
is measured is all that a run does besides computing: making units, dealing them, sending prompts and results, keeping each
result on the disk before it counts. Exit code 1 if the memory of the main process grows by more than `--most-mb` after the
first tenth, or if a unit is not in the store as it was answered.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from pycotmech.runs import ResultAxes, Settings, SweepState, SweepStore, open_folder, read
from pycotmech.runs.workers import Answer, PatchUnit, ReplicaSpec, UnitQueue
from pycotmech.runs.workers.local import LocalPool
from pycotmech.runs.workers.scheduler import Scheduler

SHAPE = "PYCOTMECH_SCALE_SHAPE"


class Double:
    """Answers at once."""

    def __init__(self) -> None:
        self.layers, self.heads = map(int, os.environ[SHAPE].split("x"))

    def answer(self, unit: PatchUnit) -> Answer:
        return Answer(
            unit.number, sweeps=[sweep(unit.number, s, self.layers, self.heads) for s in range(len(unit.clean))], seconds=1e-3
        )


def sweep(example: int, step: int, layers: int, heads: int) -> SimpleNamespace:
    raw = np.random.default_rng((example, step)).normal(size=(layers, heads))
    single = raw.astype("f4")
    return SimpleNamespace(
        raw=raw, values=single, effect=single, clean_metric=[1.0], corrupted_metric=[0.0], noise_floor=1e-6, control=None,
        sham=None,
    )  # fmt: skip


def open_double(spec: ReplicaSpec) -> Double:
    return Double()


def units(n: int, steps: int, tokens: int) -> Iterator[PatchUnit]:
    for e in range(n):
        clean = np.arange(tokens, dtype=np.int64) + e
        yield PatchUnit(e, (clean,) * steps, (clean + 1,) * steps, (None,) * steps, (None,) * steps, f"example {e}")


def resident_mb(pid: int | str = "self") -> float:
    for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--folder", default=None, help="where the results go (a temporary folder by default)")
    parser.add_argument("--most-mb", type=float, default=64.0)
    given = parser.parse_args()
    os.environ[SHAPE] = f"{given.layers}x{given.heads}"
    n, steps = given.units, list(range(given.steps))
    axes = ResultAxes([str(e) for e in range(n)], steps, ["simulated"] * given.steps, given.layers, given.heads)
    spec = ReplicaSpec(Settings(model="none"), "cpu", 1, None, opener="benchmarks.scale:open_double")
    found: dict[str, object] = {"units": n, "workers": given.workers, "steps": given.steps}
    with tempfile.TemporaryDirectory(dir=given.folder) as place, open_folder(place) as folder:
        start = time.perf_counter()
        store = SweepStore.create(folder, axes, identity={"model": "simulated"}, about={})
        found["create_s"] = round(time.perf_counter() - start, 2)
        pool, rows = LocalPool([spec] * given.workers), []
        every = max(1, n // 20)
        with Scheduler(pool) as engine:
            queue = UnitQueue(units(n, given.steps, given.tokens))
            start = last = time.perf_counter()
            for done, answer in enumerate(engine.answers(queue), 1):
                store.finish(answer.unit, steps, answer.sweeps, answer.seconds)
                if done % every == 0:
                    now = time.perf_counter()
                    rows.append((done, every / (now - last), resident_mb(), max(map(resident_mb, pool.pids))))
                    print("{:>8} units  {:7.1f} units/s  main {:6.1f} MB  worker {:6.1f} MB".format(*rows[-1]), flush=True)
                    last = now
            found["seconds"] = round(time.perf_counter() - start, 1)
            found["cpu_seconds"] = round(time.process_time(), 1)
        found["units_per_s"] = round(n / float(found["seconds"]), 1)  # type: ignore[arg-type]
        settled = rows[len(rows) // 10][2]
        found["main_mb"], found["growth_mb"] = round(rows[-1][2], 1), round(max(r[2] for r in rows) - settled, 1)
        sizes = [(path.stat().st_size, path.stat().st_blocks * 512) for path in folder.rglob("*") if path.is_file()]
        found |= {"files": len(sizes), "bytes": sum(s for s, _ in sizes), "bytes_on_disk": sum(b for _, b in sizes)}
        start = time.perf_counter()
        complete = bool((store.state() == SweepState.FINISHED).all())
        found["read_state_s"] = round(time.perf_counter() - start, 2)
        start = time.perf_counter()
        from pycotmech.runs.lazy import open_sweeps

        data = open_sweeps(folder)
        found["open_s"] = round(time.perf_counter() - start, 2)
        for e, s in itertools.product(np.linspace(0, n - 1, 20).astype(int).tolist(), (0, given.steps - 1)):
            raw = data["raw"][e, s].values
            complete &= np.array_equal(raw, sweep(e, s, given.layers, given.heads).raw)
        start = time.perf_counter()
        complete &= read(folder)["state"].size == n * given.steps
        found["read_all_s"] = round(time.perf_counter() - start, 1)
    print(json.dumps(found, indent=2))
    flat = float(found["growth_mb"]) <= given.most_mb  # type: ignore[arg-type]
    print(f"memory {'flat' if flat else 'grows'}, results {'complete' if complete else 'not as they were answered'}")
    return 0 if flat and complete else 1


if __name__ == "__main__":
    sys.exit(main())
