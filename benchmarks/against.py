"""Compares the speed on this CPU with another commit's, in the same sitting: `python -m benchmarks.against 9892095`.

The commit is checked out into a worktree of its own (`--folder`, build/against-<commit> by default) and its extension is built
there with this environment's packages. Each round starts a process of either side. Both load SmolLM2-135M and stay alive; they
run a case once to warm up, and then take turns, run by run, one at work while the other waits. So a machine that is slow for
ten seconds is slow for both. The ratio of a round is the median over its pairs of runs, this checkout's time to the other's:
above 1 it got slower. The ratio of a case is the median over the rounds, since two processes of one checkout differ as well
(where their memory lies). The values of both are compared too.

    python -m benchmarks.against 9892095 --minutes 6             # about 6 minutes, and one for the first build
    python -m benchmarks.against 9892095 --only summary --rounds 2
    python -m benchmarks.against . --rounds 3                    # this checkout against itself: the noise

Writes `--out` (against.json) after every round. The exit status is 1 if a case's ratio lies above 1 + `--margin` (5 %), and
above 1 in every round, of which there have to be two.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TOKENS, SUFFIX, SUMMARY = 669, 42, 1024
MODEL = "smollm2-135m"
CASES = {
    "last, float32": (7, "float32"),
    "last, bfloat16": (7, "bfloat16"),
    "all, float32": (3, "float32"),
    "all, bfloat16": (3, "bfloat16"),
    "summary, float32": (7, "float32"),
    "summary, bfloat16": (7, "bfloat16"),
}
"""Case -> pairs of runs in one round, dtype. last, all: `patch_heads` of all heads at the last position, and at all of the
suffix, cold; summary: `attention_summary` with all statistics."""


# ---- in the process of one checkout: only what both commits have --------------------------------------------


def child(root: str, threads: int) -> None:
    """Reads names of cases, a line each, and runs each with the pycotmech of one checkout; answers with a line of JSON:
    [seconds, sum of the values, largest of them]."""
    import numpy as np
    import torch

    import pycotmech as pcm

    if Path(root).resolve() not in Path(pcm.__file__).resolve().parents:
        raise SystemExit(f"pycotmech is {pcm.__file__}; expected it in {root}")
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(10, 49000, (TOKENS,), generator=generator)
    corrupted = clean.clone()
    corrupted[-SUFFIX:-1] = torch.randint(10, 49000, (SUFFIX - 1,), generator=generator)
    models: dict[str, Any] = {}
    for line in sys.stdin:
        case = line.strip()
        dtype = CASES[case][1]
        if dtype not in models:
            models = {dtype: pcm.Model.from_pretrained(MODEL, dtype=dtype)}
        model = models[dtype]
        model.prefixes.clear()
        start = time.perf_counter()
        if case.startswith("summary"):
            values = pcm.attention_summary(model, clean[:SUMMARY], top_k=8).entropy
        else:
            where = [TOKENS - 1] if case.startswith("last") else None
            options = dict(positions=where, metric="logit_diff", answer=300, wrong=301, normalize=False)
            values = pcm.patch_heads(model, clean, corrupted, **options).raw
        seconds = time.perf_counter() - start
        found = np.asarray(values, dtype=float)
        print(json.dumps([seconds, float(found.sum()), float(np.abs(found).max())]), flush=True)


# ---- both checkouts in turn --------------------------------------------------------------------------------------------------


def checkout(commit: str, folder: Path | None) -> Path:
    """A worktree of the commit with its extension built; made once."""
    if commit == ".":
        return ROOT
    name = subprocess.run(
        ["git", "rev-parse", "--short", "--verify", f"{commit}^{{commit}}"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    folder = (folder or ROOT / "build" / f"against-{name}").resolve()
    if not (folder / "setup.py").is_file():
        subprocess.run(["git", "worktree", "add", "--detach", str(folder), name], cwd=ROOT, check=True)
    if not list((folder / "pycotmech").glob("_C*.so")):
        print(f"building the extension of {name} in {folder} (about a minute)", flush=True)
        subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=folder, check=True, stdout=subprocess.DEVNULL
        )
    return folder


class Side:
    """A process of one checkout, which runs a case when it is told to."""

    def __init__(self, root: Path, threads: int):
        self.root = root
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by `stop`
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        words = [sys.executable, str(Path(__file__).resolve()), "--child", str(root), "--threads", str(threads)]
        self.process = subprocess.Popen(
            words, cwd=root, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said
        )

    def run(self, case: str) -> list[float]:
        """Seconds, sum and largest of the values of one run. RuntimeError with the last lines of a process that died, or that
        answered something else."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(f"{case}\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            self.process.communicate()  # closes what it reads: one that still waits for a case ends
            self.said.seek(0)
            raise RuntimeError(f"{self.root}: {self.said.read().strip()[-1500:]}") from None

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.said.close()


def in_turn(roots: dict[str, Path], cases: Sequence[str], threads: int, first: int) -> dict[str, dict[str, list[list[float]]]]:
    """One round: {side: {case: what `Side.run` gives, of each run}}, the sides in turn, the other one first every second time.
    The runs that warm up are left out."""
    sides = {name: Side(root, threads) for name, root in roots.items()}
    found: dict[str, dict[str, list[list[float]]]] = {name: {case: [] for case in cases} for name in roots}
    try:
        for case in cases:
            for i in range(1 + CASES[case][0]):
                for name in list(roots)[:: 1 if (i + first) % 2 else -1]:
                    run = sides[name].run(case)
                    if i:
                        found[name][case].append(run)
    finally:
        for side in sides.values():
            side.stop()
    return found


def verdicts(times: dict[str, dict[str, list[list[float]]]], margin: float) -> list[dict[str, Any]]:
    """Of each case: the medians, the ratio, its lowest and highest round, and whether it got slower.

    times: {"here" and "there": {case: of each round, the seconds of its runs}}, run by run in pairs.
    """
    out = []
    for case, here in times["here"].items():
        there = times["there"][case]
        ratios = [statistics.median(a / b for a, b in zip(*pair, strict=True)) for pair in zip(here, there, strict=True)]
        ratio = statistics.median(ratios)
        a, b = (statistics.median(seconds for runs in side for seconds in runs) for side in (here, there))
        # One round says nothing of the noise between processes.
        slower = len(ratios) > 1 and ratio > 1 + margin and min(ratios) > 1
        found = {"case": case, "here": a, "there": b, "ratio": ratio, "lowest": min(ratios), "highest": max(ratios)}
        out.append({**found, "slower": slower})
    return out


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?", default=".", help="The commit to compare with; . is this checkout itself.")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5, help="Pairs of processes.")
    parser.add_argument("--minutes", type=float, default=6.0, help="No round is begun that would end after so many minutes.")
    parser.add_argument("--only", nargs="+", default=list(CASES), help="Cases, or the beginnings of their names.")
    parser.add_argument("--margin", type=float, default=0.05)
    parser.add_argument("--folder", type=Path, help="Where the other commit's worktree is, or is made.")
    parser.add_argument("--out", type=Path, default=Path("against.json"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    cases = [case for case in CASES if case.startswith(tuple(given.only))]
    if not cases:
        parser.error(f"--only: got {' '.join(given.only)}; expected some of {', '.join(CASES)}")
    if given.child:
        child(given.child, given.threads)
        return 0
    roots = {"here": ROOT, "there": checkout(given.commit, given.folder)}
    times: dict[str, dict[str, list[list[float]]]] = {side: {case: [] for case in cases} for side in roots}
    checks: dict[str, dict[str, list[float]]] = {side: {} for side in roots}
    start = time.monotonic()
    for i in range(given.rounds):
        passed = time.monotonic() - start
        if i and passed * (i + 1) / i > 60 * given.minutes:
            print(f"{given.minutes:g} minutes would be over: {i} rounds")
            break
        for side, of_cases in in_turn(roots, cases, given.threads, i).items():
            for case, runs in of_cases.items():
                times[side][case].append([seconds for seconds, *_ in runs])
                checks[side][case] = runs[-1][1:]
        found = verdicts(times, given.margin)
        record = {"commit": given.commit, "threads": given.threads, "rounds": i + 1, "load": os.getloadavg()[0], "cases": found}
        given.out.write_text(json.dumps({**record, "times": times, "checks": checks}, indent=1) + "\n", "utf-8")
        print(
            f"round {i + 1}, {time.monotonic() - start:.0f} s: " + ", ".join(f"{f['case']} {f['ratio']:.3f}" for f in found),
            flush=True,
        )
    found = verdicts(times, given.margin)
    print(
        f"\n{MODEL}, {given.threads} thread(s), T = {TOKENS}, suffix {SUFFIX}; summary of {SUMMARY} tokens; "
        f"against {given.commit}"
    )
    print(f"{'case':<20} {'here':>8} {'there':>8} {'ratio':>7} {'of rounds':>14} {'values':>10}")
    for f in found:
        (a, size), (b, _) = checks["here"][f["case"]], checks["there"][f["case"]]
        apart = "the same" if a == b else f"{abs(a - b) / max(size, 1e-30):.1e} off"
        rounds = f"{f['lowest']:.3f} to {f['highest']:.3f}"
        note = "  SLOWER" if f["slower"] else ""
        print(f"{f['case']:<20} {f['here']:>7.3f}s {f['there']:>7.3f}s {f['ratio']:>7.3f} {rounds:>14} {apart:>10}{note}")
    slower = any(f["slower"] for f in found)
    print(f"written: {given.out}; " + ("something got slower" if slower else "nothing got slower"))
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
