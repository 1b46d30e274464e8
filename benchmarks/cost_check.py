"""Holds the model of cost against the clock on this machine: `python -m benchmarks.cost_check`, on an otherwise idle machine.

    python -m benchmarks.cost_check                         # sweeps, paths, summary, lens, traces: two minutes
    python -m benchmarks.cost_check --paper 4               # and all of the paper with 4 examples: four minutes more
    python -m benchmarks.cost_check --of paper-results      # and a folder that `pycotmech paper` filled on this machine
    python -m benchmarks.cost_check --model tiny-cot --dtype float32   # whether it runs at all

Prints for each what is predicted from shapes after two short measurements, what was measured (the shortest of two runs after
one that does not count; the paper's analyses once), and their ratio, and writes them to `--out` as it goes. The exit status is
1 if a sweep, the paths, the summary or the paper as a whole is off by more than 25 %.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pycotmech as pcm
from pycotmech import cost
from pycotmech.cost import Demand, Measured
from pycotmech.traces import Trace

LIMIT = 0.25
JUDGED = ("sweep", "paths", "summary", "paper")


def cases(model: pcm.Model, T: int, suffix: int) -> Iterator[tuple[str, Demand, Callable[[], object]]]:
    """(name, demand from shapes, call)."""
    family, cfg = model.family, model.cfg
    g = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randint(10, cfg.d_vocab - 10, (n,), generator=g)  # noqa: E731
    clean = draw(T)
    corrupted = clean.clone()
    corrupted[T - suffix : -1] = draw(suffix - 1)
    pair: dict[str, Any] = dict(answer=5, wrong=6, normalize=False)

    def cold(call: Callable[..., object], *given: Any, **options: Any) -> Callable[[], object]:
        def run() -> object:
            model.prefixes.clear()
            return call(model, *given, **options)

        return run

    for positions, metric in itertools.product(("last", "all"), ("logit_diff", "kl")):
        where = [T - 1] if positions == "last" else None
        demand = cost.heads(family, tokens=T, suffix=suffix, positions=positions, metric=metric)
        yield (
            f"sweep, {positions}, {metric}",
            demand,
            cold(pcm.patch_heads, clean, corrupted, positions=where, metric=metric, **pair),
        )
    senders = [(l, h) for l in range(cfg.n_layers) for h in range(cfg.n_heads)][::10]
    options = dict(senders=senders, receivers="all")
    for metric in ("logit_diff", "kl"):
        demand = cost.paths(family, tokens=T, suffix=suffix, metric=metric, **options)
        yield (
            f"paths, {metric}",
            demand,
            cold(pcm.path_patch, clean, corrupted, positions="read", metric=metric, **options, **pair),
        )
    for n in (T // 2, 2 * T):
        if n <= cfg.n_ctx:
            tokens = draw(n)
            yield f"summary, {n} tokens", cost.summary(cfg, n), lambda tokens=tokens: pcm.attention_summary(model, tokens)
    yield (
        "lens, suffix",
        cost.lens(cfg, T, positions=suffix),
        lambda: pcm.logit_lens(model, clean, positions=list(range(T - suffix, T))),
    )
    ends = np.linspace(T // 3, T, 13).round().astype(int).tolist()
    trace = Trace.from_tokens(model, clean, sentences=list(itertools.pairwise(ends)))
    demand = cost.suppression(cfg, T, trace.spans().tolist())
    yield "traces, suppression", demand, lambda: pcm.traces.suppress(model, trace, controls=0)


def of_paper(model: pcm.Model, machine: Measured, folder: Path) -> list[dict[str, Any]]:
    """The analyses of a folder that `pycotmech paper` filled, as they were timed."""
    from pycotmech.paper import ENTRIES
    from pycotmech.paper.one_setting import prepare, stored_facts
    from pycotmech.paper.plan import make
    from pycotmech.runs import Settings

    facts = stored_facts(folder)
    known = set(Settings.__dataclass_fields__)
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in facts["identity"].items() if k in known}
    workload = prepare(model, Settings(**given), {}).workload
    plan = make(model.cfg, ENTRIES, workload, machine, 1.0)
    rows = []
    for line in plan.lines:
        if "seconds" in (found := facts.get("costs", {}).get(line.name, {})):
            rows.append({"name": f"{line.source} {line.name}", "predicted": line.seconds, "measured": found["seconds"]})
    total = [sum(row[key] for row in rows) for key in ("predicted", "measured")]
    return [*rows, {"name": f"paper, {given.get('examples')} examples", "predicted": total[0], "measured": total[1]}]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--runs", type=int, default=2, help="Timed runs of each, after one that is not; 0: that one alone.")
    parser.add_argument(
        "--processor", action="store_true", help="Processor time in place of the clock, for a busy machine; with one thread."
    )
    parser.add_argument("--tokens", type=int, default=640)
    parser.add_argument("--suffix", type=int, default=40)
    parser.add_argument("--paper", type=int, metavar="N", help="Run the paper with so many examples, in the last dtype.")
    parser.add_argument(
        "--of", type=Path, nargs="*", default=[], help="Folders of `pycotmech paper` on this model and machine."
    )
    parser.add_argument("--only", nargs="*", default=[""], help="Beginnings of names.")
    parser.add_argument("--out", type=Path, default=Path("cost-check.json"))
    given = parser.parse_args(words)
    torch.set_num_threads(given.threads)
    clock = time.process_time if given.processor else time.perf_counter
    rows: list[dict[str, Any]] = []
    start = time.monotonic()

    def keep(row: dict[str, Any]) -> None:
        row["ratio"] = row["predicted"] / max(row["measured"], 1e-9)
        row["judged"] = row["name"].startswith(JUDGED) and row["measured"] > 0.05
        rows.append(row)
        load = round(os.getloadavg()[0], 2)
        given.out.write_text(json.dumps({"threads": given.threads, "load": load, "rows": rows}, indent=1) + "\n", "utf-8")
        off = "  OFF" if row["judged"] and abs(np.log(row["ratio"])) > np.log(1 + LIMIT) else ""
        print(
            f"{row['dtype']:<9} {row['name']:<34} {row['predicted']:>9.3f} {row['measured']:>9.3f} {row['ratio']:>7.2f}{off}",
            flush=True,
        )

    for dtype in given.dtype:
        model = pcm.Model.from_pretrained(given.model, dtype=dtype)
        began = time.monotonic()
        machine = cost.of_model(model, clock=clock)
        shown = ", ".join(f"{rows_} rows {s * 1e3:.3g} ms" for rows_, s in machine.layer)
        print(
            f"\n{given.model}, {dtype}, {given.threads} thread(s), measured in {time.monotonic() - began:.1f} s: a layer "
            f"{shown}; attention "
            f"{machine.attention / 1e9:.0f} GFLOP/s, its statistics {machine.statistics / 1e9:.0f}; a row of logits "
            f"{machine.logits * 1e3:.3g} ms; copy {machine.copy / 1e9:.1f} GB/s; factor {machine.factor:.2f}"
        )
        print(f"{'':<44} {'predicted':>9} {'measured':>9} {'ratio':>7}")
        for name, demand, call in cases(model, given.tokens, given.suffix):
            if not name.startswith(tuple(given.only)):
                continue
            predicted, best = machine.seconds(model.cfg, demand), float("inf")
            for i in range(given.runs + 1):
                began_run = clock()
                call()
                if i or not given.runs:
                    best = min(best, clock() - began_run)
            keep({"dtype": dtype, "name": name, "predicted": predicted, "measured": best, "flop": demand.flop(model.cfg)})
        folders = list(given.of)
        with tempfile.TemporaryDirectory() as place:
            if given.paper and dtype == given.dtype[-1]:
                from pycotmech import paper
                from pycotmech.runs import Settings

                settings = Settings(model=given.model, dtype=dtype, examples=given.paper, threads=given.threads)
                paper.run(settings, Path(place, "paper"))
                folders.append(Path(place, "paper"))
            for folder in folders:
                for row in of_paper(model, machine, folder):
                    keep({"dtype": dtype, **row})
    judged = [row for row in rows if row["judged"]]
    off = [row for row in judged if abs(np.log(row["ratio"])) > np.log(1 + LIMIT)]
    print(
        f"\n{len(judged) - len(off)} of {len(judged)} within {LIMIT:.0%}; {time.monotonic() - start:.0f} s; "
        f"written: {given.out}"
    )
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
