"""`python -m benchmarks.validity`: see the package's docstring."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.validity import judge, kept, page
from benchmarks.validity.claims import named
from benchmarks.validity.run import jobs, run

MODEL_PARTS = (judge.PLANTED, judge.NULLS, judge.LARGE)
TABLES = {"recovery": 5, "coverage": 2000, "levels": 2000}
"""The tables of simulations, and how many draws each makes by default. Each is a module with `table(draws, seed)`."""
STEPS = [2, 4, 5, 6, 7, 8, 9]
"""Of the examples of a random model: all kinds, and all steps whose word stands in the question and in the generated text."""
PAGE = Path(__file__).resolve().parents[2] / "docs" / "validity.md"


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.validity",
        description="Runs the claims of the paper on random and on planted models, and the simulations of intervals and tests. "
        "Exits with 1 and says why if anything does not hold.",
    )
    parser.add_argument("--models", type=int, default=200, help="Number of random models of the shape of toys.")
    parser.add_argument("--large", type=int, default=5, help="Number of random models of SmolLM2-135M's shape.")
    parser.add_argument("--claims", nargs="+", help="Names of the claims to run; all by default.")
    parser.add_argument("--parts", nargs="+", choices=[*MODEL_PARTS, *TABLES], help="What to run; everything by default.")
    parser.add_argument("--examples", type=int, default=8, help="Examples of each random model.")
    parser.add_argument("--shots", type=int, default=1, help="Demonstrations before each example.")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="Steps of each example that are analysed.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of weights and examples; every model has its own.")
    parser.add_argument("--draws", type=int, help="Draws of the simulations, 2000 by default; of planted circuits at most 5.")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="Processes, each with one thread.")
    parser.add_argument("--out", type=Path, default=Path("validity-results"), help="Folder that keeps the results.")
    parser.add_argument("--fresh", action="store_true", help="Whether to discard what the folder holds.")
    parser.add_argument(
        "--page",
        nargs="?",
        type=Path,
        const=PAGE,
        help="Write the page from what the folder holds and run nothing (by default to docs/validity.md).",
    )
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    asked = arguments(words)
    if asked.page is not None:
        asked.page.write_text(page.written(asked.out), "utf-8")
        print(f"wrote {asked.page}")
        return _ended(asked.out)
    named(asked.claims)  # before any work
    settings = {key: getattr(asked, key) for key in ("seed", "examples", "shots", "steps")}
    store = kept.Store(asked.out, settings, fresh=asked.fresh)
    parts = asked.parts or [*MODEL_PARTS, *TABLES]
    torch.set_num_threads(1)
    work = []
    for part in MODEL_PARTS:
        if part in parts:
            n = asked.models if part == judge.NULLS else asked.large
            work += jobs(part, n, asked.claims, settings, store)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(work, store, workers=asked.workers, say=lambda text: print(text, flush=True))
        for name, draws in TABLES.items():
            if name in parts and importlib.util.find_spec(f"benchmarks.validity.{name}"):
                draws = draws if asked.draws is None else min(asked.draws, draws) if name == "recovery" else asked.draws
                print(f"{name}: {draws} draws", flush=True)
                rows = importlib.import_module(f"benchmarks.validity.{name}").table(draws, seed=asked.seed)
                store.put(name, rows, draws=draws, seed=asked.seed)
    (asked.out / "validity.md").write_text(page.written(asked.out), "utf-8")
    print(f"wrote {asked.out / 'validity.md'}")
    return _ended(asked.out)


def _ended(folder: Path) -> int:
    """Prints the counts of what the folder holds, and what does not hold; 1 if anything does not."""
    models, tables = kept.models(folder), kept.tables(folder)
    for part in (judge.NULLS, judge.LARGE):
        for name in judge.claims_of(models, part):
            row = judge.counted(models, part, name)
            print(
                f"{part:<8} {name:<14} {row['models']:>4} models: {row['borne out']} borne out "
                f"(at most {judge.allowed(row['models'])}), {row['not borne out']} not borne out, "
                f"{row['not decided']} not decided, {row['no data']} without data"
            )
    wrong = judge.failures(models, tables)
    for line in wrong:
        print(f"FAILS: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
