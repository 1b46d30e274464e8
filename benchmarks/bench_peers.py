"""The sweep over all heads, compared with other libraries and with hooks. SmolLM2-135M, about 670 tokens of which the
last 42 differ, z of each of the 270 heads at all positions; the logit difference at the last position.

    make bench-peers                                  # in an environment of its own, with the versions of benchmarks/peers.txt
    pip install -c constraints.txt -c benchmarks/peers.txt -e '.[peers]'     # the same by hand
    python -m benchmarks.bench_peers [--dtype float32 bfloat16] [--threads 1 2] [--rounds 3] [--out FILE]

Each way runs in processes of its own on the same weights, prompts, dtype and threads (`benchmarks/peers.py` holds them all),
in turn, `--rounds` processes each: medians, lowest and highest. Both dtypes and three rounds take a quarter of an hour on two
cores, all of which are used unless `--threads` is given.

* TransformerLens: `patching.get_act_patch_attn_head_out_all_pos`.
* nnsight: one trace per head; and as well as it can be written: one trace per layer, its heads as invokes, each skipping the
  blocks below the patched one with values kept from an unpatched run.
* pyvene: one intervened forward per head, the source's activations handed over instead of running it again.
* one hooked Hugging Face forward per head that computes the last position's logits only.
* hooks over a key-value cache of the shared prefix, one head at a time: the strongest thing to write by hand.

Except TransformerLens, whose function leaves no choice, all compute the last position's logits only. Ours counts everything:
the shared prefix, both runs, the sweep, the metric. The others run a few heads (in layers spread evenly, in each the head with
the largest effect) and are scaled to all of them. A figure is printed only where the patched values agree: in float32 head by
head within a thousandth of the largest effect; in bfloat16, which rounds a logit of 20 to 0.06, with those of hooks on the
same weights in float32: neither ours nor theirs more than three times as far off as hooks in bfloat16. Processor time is
printed beside wall time; on a busy machine only processor time is meaningful.

causalab is not among them. It is in no registry (the package of that name, 0.0.1 of 2023, is another project), and the
interchange of a head's activations in its repository (goodfire-ai/causalab, `experiments/pyvene_core.py`) is pyvene's.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.peers import Measured, measure
from benchmarks.suite import processor, spread

LAYERS = 5
WHAT = {
    "hooks": "hooked HF forward per head, last logits only",
    "transformer_lens": "TransformerLens, get_act_patch_attn_head_out_all_pos",
    "nnsight": "nnsight, one trace per head",
    "nnsight_skip": "nnsight, invokes and skip, one trace per layer",
    "pyvene": "pyvene, source activations kept",
    "cached_hooks": "hooks over a cache of the shared prefix",
}
PACKAGE = {"transformer_lens": "transformer-lens", "nnsight": "nnsight", "nnsight_skip": "nnsight", "pyvene": "pyvene"}
TOLERANCE = 1e-3
ROUNDINGS = 3


def chosen_heads(ours: Measured, zero: float) -> list[str]:
    """In each of a few layers, the first and the last among them, the head with the largest effect."""
    effect = {tuple(map(int, name.split("."))): abs(value - zero) for name, value in ours.values.items()}
    n_layers = max(l for l, _ in effect) + 1
    layers = np.linspace(0, n_layers - 1, LAYERS).round().astype(int)
    best = [max((head for head in effect if head[0] == l), key=effect.__getitem__) for l in layers]
    return [f"{l}.{h}" for l, h in best]


def distance(a: Measured, b: Measured) -> float:
    """Root mean square over the heads that both ran."""
    common = a.values.keys() & b.values.keys()
    return float(np.sqrt(np.mean([(a.values[head] - b.values[head]) ** 2 for head in common])))


def largest(a: Measured, b: Measured) -> float:
    return max(abs(a.values[head] - b.values[head]) for head in a.values.keys() & b.values.keys())


def run(kind: str, dtype: str, threads: int, heads: list[str]) -> Measured | str:
    """Figures, or why there are none."""
    package = PACKAGE.get(kind)
    if package is not None and importlib.util.find_spec(package.replace("-", "_")) is None:
        return f"not installed (pip install {package})"
    try:
        return measure(kind, dtype=dtype, threads=threads, heads=heads)
    except RuntimeError as error:
        return f"failed: {str(error).strip().splitlines()[-1][:100]}"


def compare(dtype: str, threads: int, rounds: int, minutes: float) -> list[dict]:
    """One row for each way, ours first. A further round is begun only if it will end within so many minutes."""
    start = time.monotonic()
    ours = measure("ours", dtype=dtype, threads=threads, heads=[])
    heads = chosen_heads(ours, float(np.median(list(ours.values.values()))))  # most heads change nothing
    truth = measure("truth", dtype=dtype, threads=threads, heads=heads)
    effect = max(ours.values.values()) - min(ours.values.values())
    found: dict[str, list[Measured]] = {"ours": [ours]} | {kind: [] for kind in WHAT}
    notes: dict[str, str] = {}
    for i in range(rounds):
        began = time.monotonic()
        if i:
            found["ours"].append(measure("ours", dtype=dtype, threads=threads, heads=[]))
        for kind in WHAT:
            if kind in notes:
                continue
            since = time.monotonic()
            one = run(kind, dtype, threads, heads)
            print(f"{dtype}, round {i + 1}: {WHAT[kind]} ({time.monotonic() - since:.0f} s)", file=sys.stderr, flush=True)
            if isinstance(one, str):
                notes[kind] = one
            else:
                found[kind].append(one)
        now = time.monotonic()
        print(f"{dtype}, round {i + 1} of {rounds}: {now - began:.0f} s", file=sys.stderr, flush=True)
        if now + (now - began) > start + 60 * minutes:
            break
    if "hooks" in notes:
        raise SystemExit(f"hooks: {notes['hooks']}")
    rounding = distance(found["hooks"][0], truth)

    def agrees(one: Measured) -> bool:
        if dtype == "float32":
            return largest(one, ours) <= TOLERANCE * effect
        return max(distance(one, truth), distance(ours, truth)) <= ROUNDINGS * rounding

    rows = []
    for kind, runs in found.items():
        row: dict = {"what": kind, "name": WHAT.get(kind, "pycotmech.patch_heads")}
        if kind in notes:
            row["note"] = notes[kind]
        elif not all(map(agrees, runs)):
            row["note"] = f"DISAGREES by up to {max(max(largest(r, ours), largest(r, truth)) for r in runs):.3g}; no figures"
        else:
            row |= {name: spread([getattr(r, name) for r in runs]) for name in ("seconds", "cpu")}
            row |= {"rounds": len(runs), "ran": runs[0].ran, "difference": largest(runs[0], truth)}
            if kind != "ours":
                pairs = list(zip(runs, found["ours"], strict=True))
                row["ratio"] = statistics.median(r.seconds / o.seconds for r, o in pairs)
                row["cpu_ratio"] = statistics.median(r.cpu / o.cpu for r, o in pairs)
        rows.append(row)
    common = {"dtype": dtype, "threads": threads, "tokens": ours.tokens, "suffix": ours.suffix, "effect": effect}
    return [common | row for row in rows]


def versions() -> str:
    names = ["torch", "transformers", *dict.fromkeys(PACKAGE.values())]
    found = []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


def show(rows: list[dict]) -> None:
    first = rows[0]
    print(
        f"\n{first['dtype']}, {first['threads']} thread(s), {first['tokens']} tokens, suffix {first['suffix']}; effects span "
        f"{first['effect']:.3g}; 'off' is the largest difference from hooks in float32"
    )
    print(f"{'':<54} {'seconds':>8} {'ratio':>7} {'cpu s':>8} {'ratio':>7} {'ran':>4} {'off':>8}")
    for row in rows:
        if "note" in row:
            print(f"{row['name']:<54} {row['note']}")
            continue
        ratios = [f"{row[key]:.1f}x" if key in row else "" for key in ("ratio", "cpu_ratio")]
        print(
            f"{row['name']:<54} {row['seconds']['median']:>8.1f} {ratios[0]:>7} {row['cpu']['median']:>8.1f} {ratios[1]:>7} "
            f"{row['ran']:>4} {row['difference']:>8.2g}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, nargs="+", default=[os.cpu_count() or 1], help="All cores by default.")
    parser.add_argument("--rounds", type=int, default=3, help="Processes of each way.")
    parser.add_argument(
        "--minutes", type=float, default=14.0, help="No round after the first is begun that would end after these."
    )
    parser.add_argument("--out", type=Path, help="Also write the rows to this JSON file.")
    args = parser.parse_args()
    print(versions())
    rows = []
    cases = [(dtype, threads) for dtype in args.dtype for threads in args.threads]
    start = time.monotonic()
    for i, (dtype, threads) in enumerate(cases):
        left = args.minutes - (time.monotonic() - start) / 60
        rows += (part := compare(dtype, threads, args.rounds, left / (len(cases) - i)))
        show(part)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            about = {"cpu": processor(), "cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d"), "versions": versions()}
            about["minutes"] = round((time.monotonic() - start) / 60, 1)
            args.out.write_text(json.dumps({**about, "rows": rows}, indent=1), "utf-8")


if __name__ == "__main__":
    main()
