"""How the time of a sweep grows: with the suffix, the prompt, the heads, the prompts in one call, and the threads.

SmolLM2-135M in bfloat16 (or `--dtype`), random tokens, one thing varied at a time from a common point, every other head.
Each time is printed with the token-forwards of its plan, those of the prompts included, and the processor time of one
token-forward, which is constant where time follows the work.
A point is printed after its strongest heads agreed with hooked Hugging Face forwards (`by_hand.check_heads`).

    python -m benchmarks.bench_scaling                      # a few minutes
    python -m benchmarks.bench_scaling --plot scaling.png --threads 1 2
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import pycotmech as pcm
from benchmarks.by_hand import check_heads, strongest_heads

CHECKED = 4
"""Heads of a point that are held against hooks: the strongest, in different layers."""


@dataclass(frozen=True)
class Point:
    tokens: int = 256
    suffix: int = 16
    every: int = 2  # each which head of a layer is patched
    prompts: int = 1
    threads: int = 1

    def heads(self, cfg) -> list[tuple[int, int]]:
        return [(l, h) for l in range(cfg.n_layers) for h in range(0, cfg.n_heads, self.every)]


SERIES = {
    "suffix": [Point(suffix=s) for s in (1, 4, 16, 64)],
    "tokens": [Point(tokens=t) for t in (64, 256, 1024)],
    "every": [Point(every=e) for e in (9, 4, 2, 1)],
    "prompts": [Point(prompts=b, suffix=1) for b in (1, 4, 16)],
}
AXES = {
    "suffix": "positions after the first difference",
    "tokens": "tokens of a prompt",
    "every": "heads",
    "prompts": "prompts in one call (suffix of one token)",
    "threads": "threads",
}


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


def measure(model: pcm.Model, point: Point, rounds: int) -> tuple[float, float, float]:
    """Best wall and processor seconds of a call, and its token-forwards, those of the prompts among them."""
    torch.set_num_threads(point.threads)
    clean, corrupted = pairs(point, model.cfg.d_vocab)
    heads = point.heads(model.cfg)
    answer, wrong = separating(model, clean[-1], corrupted[-1])
    arguments = dict(heads=heads, metric="logit_diff", answer=answer, wrong=wrong, normalize=False)
    best = [float("inf")] * 2
    for _ in range(rounds):
        model.prefixes.clear()
        start = time.perf_counter(), time.process_time()
        sweep = pcm.patch_heads(model, clean, corrupted, **arguments)
        best = [min(best[0], time.perf_counter() - start[0]), min(best[1], time.process_time() - start[1])]
    effects = sweep.raw[-1] - sweep.corrupted_metric[-1]
    checked = sorted(strongest_heads(effects, len(effects)), key=lambda head: -abs(effects[head]))[:CHECKED]
    check_heads(model.hf, clean[-1], corrupted[-1], checked, effects, answer=answer, wrong=wrong)
    return *best, sweep.plan.token_forwards + sweep.plan.base_token_forwards


def series(threads: list[int]) -> Iterator[tuple[str, Point]]:
    for name, points in SERIES.items():
        for point in points:
            yield name, replace(point, threads=threads[0])
    for n in threads:
        yield "threads", Point(threads=n)


def plot(rows: list[tuple[str, Point, float, float]], path: str, cfg, title: str) -> None:
    """A panel for each thing varied: seconds, and as a dashed line what they would be if time followed the work planned, from
    the largest point on (for threads: if two took half the time of one)."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    plain = FuncFormatter(lambda x, _: f"{x:g}")
    names = list(dict.fromkeys(name for name, *_ in rows))
    figure = Figure(figsize=(2.9 * len(names), 3.2), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), sharey=True, squeeze=False)[0], names, strict=True):
        of_name = sorted((value_of(name, point, cfg), seconds, work) for n, point, seconds, work in rows if n == name)
        x, seconds, work = (list(column) for column in zip(*of_name, strict=True))
        follows = [seconds[0] * x[0] / v for v in x] if name == "threads" else [seconds[-1] * w / work[-1] for w in work]
        axis.plot(x, seconds, marker="o", label="measured")
        axis.plot(x, follows, color="0.5", ls="--", lw=1, label="as the work" if name != "threads" else "as the threads")
        axis.set(xlabel=AXES[name].replace(" (", "\n("), xscale="log", yscale="log")
        axis.xaxis.set(major_locator=FixedLocator(x), minor_locator=NullLocator(), major_formatter=plain)
        axis.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator(), major_formatter=plain)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
        if axis.get_subplotspec().is_first_col():
            axis.set_ylabel("seconds")
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)


def value_of(name: str, point: Point, cfg) -> int:
    return len(point.heads(cfg)) if name == "every" else getattr(point, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="the first is that of all other points")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=list(AXES), help="these series only")
    parser.add_argument("--plot", metavar="PNG", help="also draw the table to this file")
    args = parser.parse_args()
    model = pcm.Model.from_pretrained(args.model, dtype=args.dtype)
    print(f"{args.model}, {args.dtype}; best of {args.rounds}; {Point()} unless said otherwise")
    print(f"{'what':<42} {'value':>6} {'seconds':>8} {'cpu s':>8} {'token-forwards':>15} {'cpu ms':>8}")
    rows = []
    for name, point in series(args.threads):
        if args.only and name not in args.only:
            continue
        wall, processor, work = measure(model, point, args.rounds)
        rows.append((name, point, wall, work))
        value = value_of(name, point, model.cfg)
        print(
            f"{AXES[name]:<42} {value:>6} {wall:>8.3f} {processor:>8.3f} {work:>15.0f} {1e3 * processor / work:>8.3f}",
            flush=True,
        )
    if args.plot:
        plot(rows, args.plot, model.cfg, f"Time of one sweep: {args.model}, {args.dtype}")


if __name__ == "__main__":
    main()
