"""The benchmark suite: what you get on this machine, in one table. `make bench`, under 10 minutes on two idle cores.

    python -m benchmarks.suite --out bench-results                    # all questions (benchmarks/questions.py)
    python -m benchmarks.suite --only heads,kernel --threads 1        # some groups
    python -m benchmarks.suite --size tiny                            # half a minute: whether it runs at all

Each question is asked in a process of its own: ours and the rivals are checked, and then all ways are timed in turn, round
after round, so that other load meets all of them; medians, lowest and highest are kept, and the ratio of each round. In the
same process the products of ours are run bare, with the same weights (`machine.py`), or the largest product and a copy are
timed: ours' share of the machine. When all questions are timed, each way is run once more in a process that sets up nothing
else, two processes at once: their peak memory is the operating system's count (VmHWM, weights and Python included).

OUT gets results.json and table.md, after each question. `benchmarks/table.py` makes docs/performance.md from the JSON,
`benchmarks/compare.py` compares its ratios with a stored baseline. What the stages of each question took is printed to stderr.
The exit status is 1 if a check failed or a process died.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import table

if TYPE_CHECKING:
    from benchmarks.asked import Asked, Question
    from benchmarks.machine import Recording

ROOT = Path(__file__).resolve().parent.parent
OURS = "ours"
LATE = {"error": "not begun: the time was over"}


# ---- in the process of a question ----------------------------------------------------------------------------------------


class Stages:
    """Seconds of one stage after another."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    def done(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self._start, 2)
        self._start = now


def ask(name: str, size: str, dtype: str, threads: int, rounds: int | None) -> dict[str, Any]:
    """Checks and times one question: a row of the results, without memory."""
    from benchmarks.machine import recorded
    from benchmarks.questions import question_named

    torch.set_num_threads(threads)
    question, stages = question_named(name, size), Stages()
    asked = question.make(dtype)
    stages.done("model")
    with recorded() as recording:  # of a run that also makes buffers, and what is compiled or read at the first call
        found = asked.ours.run()
    stages.done("first run")
    checked = asked.check(found)
    del found
    stages.done("check")
    bare, by = _bare(asked, recording)
    stages.done("bare")
    ways = [asked.ours, *asked.rivals]
    once = {call: _clocked(call) for call in dict.fromkeys(way.once for way in ways) if call is not None}
    stages.done("once")
    times: dict[str, list[float]] = {way.name: [] for way in ways} | {"bare": []}
    for _ in range(rounds or question.rounds):
        for way in ways:
            times[way.name].append(_clocked(way.run) * way.times + (once[way.once] if way.once else 0.0))
        times["bare"].append(bare())
    stages.done("rounds")
    ours = times[asked.ours.name]
    share = [b / s for b, s in zip(times["bare"], ours, strict=True)]
    return {
        "what": asked.ours.name,
        "note": asked.note,
        "check": checked,
        "rounds": len(ours),
        "stages": stages.seconds,
        OURS: spread(ours),
        "limit": {**spread(times["bare"]), "by": by, "share": spread(share)},
        "rivals": [
            {
                "name": way.name,
                **spread(times[way.name]),
                "part": way.times != 1.0,
                "ratio": spread([t / s for t, s in zip(times[way.name], ours, strict=True)]),
            }
            for way in asked.rivals
        ],
    }


def _bare(asked: Asked, recording: Recording) -> tuple[Callable[[], float], str]:
    """A call that gives the seconds that the machine itself needs for ours, and what these are."""
    from benchmarks.machine import Bare
    from pycotmech.cost.demand import layer_weight_bytes

    if asked.demand is None:
        bare = Bare(recording)
        bare.run()  # buffers
        return lambda: bare.run().total(), "its products, bare"
    rate, copy = product_rate(asked.cfg.dtype), copy_rate()
    least = asked.demand.flop(asked.cfg) / rate
    reads = asked.demand.passes * layer_weight_bytes(asked.cfg) / copy
    return lambda: max(least, reads), "its FLOP at the largest product's speed"


def product_rate(dtype: torch.dtype, n: int = 2048) -> float:
    """FLOP/s of a large product: the best of four."""
    from pycotmech import ops

    a, b = (torch.rand(n, n).to(dtype) for _ in range(2))
    return 2.0 * n**3 / min(_clocked(lambda: ops.linear(a, b)) for _ in range(4))


def copy_rate() -> float:
    """Bytes/s of a copy of 256 MiB, read and written: the best of four."""
    x = torch.zeros(2**26)
    y = torch.zeros_like(x)
    return 2.0 * x.nbytes / min(_clocked(lambda: y.copy_(x)) for _ in range(4))


def remember(name: str, size: str, dtype: str, threads: int, way: str) -> dict[str, Any]:
    """Peak memory of one way, run once."""
    from benchmarks import llama7b
    from benchmarks.questions import question_named

    torch.set_num_threads(threads)
    question, stages = question_named(name, size), Stages()
    asked = question.make(dtype)
    stages.done("model")
    chosen = asked.ours if way == OURS else next(w for w in asked.rivals if w.name == way)
    llama7b.forget_peak()  # that of loading: the weights stay
    (chosen.least or chosen.run)()
    stages.done("run")
    return {"gib": llama7b.peak_gib(), "stages": stages.seconds}


def _clocked(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def spread(values: Sequence[float]) -> dict[str, float]:
    """What a table shows of repeated rounds."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


# ---- the suite -----------------------------------------------------------------------------------------------------------


def processor() -> str:
    """Its name, as Linux gives it."""
    try:
        names = re.findall(r"^model name\s*: (.+)", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        names = []
    return names[0].strip() if names else platform.processor() or platform.machine()


def machine(threads: Sequence[int]) -> dict[str, Any]:
    """What the figures are of. Rates are measured here and now."""
    import transformers

    import pycotmech as pcm

    rates = {}
    for n in threads:
        torch.set_num_threads(n)
        for dtype in (torch.float32, torch.bfloat16):
            rates[f"{str(dtype)[6:]}, {n} thread{'s' * (n != 1)}"] = product_rate(dtype) / 1e9
    try:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        version = commit.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        version = pcm.__version__
    return {
        "cpu": processor(), "cores": os.cpu_count(), "torch": torch.__version__, "transformers": transformers.__version__,
        "pycotmech": version, "date": time.strftime("%Y-%m-%d"), "load": round(os.getloadavg()[0], 2),
        "products_gflops": {k: round(v, 1) for k, v in rates.items()}, "copy_gbs": round(copy_rate() / 1e9, 1),
    }  # fmt: skip


class Child:
    """This file in a process of its own, which imports what it needs and then waits until it is asked for its answer.

    passive: its idle threads leave the cores to other processes.
    """

    def __init__(self, words: Sequence[str], *, passive: bool) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
        environment.setdefault("HF_HUB_OFFLINE", "1")
        if passive:
            environment["OMP_WAIT_POLICY"] = "passive"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.suite", *words, "--began", str(time.time())],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ready(self) -> None:
        """Returns when the process has imported what it needs, or has died."""
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def answer(self, timeout: float) -> dict[str, Any]:
        """What it finds; {"error": ...} if it fails or takes longer. The process has ended afterwards."""
        try:
            out, errors = self._process.communicate("go\n", timeout=timeout)
        except subprocess.TimeoutExpired:
            self.stop()
            return {"error": f"stopped after {timeout:.0f} s"}
        if status := self._process.returncode:
            return {"error": (errors.strip().splitlines() or [f"exit status {status}"])[-1][:400]}
        return json.loads(out.splitlines()[-1])

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


class Suite:
    """A run of the suite: its record, written to `out` as it grows."""

    def __init__(self, out: Path, threads: int, rounds: int | None, minutes: float) -> None:
        self.out, self.threads, self.rounds, self.minutes = out, threads, rounds, minutes
        self.start = time.monotonic()
        self.record: dict[str, Any] = {"machine": machine(sorted({1, threads})), "rows": []}
        self._stages: dict[str, float] = {}
        self._say(f"the machine: {self.seconds:.0f} s")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    @property
    def late(self) -> bool:
        return self.seconds > 60 * self.minutes

    def _say(self, text: str) -> None:
        print(f"[{self.seconds:5.0f} s] {text}", file=sys.stderr, flush=True)

    def write(self) -> None:
        self.record["minutes"] = round(self.seconds / 60, 2)
        (self.out / "results.json").write_text(json.dumps(self.record, indent=1), "utf-8")
        (self.out / "table.md").write_text(table.page(self.record), "utf-8")

    def _child(self, row: dict[str, Any], way: str) -> Child:
        """Starts a process for a row: `all` times it, the name of a way gives the memory of that."""
        options = ["--threads", str(self.threads), *(["--rounds", str(self.rounds)] if self.rounds else [])]
        return Child([*options, "--child", row["question"], row["size"], row["dtype"], way], passive=way != "all")

    def _answer(self, child: Child, row: dict[str, Any], way: str) -> dict[str, Any]:
        found = child.answer(timeout=900)
        stages = found.pop("stages", {})
        for stage, seconds in stages.items():
            stage = stage if way == "all" else f"memory, {stage}"
            self._stages[stage] = self._stages.get(stage, 0.0) + seconds
        taken = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in stages.items())
        said = f"{found['gib']:.2f} GiB, {way}" if "gib" in found else found.get("error", "timed")
        self._say(f"{table.name_of(row)}: {said} ({taken})")
        return found

    def time(self, questions: Iterable[tuple[Question, str]]) -> None:
        """Adds a row for each question and dtype, without memory. Two processes import at once; then one is timed after the
        other, the second waiting meanwhile."""
        queue = list(questions)
        for pair in (queue[i : i + 2] for i in range(0, len(queue), 2)):
            rows = [
                {"question": q.name, "group": q.group, "size": q.size, "dtype": dtype, "threads": self.threads}
                for q, dtype in pair
            ]
            children = [] if self.late else [self._child(row, "all") for row in rows]
            try:
                for child in children:
                    child.ready()
                for i, row in enumerate(rows):
                    row |= self._answer(children[i], row, "all") if children else LATE
                    self.record["rows"].append(row)
                    self.write()
                    print(f"[{self.seconds:5.0f} s] {table.line(row)}", flush=True)
            finally:
                for child in children:
                    child.stop()

    def remember(self) -> None:
        """Adds the memory of all ways, two processes at once, for nothing is timed. A way whose process fails has no figure and
        a `gib_error` that says why."""

        def one(job: tuple[dict[str, Any], dict[str, Any], str]) -> None:
            row, of, way = job
            found = LATE if self.late else self._answer(self._child(row, way), row, way)
            if "gib" in found:
                of["gib"] = found["gib"]
            else:
                of["gib_error"] = found["error"]

        jobs = []
        for row in self.record["rows"]:
            if "error" not in row:
                jobs += [(row, row[OURS], OURS), *((row, rival, rival["name"]) for rival in row["rivals"])]
        with ThreadPoolExecutor(max(1, min(2, os.cpu_count() or 1))) as pool:
            list(pool.map(one, jobs))
        self.write()

    @property
    def failures(self) -> list[str]:
        """Rows without times and ways without memory, with the reasons."""
        found = []
        for row in self.record["rows"]:
            of = table.name_of(row)
            if "error" in row:
                found.append(f"{of}: {row['error']}")
                continue
            parts = [(OURS, row[OURS]), *((rival["name"], rival) for rival in row["rivals"])]
            found += [f"{of}: memory of {name}: {part['gib_error']}" for name, part in parts if "gib_error" in part]
        return found

    def end(self) -> None:
        self._say("seconds in all: " + ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in self._stages.items()))


def main(words: Sequence[str] | None = None) -> int:
    from benchmarks.questions import QUESTIONS, SIZES

    groups = sorted({q.group for q in QUESTIONS})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="Folder for results.json and table.md.")
    parser.add_argument("--only", default="", help=f"Groups to run, of {', '.join(groups)}.")
    parser.add_argument(
        "--size", nargs="+", default=[s for s in SIZES if s != "tiny"], choices=SIZES, help="All but tiny by default."
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="Threads of all ways; all cores by default.")
    parser.add_argument("--rounds", type=int, default=None, help="Rounds of every question (2 to 5 by default).")
    parser.add_argument("--minutes", type=float, default=9.5, help="Nothing is begun after so many minutes.")
    parser.add_argument("--no-memory", action="store_true", help="Leave out the processes that measure peak memory.")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, default=time.time(), help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.child:
        name, size, dtype, way = given.child
        imports = round(time.time() - given.began, 2)
        print("ready", flush=True)
        sys.stdin.readline()
        found = (
            ask(name, size, dtype, given.threads, given.rounds)
            if way == "all"
            else remember(name, size, dtype, given.threads, way)
        )
        found["stages"] = {"imports": imports, **found["stages"]}
        print(json.dumps(found))
        return 0
    only = [part.strip() for part in given.only.split(",") if part.strip()]
    if unknown := [part for part in only if part not in groups]:
        parser.error(f"--only: got {', '.join(unknown)}; expected groups among {', '.join(groups)}")
    given.out.mkdir(parents=True, exist_ok=True)
    suite = Suite(given.out, given.threads, given.rounds, given.minutes)
    print(table.machine_line(suite.record["machine"]), flush=True)
    suite.time((q, dtype) for q in QUESTIONS if q.size in given.size and (not only or q.group in only) for dtype in q.dtypes)
    if not given.no_memory:
        suite.remember()
    suite.end()
    for failure in suite.failures:
        print(f"NO FIGURE: {failure}")
    print(f"{given.out / 'results.json'}, {given.out / 'table.md'}: {suite.record.get('minutes', 0):.1f} min")
    return 1 if suite.failures else 0


if __name__ == "__main__":
    sys.exit(main())
