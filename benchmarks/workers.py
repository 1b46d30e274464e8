"""How much faster several workers are than one, and Ray than processes of this machine.

    python -m benchmarks.workers                 # one worker and two, local; median of 5 runs of at least 2 minutes
    python -m benchmarks.workers --ray           # two workers, local and Ray
    python -m benchmarks.workers --smoke         # seconds, on tiny-cot: whether it runs at all

Runs alternate. Each is `pycotmech.runs.run` into a new folder, one thread for each worker. Two times are taken: of the whole
call, and of the sweeps alone, from the first to the last, when all workers have loaded their model. The results of all runs
must be equal to the last bit. The machine should be idle. Exit code 1 if two workers are less than 1.8 times as fast as one, or
Ray is more than 10 % slower than local workers.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from pycotmech.runs import ProgressReporter, Settings, experiment, read

LEAST_SPEEDUP, MOST_OVERHEAD = 1.8, 1.10


class Clock(ProgressReporter):
    """Times the task "patching"."""

    def __init__(self) -> None:
        self.began = self.seconds = 0.0

    def begin(self, task: str, total: int, unit: str = "") -> None:
        self.task, self.began = task, time.perf_counter()

    def end(self) -> None:
        if self.task == "patching":
            self.seconds = time.perf_counter() - self.began


def timed(settings: Settings, folder: Path, engine: str, workers: int) -> tuple[float, float, int]:
    """Seconds of the whole run and of its sweeps, and how many these are."""
    clock, start = Clock(), time.perf_counter()
    outcome = experiment.run(settings, folder, engine=engine, workers=workers, progress=clock)
    assert not outcome.failures, outcome.failures
    return time.perf_counter() - start, clock.seconds, outcome.done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--minutes", type=float, default=2.0, help="least time of each run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ray", action="store_true", help="compare Ray with local workers")
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    settings = Settings(model=given.model, dtype=given.dtype, examples=2, positions=(-1,), threads=1, memory_gb=1.0)
    minutes, repeats = given.minutes, given.repeats
    if given.smoke:
        settings, minutes, repeats = replace(settings, model="tiny-cot", shots=0), 0.0, 1
    n = given.workers
    kinds = [("local", n), ("ray", n)] if given.ray else [("local", 1), ("local", n)]
    with tempfile.TemporaryDirectory() as place:
        _, seconds, done = timed(settings, Path(place, "first"), "serial", 1)
        per_example = max(seconds / 2, 1e-3)
        # The fastest of the runs must take long enough.
        examples = max(2 * n, math.ceil(60 * minutes * n * 1.1 / per_example))
        settings = replace(settings, examples=examples)
        print(f"{settings.model}: {examples} examples in each run ({per_example:.2f} s each alone), one thread for each worker")
        found: dict[tuple[str, int], list[tuple[float, float]]] = {kind: [] for kind in kinds}
        reference = None
        for repeat in range(repeats):
            for engine, workers in kinds if repeat % 2 == 0 else kinds[::-1]:
                folder = Path(place, f"{engine}-{workers}-{repeat}")
                whole, sweeps, done = timed(settings, folder, engine, workers)
                found[engine, workers].append((whole, sweeps))
                print(
                    f"{engine}, workers: {workers}: {done} sweeps, {sweeps:.1f} s; with start and grading {whole:.1f} s",
                    flush=True,
                )
                values = read(folder)["effect"].values
                reference = values if reference is None else reference
                np.testing.assert_array_equal(values, reference)
    first, second = ([statistics.median(t[i] for t in found[kind]) for i in (0, 1)] for kind in kinds)
    ratio = first[1] / second[1]
    print(f"medians of the sweeps: {kinds[0]} {first[1]:.1f} s, {kinds[1]} {second[1]:.1f} s: {ratio:.2f} times as fast")
    print(f"of the whole runs: {first[0]:.1f} s, {second[0]:.1f} s: {first[0] / second[0]:.2f} times as fast")
    print("all runs gave the same bits")
    if given.smoke:
        return 0
    good = ratio >= 1 / MOST_OVERHEAD if given.ray else ratio >= LEAST_SPEEDUP
    print("as promised" if good else "slower than promised")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
