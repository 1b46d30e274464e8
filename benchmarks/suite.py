"""The benchmark suite: what you get on this machine, in one table. `make bench`, under 10 minutes on two idle cores.

    python -m benchmarks.suite --out bench-results                    # all questions (benchmarks/questions.py)
    python -m benchmarks.suite --only heads,kernel --threads 1        # some groups
    python -m benchmarks.suite --size tiny                            # half a minute: whether it runs at all

Each question is asked in a process of its own: ours and a rival are checked, and then all ways are timed in turn, round after
round, so that other load meets all of them; medians, lowest and highest are kept, and the ratio of each round. In the same
process the products of ours are run bare, with the same weights (`machine.py`), or the largest product and a copy are timed:
ours' share of the machine. Then each way is run once in a further process, whose peak memory is the operating system's count
(VmHWM, weights and Python included).

OUT gets results.json and table.md, after each question. `benchmarks/table.py` makes docs/performance.md from the JSON,
`benchmarks/compare.py` compares its ratios with a stored baseline. The exit status is 1 if a check failed or a process died.
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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from benchmarks.questions import Question

ROOT = Path(__file__).resolve().parent.parent
OURS = "ours"


# ---- in the process of a question ----------------------------------------------------------------------------------------


def ask(name: str, size: str, dtype: str, threads: int, rounds: int | None) -> dict[str, Any]:
    """Checks and times one question: a row of the results, without memory."""
    from benchmarks.questions import question_named

    torch.set_num_threads(threads)
    question = question_named(name, size)
    asked = question.make(dtype)
    checked = asked.check()
    ways = [asked.ours, *asked.rivals]
    bare, by = _bare(asked)
    once = {way.name: _clocked(way.once) for way in ways if way.once is not None}
    times: dict[str, list[float]] = {way.name: [] for way in ways} | {"bare": []}
    asked.ours.run()  # buffers, and what is compiled or read at the first call
    for _ in range(rounds or question.rounds):
        for way in ways:
            times[way.name].append(_clocked(way.run) * way.times + once.get(way.name, 0.0))
        times["bare"].append(bare())
    ours = times[asked.ours.name]
    share = [b / s for b, s in zip(times["bare"], ours, strict=True)]
    return {
        "what": asked.ours.name,
        "note": asked.note,
        "check": checked,
        "rounds": len(ours),
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


def _bare(asked) -> tuple[Any, str]:
    """A call that gives the seconds that the machine itself needs for ours, and what these are."""
    from benchmarks.machine import Bare, recorded
    from pycotmech.cost.demand import layer_weight_bytes

    if asked.products:
        with recorded() as recording:
            asked.ours.run()
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
    from benchmarks.questions import question_named

    torch.set_num_threads(threads)
    asked = question_named(name, size).make(dtype)
    chosen = asked.ours if way == OURS else next(w for w in asked.rivals if w.name == way)
    from benchmarks import llama7b

    llama7b.forget_peak()  # that of making the question: the weights stay
    chosen.run()
    return {"gib": llama7b.peak_gib()}


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


def child(words: Sequence[str], timeout: float) -> dict[str, Any]:
    """Runs this file in a process of its own; {"error": ...} if it fails."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    environment.setdefault("HF_HUB_OFFLINE", "1")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.suite", *words], cwd=ROOT, env=environment, capture_output=True, text=True,
            timeout=timeout,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"stopped after {timeout:.0f} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:400]}
    return json.loads(done.stdout.splitlines()[-1])


def asked_apart(question: Question, dtype: str, threads: int, rounds: int | None, *, memory: bool) -> dict[str, Any]:
    """One question in processes of its own: first times, then each way's memory, two ways at once since nothing is timed."""
    options = ["--threads", str(threads), *(["--rounds", str(rounds)] if rounds else [])]

    def of(way: str) -> dict[str, Any]:
        return child([*options, "--child", question.name, question.size, dtype, way], 900)

    row = of("all")
    if "error" in row or not memory:
        return row
    ways = [OURS, *(rival["name"] for rival in row["rivals"])]
    with ThreadPoolExecutor(max(1, min(2, os.cpu_count() or 1))) as pool:
        found = [answer.get("gib") for answer in pool.map(of, ways)]
    for way, gib in zip((row[OURS], *row["rivals"]), found, strict=True):
        way["gib"] = gib
    return row


def main(words: Sequence[str] | None = None) -> int:
    from benchmarks import table
    from benchmarks.questions import QUESTIONS, SIZES

    groups = sorted({q.group for q in QUESTIONS})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="Folder for results.json and table.md.")
    parser.add_argument("--only", default="", help=f"Groups to run, of {', '.join(groups)}.")
    parser.add_argument("--size", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="Threads of all ways; all cores by default.")
    parser.add_argument("--rounds", type=int, default=None, help="Rounds of every question (2 to 5 by default).")
    parser.add_argument("--minutes", type=float, default=9.5, help="No question is begun after so many minutes.")
    parser.add_argument("--no-memory", action="store_true", help="Leave out the processes that measure peak memory.")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.child:
        name, size, dtype, way = given.child
        found = (
            ask(name, size, dtype, given.threads, given.rounds)
            if way == "all"
            else remember(name, size, dtype, given.threads, way)
        )
        print(json.dumps(found))
        return 0
    only = [part.strip() for part in given.only.split(",") if part.strip()]
    if unknown := [part for part in only if part not in groups]:
        parser.error(f"--only: got {', '.join(unknown)}; expected groups among {', '.join(groups)}")
    given.out.mkdir(parents=True, exist_ok=True)
    start, failed = time.monotonic(), 0
    record: dict[str, Any] = {"machine": machine(sorted({1, given.threads})), "rows": []}
    print(table.machine_line(record["machine"]), flush=True)
    chosen = [(q, dtype) for q in QUESTIONS for dtype in q.dtypes if q.size in given.size and (not only or q.group in only)]
    for question, dtype in chosen:
        row: dict[str, Any] = {"question": question.name, "group": question.group, "size": question.size, "dtype": dtype}
        row["threads"] = given.threads
        began = time.monotonic()
        if began - start > 60 * given.minutes:
            row["error"] = "not begun: the time was over"
        else:
            row |= asked_apart(question, dtype, given.threads, given.rounds, memory=not given.no_memory)
        failed += "error" in row
        record["rows"].append(row)
        record["minutes"] = round((time.monotonic() - start) / 60, 2)
        (given.out / "results.json").write_text(json.dumps(record, indent=1), "utf-8")
        (given.out / "table.md").write_text(table.page(record), "utf-8")
        print(f"[{time.monotonic() - start:5.0f} s] {table.line(row)}  ({time.monotonic() - began:.0f} s)", flush=True)
    print(f"{given.out / 'results.json'}, {given.out / 'table.md'}: {record.get('minutes', 0):.1f} min")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
