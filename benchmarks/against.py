"""Compares the speed on this CPU with another commit's, in the same sitting: `python -m benchmarks.against 9892095`.

The commit is checked out into a worktree of its own (`--folder`, build/against-<commit> by default) and its extension is built
there with this environment's packages. Then processes of both alternate: each loads SmolLM2-135M, runs every case once to warm
up and then a few times, and hands over the shortest time. A case's figure is the median over the processes; the ratio is this
checkout's to the other's, so that above 1 it got slower. The values of both are compared too.

    python -m benchmarks.against 9892095 --minutes 6             # about 6 minutes, and one for the first build
    python -m benchmarks.against 9892095 --only summary --rounds 2
    python -m benchmarks.against . --rounds 3                    # this checkout against itself: the noise

Writes `--out` (against.json) after every round. The exit status is 1 if a case is slower by more than `--margin` (5 %) and by
more than what the processes of one side differ by, which takes two rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TOKENS, SUFFIX, SUMMARY = 669, 42, 1024
MODEL = "smollm2-135m"
CASES = {
    "last, float32": (3, "float32"),
    "last, bfloat16": (3, "bfloat16"),
    "all, float32": (1, "float32"),
    "all, bfloat16": (1, "bfloat16"),
    "summary, float32": (2, "float32"),
    "summary, bfloat16": (2, "bfloat16"),
}
"""Case -> runs of one process, dtype. last, all: `patch_heads` of all heads at the last position, and at all of the suffix,
cold;
summary: `attention_summary` with all statistics."""


# ---- in the process of one checkout: only what both commits have --------------------------------------------


def child(root: str, cases: Sequence[str], threads: int) -> None:
    """Times the cases with the pycotmech of one checkout; prints {case: [seconds, check value]} as JSON."""
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
    found: dict[str, list[float]] = {}
    models: dict[str, Any] = {}
    for case in cases:
        runs, dtype = CASES[case]
        if dtype not in models:
            models = {dtype: pcm.Model.from_pretrained(MODEL, dtype=dtype)}
        model = models[dtype]

        def run(case=case, model=model):
            if case.startswith("summary"):
                return pcm.attention_summary(model, clean[:SUMMARY], top_k=8).entropy
            model.prefixes.clear()
            where = [TOKENS - 1] if case.startswith("last") else None
            options = dict(positions=where, metric="logit_diff", answer=300, wrong=301, normalize=False)
            return pcm.patch_heads(model, clean, corrupted, **options).raw

        values, best = run(), float("inf")
        for _ in range(runs):
            start = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - start)
        found[case] = [best, float(np.asarray(values, dtype=float).sum()), float(np.abs(np.asarray(values, dtype=float)).max())]
    print(json.dumps(found))


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


def timed(root: Path, cases: Sequence[str], threads: int) -> dict[str, list[float]]:
    """The cases in a process of this checkout. RuntimeError with its last lines."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    words = ["--child", str(root), "--threads", str(threads), "--only", *cases]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), *words], cwd=root, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{root}: {done.stderr.strip()[-1500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def verdicts(times: dict[str, dict[str, list[float]]], margin: float) -> list[dict[str, Any]]:
    """Of each case: medians, the ratio, and whether it got slower. times: {"here" and "there": {case: seconds of each
    process}}."""
    out = []
    for case, here in times["here"].items():
        there = times["there"][case]
        a, b = statistics.median(here), statistics.median(there)
        # One process of each says nothing of the noise between processes.
        slower = len(here) > 1 and a > b * (1 + margin) and min(here) > max(there)
        out.append({"case": case, "here": a, "there": b, "ratio": a / b, "best": min(here) / min(there), "slower": slower})
    return out


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?", default=".", help="The commit to compare with; . is this checkout itself.")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5, help="Processes of each side.")
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
        child(given.child, cases, given.threads)
        return 0
    roots = {"here": ROOT, "there": checkout(given.commit, given.folder)}
    times: dict[str, dict[str, list[float]]] = {side: {case: [] for case in cases} for side in roots}
    checks: dict[str, dict[str, list[float]]] = {side: {} for side in roots}
    start = time.monotonic()
    for i in range(given.rounds):
        passed = time.monotonic() - start
        if i and passed * (i + 1) / i > 60 * given.minutes:
            print(f"{given.minutes:g} minutes would be over: {i} rounds")
            break
        for side in ("here", "there") if i % 2 == 0 else ("there", "here"):
            for case, (seconds, *check) in timed(roots[side], cases, given.threads).items():
                times[side][case].append(seconds)
                checks[side][case] = check
        found = verdicts(times, given.margin)
        record = {"commit": given.commit, "threads": given.threads, "rounds": i + 1, "load": os.getloadavg()[0], "cases": found}
        given.out.write_text(json.dumps({**record, "times": times, "checks": checks}, indent=1) + "\n", "utf-8")
        print(
            f"round {i + 1}, {time.monotonic() - start:.0f} s: " + ", ".join(f"{f['case']} {f['ratio']:.3f}" for f in found),
            flush=True,
        )
    print(
        f"\n{MODEL}, {given.threads} thread(s), T = {TOKENS}, suffix {SUFFIX}; summary of {SUMMARY} tokens; "
        f"against {given.commit}"
    )
    print(f"{'case':<20} {'here':>8} {'there':>8} {'ratio':>7} {'of the best':>12} {'values':>10}")
    for f in verdicts(times, given.margin):
        (a, size), (b, _) = checks["here"][f["case"]], checks["there"][f["case"]]
        apart = "the same" if a == b else f"{abs(a - b) / max(size, 1e-30):.1e} off"
        note = "  SLOWER" if f["slower"] else ""
        print(f"{f['case']:<20} {f['here']:>7.3f}s {f['there']:>7.3f}s {f['ratio']:>7.3f} {f['best']:>12.3f} {apart:>10}{note}")
    slower = any(f["slower"] for f in verdicts(times, given.margin))
    print(f"written: {given.out}; " + ("something got slower" if slower else "nothing got slower"))
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
