"""Attention of all heads over one prompt: the summary against keeping the patterns, and against a plain forward pass.

Same weights, tokens, dtype and threads; every measurement in a process of its own, peak memory from the operating system,
weights included. Processor time is printed beside wall time: on a busy machine only processor time is meaningful. A plain SDPA
forward (last logits only, no statistics at all) is the floor; the peers are timed for the patterns alone, without what a user
would then compute from them. A line is printed only if what the kind found in the last rows (mass per segment, entropy)
agrees with the patterns written out by hand from the plain forward's queries and keys.

    python -m benchmarks.bench_attention_peers                       # SmolLM2-135M, 512 tokens, float32, one thread
    python -m benchmarks.bench_attention_peers --tokens 512 2048 8192 --skip eager transformer_lens --threads 2
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from tests.attention.measured import KINDS, Measured, measure

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float64": 1e-6}
"""Of masses (1 at most) and of entropies, relative to the largest; two orders of rounding below what a wrong head makes."""

WHAT = {
    "sdpa": "plain SDPA forward, no statistics",
    "eager": "transformers, output_attentions=True",
    "transformer_lens": "TransformerLens, run_with_cache of patterns",
    "ours": "pycotmech.attention_summary, all rows",
}


def agrees(found: Measured, truth: Measured, dtype: str) -> bool:
    mass = np.abs(found.mass - truth.mass).max()
    entropy = np.abs(found.entropy - truth.entropy).max() / truth.entropy.max()
    return bool(max(mass, entropy) <= TOLERANCE[dtype])


def compare(model: str, tokens: int, dtype: str, threads: int, skip: list[str]) -> list[str]:
    """Lines of the table for one size."""
    options = {"model": model, "tokens": tokens, "dtype": dtype, "threads": threads}
    floor = measure("sdpa", **options)
    found = {"sdpa": floor}
    lines = []
    for kind in KINDS[1:]:
        if kind in skip:
            continue
        if kind == "transformer_lens" and importlib.util.find_spec(kind) is None:
            lines.append(f"{tokens:>6}  {WHAT[kind]:<44} not installed (pip install transformer-lens)")
            continue
        try:
            result = measure(kind, **options)
        except RuntimeError as error:
            lines.append(f"{tokens:>6}  {WHAT[kind]:<44} failed: {str(error).strip().splitlines()[-1][:100]}")
            continue
        if agrees(result, floor, dtype):
            found[kind] = result
        else:
            lines.append(f"{tokens:>6}  {WHAT[kind]:<44} DISAGREES with the patterns; no figures")
    ours = found.get("ours")
    for kind, result in found.items():
        line = f"{tokens:>6}  {WHAT[kind]:<44} {result.seconds:>8.2f} {result.cpu:>8.2f} {result.peak / 2**20:>9.0f}"
        if ours is not None and kind != "ours":
            wall, cpu, memory = (getattr(ours, n) / getattr(result, n) for n in ("seconds", "cpu", "peak"))
            line += f"   ours takes {wall:.2f} of its time ({cpu:.2f} of its processor time), {memory:.2f} of its memory"
        lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="an alias or path, or a shape of tests/attention/measured.py")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512])
    parser.add_argument("--dtype", default="float32", choices=sorted(TOLERANCE))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--skip", nargs="*", default=[], choices=KINDS[1:])
    args = parser.parse_args()
    print(f"{args.model}, {args.dtype}, {args.threads} thread(s); best of two runs; memory: peak of the process")
    print(f"{'tokens':>6}  {'what':<44} {'seconds':>8} {'cpu s':>8} {'MiB':>9}")
    for tokens in args.tokens:
        for line in compare(args.model, tokens, args.dtype, args.threads, args.skip):
            print(line, flush=True)


if __name__ == "__main__":
    main()
