"""What it costs to keep results: time and bytes of a finished example, reading, two writers, a killed writer.

    python -m benchmarks.store                   # the store of `pycotmech.runs`
    python -m benchmarks.store --parts overhead  # the store's share of a run on smollm2-135m, some minutes
    python benchmarks/store.py --icechunk        # the same writes through Icechunk (pip install icechunk zarr)

An example is `--steps` sweeps of `--layers` x `--heads` heads, as one unit: its arrays are written, and it is then marked as
finished. The figures in docs/decisions.md are from here.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

GRIDS = {"raw": "f8", "values": "f4", "effect": "f4", "control": "f4"}
CELLS = {"clean_metric": "f8", "corrupted_metric": "f8", "noise_floor": "f8", "sham": "f8", "seconds": "f8"}
MARK = {"state": "i1"}


def sweep(at: int, shape: tuple[int, int]) -> SimpleNamespace:
    grid = np.random.default_rng(at).normal(size=shape)
    single = grid.astype("f4")
    return SimpleNamespace(
        raw=grid, values=single, effect=single, control=single, clean_metric=[1.0], corrupted_metric=[0.0], noise_floor=1e-6,
        sham=0.0,
    )  # fmt: skip


class Ours:
    """The store of `pycotmech.runs`."""

    def __init__(self, folder: Path, given: argparse.Namespace, *, create: bool) -> None:
        from pycotmech.runs import ResultAxes, SweepStore

        self.shape, self.steps = (given.layers, given.heads), list(range(given.steps))
        if create:
            names = [str(i) for i in range(given.examples)]
            axes = ResultAxes(names, self.steps, ["induction"] * given.steps, given.layers, given.heads)
            self.store = SweepStore.create(folder, axes, identity={"model": "benchmark"}, about={})
        else:
            self.store = SweepStore.resume(folder)

    def finish(self, example: int) -> None:
        self.store.finish(example, self.steps, [sweep(example + s, self.shape) for s in self.steps], 1.0)

    def finished(self) -> int:
        return int((self.store.state() == 1).all(1).sum())


class Icechunk:
    """The same arrays in an Icechunk repository, a commit for each example."""

    def __init__(self, folder: Path, given: argparse.Namespace, *, create: bool) -> None:
        import icechunk
        import zarr

        self.steps, self.shape = given.steps, (given.layers, given.heads)
        storage = icechunk.local_filesystem_storage(str(folder / "icechunk"))
        self.repo = (icechunk.Repository.create if create else icechunk.Repository.open)(storage)
        self.retries = 0
        if create:
            session = self.repo.writable_session("main")
            group = zarr.create_group(session.store)
            n = (given.examples, given.steps)
            for name, dtype in {**GRIDS, **CELLS, **MARK}.items():
                full = (*n, *self.shape) if name in GRIDS else n
                group.create_array(name, shape=full, chunks=(1, *full[1:]), dtype=dtype, fill_value=0)
            session.commit("created")

    def finish(self, example: int) -> None:
        import icechunk
        import zarr

        sweeps = [sweep(example + s, self.shape) for s in range(self.steps)]
        session = self.repo.writable_session("main")
        group = zarr.open_group(session.store, mode="r+")
        for name in GRIDS:
            group[name][example] = np.stack([getattr(s, name) for s in sweeps])
        for name in CELLS:
            group[name][example] = np.ones(self.steps)
        group["state"][example] = np.ones(self.steps, "i1")
        while True:
            try:
                session.commit(f"example {example}", rebase_with=icechunk.ConflictDetector(), rebase_tries=100)
                return
            except icechunk.ConflictError:
                self.retries += 1
                session.rebase(icechunk.ConflictDetector())

    def finished(self) -> int:
        import zarr

        group = zarr.open_group(self.repo.readonly_session("main").store, mode="r")
        return int((np.asarray(group["state"][:]) == 1).all(1).sum())


def kind(given: argparse.Namespace) -> type[Ours] | type[Icechunk]:
    return Icechunk if given.icechunk else Ours


def files_of(folder: Path) -> tuple[int, int]:
    """Files, and bytes that they hold."""
    found = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return len(found), sum(stat.st_size for stat in found)


def write(given: argparse.Namespace, folder: Path) -> None:
    start = time.perf_counter()
    store = kind(given)(folder, given, create=True)
    created = time.perf_counter() - start
    seconds = []
    for example in range(given.examples):
        start = time.perf_counter()
        store.finish(example)
        seconds.append(time.perf_counter() - start)
    files, size = files_of(folder)
    ordered = sorted(seconds)
    print(f"created in {1e3 * created:.0f} ms")
    high = ordered[int(0.95 * len(ordered))]
    print(
        f"an example: {1e3 * statistics.median(seconds):.1f} ms (median), {1e3 * high:.1f} ms (95 %); "
        f"first tenth {1e3 * statistics.median(seconds[: max(1, len(seconds) // 10)]):.1f}, "
        f"last tenth {1e3 * statistics.median(seconds[-max(1, len(seconds) // 10) :]):.1f} ms"
    )
    print(f"{files} files, {size / given.examples / 1e3:.1f} kB an example")
    start = time.perf_counter()
    again = kind(given)(folder, given, create=False)
    print(f"opened to continue in {time.perf_counter() - start:.2f} s: {again.finished()} of {given.examples} finished")


def child(given: argparse.Namespace, folder: Path, first: int, step: int) -> None:
    store = kind(given)(folder, given, create=False)
    for example in range(first, given.examples, step):
        store.finish(example)
        print(example, flush=True)


def killed(given: argparse.Namespace, folder: Path) -> None:
    """A writer killed at random moments; what it had said to be finished must be there."""
    generator, lost, said_in_all, files = np.random.default_rng(0), 0, 0, 0
    for at in range(given.kills):
        place = folder / str(at)
        place.mkdir()
        kind(given)(place, given, create=True)
        words = [sys.executable, __file__, "--child", str(place), *sys.argv[1:]]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        while not process.stdout.readline().strip().isdigit():  # Icechunk warns there too
            pass
        time.sleep(generator.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        said = 1 + sum(line.strip().isdigit() for line in process.stdout.read().splitlines())
        process.wait()
        lost += max(0, said - kind(given)(place, given, create=False).finished())
        said_in_all += said
        files += files_of(place)[0]
    print(f"killed {given.kills} times: {said_in_all} examples said to be finished, {lost} lost; {files} files")


def two_writers(given: argparse.Namespace, folder: Path) -> None:
    kind(given)(folder, given, create=True)
    start = time.perf_counter()
    processes = [multiprocessing.get_context("spawn").Process(target=child, args=(given, folder, i, 2)) for i in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    seconds = time.perf_counter() - start
    found = kind(given)(folder, given, create=False).finished()
    codes = [process.exitcode for process in processes]
    print(f"two writers: exit codes {codes}, {found} of {given.examples} finished in {seconds:.1f} s with their start")


def reading(given: argparse.Namespace, folder: Path) -> None:
    """Opening and loading a folder of `--examples` examples, as `pcm.open_results` does."""
    from pycotmech.runs.results import open_results

    for at in range(3):
        start = time.perf_counter()
        results = open_results(folder)
        opened = time.perf_counter()
        effect = results.data["effect"].values
        loaded, sweeps = time.perf_counter() - opened, effect.shape[0] * effect.shape[1]
        size = f"{effect.nbytes / 1e6:.0f} MB"
        print(f"time {at + 1}: {sweeps:,} sweeps opened in {opened - start:.2f} s, one variable of {size} in {loaded:.2f} s")


def overhead(given: argparse.Namespace, folder: Path) -> None:
    """What a run on a real model spends in the store: every call of it is timed, waiting for the disk included."""
    from unittest.mock import patch

    from pycotmech.runs import ProgressReporter, Settings, SweepStore, experiment

    class Clock(ProgressReporter):
        seconds = 0.0

        def begin(self, task: str, total: int, unit: str = "") -> None:
            self.task, self.began = task, time.perf_counter()

        def end(self) -> None:
            if self.task == "patching":
                self.seconds += time.perf_counter() - self.began

    for positions, examples in (((-1,), 16), (None, 6)):
        inside: list[float] = []
        settings = Settings(model="smollm2-135m", dtype="auto", examples=examples, positions=positions, threads=given.threads)
        clock = Clock()
        with patch.object(SweepStore, "finish", _timed(SweepStore.finish, inside)):
            outcome = experiment.run(settings, folder / f"{examples}", progress=clock)
        where = "last position" if positions else "all positions"
        print(
            f"smollm2-135m, {where}: {outcome.done} sweeps in {clock.seconds:.1f} s, {len(inside)} units kept in "
            f"{sum(inside):.2f} s ({1e3 * statistics.median(inside):.1f} ms each, median): "
            f"{sum(inside) / clock.seconds:.2%} of the time",
            flush=True,
        )


def _timed(call, seconds: list[float]):
    """The call, which keeps how long each took."""

    def keep(*args, **kwargs):
        start = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - start)

    return keep


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--icechunk", action="store_true", help="Write through Icechunk.")
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--parts", nargs="+", default=["write", "killed", "two", "read"])
    parser.add_argument("--threads", type=int, default=2, help="Threads of the overhead's runs.")
    parser.add_argument("--folder", default=None, help="Where to write; the disk matters. By default a temporary folder.")
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        while True:
            child(given, Path(given.child), 0, 1)
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        for part in given.parts:
            folder = Path(place, part)
            if part == "read":
                folder = Path(place, "write")
                if not given.icechunk:
                    reading(given, folder)
                continue
            folder.mkdir()
            if part == "two" and not given.icechunk:
                print("two writers: refused by the folder's lock (tests/runs/test_folder.py)")
                continue
            {"write": write, "killed": killed, "two": two_writers, "overhead": overhead}[part](given, folder)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
