"""Compares the suite's ratios with a stored baseline: `make bench-compare`, or

    python -m benchmarks.compare bench-results/results.json                     # exit status 1 if something got worse
    python -m benchmarks.compare bench-results/results.json --update            # these results become the baseline
    python -m benchmarks.compare a/results.json b/results.json --update         # of several runs: their spread is kept

Times differ from machine to machine and from hour to hour; what is compared are ratios of things timed in turn in one process:
each rival to ours, the share of the machine that ours reaches, and the memory of each rival to ours. Larger is better in all of
them. The baseline keeps of each the median and the range over rounds and runs. A ratio is worse if it lies below all that was
seen: its whole range is below the baseline's, by more than `--margin` (5 % of the baseline's median). One that is missing or
has an error now is worse as well. A machine of another kind has other ratios: make a baseline of its own (`--baseline`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.table import name_of

BASELINE = Path(__file__).resolve().parent / "baseline.json"
MARGIN = 0.05


@dataclass(frozen=True)
class Ratio:
    """A ratio with its range over repeated rounds; larger is better."""

    median: float
    low: float
    high: float


def ratios(results: dict[str, Any]) -> dict[str, Ratio]:
    """All ratios of results.json by a name that says of what."""
    found = {}
    for row in results["rows"]:
        if "error" in row:
            continue
        of = name_of(row)
        found[f"{of}: share of the machine"] = _ratio(row["limit"]["share"])
        for rival in row["rivals"]:
            found[f"{of}: {rival['name']}"] = _ratio(rival["ratio"])
            if rival.get("gib") and row["ours"].get("gib"):
                memory = rival["gib"] / row["ours"]["gib"]
                found[f"{of}: memory of {rival['name']}"] = Ratio(memory, memory, memory)
    return found


def _ratio(x: dict[str, float]) -> Ratio:
    return Ratio(x["median"], x["low"], x["high"])


def pooled(runs: Iterable[dict[str, Ratio]]) -> dict[str, Ratio]:
    """Of several runs together: the median of medians, and the whole range."""
    every = list(runs)
    names = dict.fromkeys(name for run in every for name in run)
    found = {}
    for name in names:
        seen = [run[name] for run in every if name in run]
        found[name] = Ratio(statistics.median(r.median for r in seen), min(r.low for r in seen), max(r.high for r in seen))
    return found


@dataclass(frozen=True)
class Verdict:
    name: str
    word: str
    """worse, better, same, new or missing."""
    now: Ratio | None
    before: Ratio | None

    @property
    def bad(self) -> bool:
        return self.word in ("worse", "missing")

    def __str__(self) -> str:
        shown = [("" if r is None else f"{r.median:8.2f} [{r.low:.2f}, {r.high:.2f}]") for r in (self.before, self.now)]
        return f"{self.word:<8} {shown[0]:<28} {shown[1]:<28} {self.name}"


def judged(
    before: dict[str, Ratio], now: dict[str, Ratio], margin: float = MARGIN, groups: Iterable[str] = ()
) -> list[Verdict]:
    """What became of each ratio. groups: names that a run left out on purpose are not missing: prefixes of what was run; none:
    all."""
    wanted = tuple(groups)
    found = []
    for name in dict.fromkeys([*before, *now]):
        a, b = before.get(name), now.get(name)
        if a is None:
            word = "new"
        elif b is None:
            if wanted and not name.startswith(wanted):
                continue
            word = "missing"
        elif b.high < a.low and b.median < a.median * (1 - margin):
            word = "worse"
        elif b.low > a.high and b.median > a.median * (1 + margin):
            word = "better"
        else:
            word = "same"
        found.append(Verdict(name, word, b, a))
    return found


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--baseline", type=Path, default=BASELINE)
    parser.add_argument("--margin", type=float, default=MARGIN)
    parser.add_argument("--update", action="store_true", help="Store these results as the baseline.")
    parser.add_argument("--part", action="store_true", help="The run had a part of the questions: the others are not missing.")
    given = parser.parse_args(words)
    runs = [json.loads(path.read_text("utf-8")) for path in given.results]
    now = pooled(ratios(run) for run in runs)
    if given.update:
        kept = {name: vars(r) for name, r in now.items()}
        about = {"machine": runs[0]["machine"], "runs": len(runs)}
        given.baseline.write_text(json.dumps({**about, "ratios": kept}, indent=1) + "\n", "utf-8")
        print(f"{given.baseline}: {len(kept)} ratios of {len(runs)} run(s)")
        return 0
    if not given.baseline.is_file():
        print(f"there is no baseline {given.baseline}; --update makes one of these results", file=sys.stderr)
        return 2
    stored = json.loads(given.baseline.read_text("utf-8"))
    before = {name: Ratio(**r) for name, r in stored["ratios"].items()}
    if runs[0]["machine"]["cpu"] != stored["machine"]["cpu"]:
        print(f"the baseline is of {stored['machine']['cpu']}, these results are of {runs[0]['machine']['cpu']}")
    ran = [name_of(row) for run in runs for row in run["rows"]]
    verdicts = judged(before, now, given.margin, ran if given.part else ())
    print(f"{'':<8} {'before':<28} {'now':<28}")
    for verdict in sorted(verdicts, key=lambda v: (not v.bad, v.word != "better", v.name)):
        print(verdict)
    bad = sum(v.bad for v in verdicts)
    print(f"{bad} of {len(verdicts)} ratios are worse or missing" if bad else f"none of {len(verdicts)} ratios is worse")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
