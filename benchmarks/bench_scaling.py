"""How the time of a sweep grows: with heads, layers, the suffix, the prompt (to 32,768 tokens), the prompts in one call, the
threads, and the memory it may use.

SmolLM2-135M in bfloat16 (or `--dtype`), random tokens, one thing varied at a time from a common point, every other head.
Layers are varied on models of the same widths with random weights; long prompts are those of two such layers, in float32.
Each time is printed with the token-forwards and the FLOP of its plan, those of the prompts included, and the FLOP of a second
of processor time, which are constant where time follows the work.
A point is printed after its strongest heads agreed with hooked Hugging Face forwards (`by_hand.check_heads`).

    make bench-scaling                                      # a quarter of an hour on two idle cores
    python -m benchmarks.bench_scaling --out bench-results/scaling [--only suffix layers] [--threads 1 2]

OUT gets scaling.json and scaling.md after each point, and scaling.png at the end; `--draw FILE` draws a scaling.json again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import pycotmech as pcm
from benchmarks import llama7b
from benchmarks.by_hand import check_heads, strongest_heads
from benchmarks.gpu.smollm2 import smollm2_shape

CHECKED = 4
"""Heads of a point that are held against hooks: the strongest, in different layers."""


@dataclass(frozen=True)
class Point:
    tokens: int = 256
    suffix: int = 16
    every: int = 2  # each which head of a layer is patched
    prompts: int = 1
    threads: int = 1
    layers: int = 0  # of a model with random weights; 0: the model itself
    memory_gb: float | None = None
    dtype: str = ""  # by default that of all points

    def heads(self, cfg) -> list[tuple[int, int]]:
        return [(l, h) for l in range(cfg.n_layers) for h in range(0, cfg.n_heads, self.every)]


SERIES = {
    "suffix": [Point(suffix=s) for s in (1, 4, 16, 64)],
    "tokens": [Point(tokens=t) for t in (64, 256, 1024, 4096)],
    "long": [Point(tokens=t, layers=2, dtype="float32") for t in (1024, 4096, 16384, 32768)],
    "every": [Point(every=e) for e in (9, 4, 2, 1)],
    "layers": [Point(layers=n) for n in (4, 8, 16, 30)],
    "prompts": [Point(prompts=b, suffix=1) for b in (1, 4, 16)],
}
AXES = {
    "suffix": "positions after the first difference",
    "tokens": "tokens of a prompt",
    "long": "tokens of a prompt (two layers, float32)",
    "every": "heads",
    "layers": "layers (random weights)",
    "prompts": "prompts in one call (suffix of one token)",
    "threads": "threads",
    "memory_gb": "MiB that a sweep may use (suffix of 64, all heads)",
}
LONG = 8000
"""Tokens from which on a point is timed once, and one head of it is checked."""


@lru_cache(maxsize=2)
def model_of(name: str, dtype: str, layers: int) -> pcm.Model:
    """The model itself, or so many layers of the widths of SmolLM2-135M with random weights."""
    if not layers:
        return pcm.Model.from_pretrained(name, dtype=dtype)
    config = smollm2_shape()
    config.num_hidden_layers = layers
    return pcm.Model(llama7b.random_llama(config, getattr(torch, dtype)), check=False)


def pairs(point: Point, vocabulary: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Clean and corrupted prompts that share all but the suffix."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *n: torch.randint(vocabulary, n, generator=generator)  # noqa: E731
    prefix = draw(point.tokens - point.suffix)
    clean = [torch.cat((prefix, tail)) for tail in draw(point.prompts, point.suffix)]
    corrupted = []
    for c in clean:
        other = torch.cat((prefix, draw(point.suffix)))
        first = point.tokens - point.suffix
        other[first] = (c[first] + 1) % vocabulary  # they differ where the suffix begins
        corrupted.append(other)
    return clean, corrupted


def separating(model: pcm.Model, clean, corrupted) -> tuple[int, int]:
    """The tokens whose logits the two runs part most, in either direction: on these a patch has an effect to be checked."""
    a, b = (model.run(t, positions=[-1]).logits[0] for t in (clean, corrupted))
    return int((a - b).argmax()), int((b - a).argmax())


def measure(model: pcm.Model, point: Point, rounds: int) -> dict[str, float]:
    """Best wall and processor seconds of a call, its token-forwards and its FLOP, those of the prompts among them."""
    torch.set_num_threads(point.threads)
    clean, corrupted = pairs(point, model.cfg.d_vocab)
    heads = point.heads(model.cfg)
    answer, wrong = separating(model, clean[-1], corrupted[-1])
    arguments = dict(heads=heads, metric="logit_diff", answer=answer, wrong=wrong, normalize=False, memory_gb=point.memory_gb)
    best = [float("inf")] * 2
    long = point.tokens > LONG
    for _ in range(1 if long else rounds):
        model.prefixes.clear()
        start = time.perf_counter(), time.process_time()
        sweep = pcm.patch_heads(model, clean, corrupted, **arguments)
        best = [min(best[0], time.perf_counter() - start[0]), min(best[1], time.process_time() - start[1])]
    effects = sweep.raw[-1] - sweep.corrupted_metric[-1]
    checked = sorted(strongest_heads(effects, len(effects)), key=lambda head: -abs(effects[head]))[: 1 if long else CHECKED]
    check_heads(model.hf, clean[-1], corrupted[-1], checked, effects, answer=answer, wrong=wrong)
    plan = sweep.plan
    forwards = plan.token_forwards + plan.base_token_forwards
    return {"seconds": best[0], "cpu": best[1], "token_forwards": forwards, "flop": plan.flop}


def series(threads: list[int], budgets: list[float]) -> Iterator[tuple[str, Point]]:
    for name, points in SERIES.items():
        for point in points:
            yield name, replace(point, threads=threads[0])
    for n in threads:
        yield "threads", Point(threads=n)
    for budget in budgets:
        yield "memory_gb", Point(suffix=64, every=1, threads=threads[0], memory_gb=budget)


def budgets_of(model: pcm.Model, steps: int = 5) -> list[float]:
    """Budgets in GiB from what the sweep takes where it has room, halved again and again while it fits."""
    point = Point(suffix=64, every=1)
    clean, corrupted = pairs(point, model.cfg.d_vocab)
    given = dict(heads=point.heads(model.cfg), metric="logit_diff", answer=1, wrong=2, normalize=False)
    budget = pcm.plan_heads(model, clean, corrupted, **given, memory_gb=16.0).bytes_in_flight / 2**30 * 1.1
    found: list[float] = []
    for _ in range(steps):
        try:
            pcm.plan_heads(model, clean, corrupted, **given, memory_gb=budget)
        except ValueError:  # one variant alone does not fit any more
            break
        found.append(budget)
        budget /= 2
    return found[::-1]


def plot(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """A panel for each thing varied: seconds, and as a dashed line what they would be if time followed the FLOP planned, from
    the largest point on (for threads: if two took half the time of one)."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    plain = FuncFormatter(lambda x, _: f"{x:g}" if x < 1024 else f"{x / 1024:g}k")
    names = list(dict.fromkeys(row["name"] for row in rows))
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(3.1 * columns, 3.0 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    for i, (axis, name) in enumerate(zip(axes, names)):
        of_name = sorted((row["value"], row["seconds"], row["flop"]) for row in rows if row["name"] == name)
        x, seconds, flop = (list(column) for column in zip(*of_name, strict=True))
        follows = [seconds[0] * x[0] / v for v in x] if name == "threads" else [seconds[-1] * f / flop[-1] for f in flop]
        axis.plot(x, seconds, marker="o", label="measured")
        axis.plot(x, follows, color="0.5", ls="--", lw=1, label="as the FLOP" if name != "threads" else "as the threads")
        axis.set(xlabel=AXES[name].replace(" (", "\n("), xscale="log", yscale="log")
        axis.xaxis.set(major_locator=FixedLocator(x), minor_locator=NullLocator(), major_formatter=plain)
        axis.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator(), major_formatter=plain)
        low, high = min(*seconds, *follows), max(*seconds, *follows)
        axis.set_ylim(low / 1.6, high * 1.6)  # at least a tick or two on each side
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
        if i % columns == 0:
            axis.set_ylabel("seconds")
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)


def value_of(name: str, point: Point, cfg) -> float:
    if name == "memory_gb":
        return round(1024 * (point.memory_gb or 0.0))
    return len(point.heads(cfg)) if name == "every" else getattr(point, "tokens" if name == "long" else name)


def shown(rows: list[dict[str, Any]]) -> str:
    """The points in Markdown."""
    lines = ["| varied | value | s | token-forwards | GFLOP | a second of processor time, GFLOP |", "|---|--:|--:|--:|--:|--:|"]
    for row in rows:
        rate = row["flop"] / row["cpu"] / 1e9
        forwards, flop = f"{row['token_forwards']:,.0f}", f"{row['flop'] / 1e9:,.1f}"
        lines.append(f"| {AXES[row['name']]} | {row['value']:,} | {row['seconds']:.2f} | {forwards} | {flop} | {rate:.0f} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="The first is that of all other points.")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=list(AXES), help="These series only.")
    parser.add_argument("--longest", type=int, default=32768, help="Leave out longer prompts.")
    parser.add_argument("--out", type=Path, help="Folder for scaling.json, scaling.md and scaling.png.")
    parser.add_argument("--draw", type=Path, metavar="JSON", help="Only draw this scaling.json, beside it.")
    args = parser.parse_args()
    if args.draw:
        kept = json.loads(args.draw.read_text("utf-8"))
        plot(kept["rows"], args.draw.with_suffix(".png"), kept["title"])
        return
    model = model_of(args.model, args.dtype, 0)
    title = f"Time of one sweep: {args.model}, {args.dtype}, {args.threads[0]} thread(s)"
    print(f"{args.model}, {args.dtype}; best of {args.rounds}; {Point()} unless said otherwise")
    print(f"{'what':<52} {'value':>6} {'seconds':>8} {'cpu s':>8} {'token-forwards':>15} {'GFLOP/s':>8}")
    rows: list[dict[str, Any]] = []
    budgets = budgets_of(model) if not args.only or "memory_gb" in args.only else []
    for name, point in series(args.threads, budgets):
        if (args.only and name not in args.only) or point.tokens > args.longest:
            continue
        model = model_of(args.model, point.dtype or args.dtype, point.layers)
        found = measure(model, point, args.rounds)
        value = value_of(name, point, model.cfg)
        rows.append({"name": name, "value": value, **found, "point": asdict(point)})
        wall, processor, forwards, flop = found.values()
        rate = flop / processor / 1e9
        print(f"{AXES[name]:<52} {value:>6} {wall:>8.3f} {processor:>8.3f} {forwards:>15.0f} {rate:>8.0f}", flush=True)
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            kept = {"title": title, "load": round(os.getloadavg()[0], 2), "rows": rows}
            (args.out / "scaling.json").write_text(json.dumps(kept, indent=1), "utf-8")
            (args.out / "scaling.md").write_text(shown(rows), "utf-8")
    if args.out:
        plot(rows, args.out / "scaling.png", title)
        print(f"written: {args.out}/scaling.json, scaling.md, scaling.png")


if __name__ == "__main__":
    main()
