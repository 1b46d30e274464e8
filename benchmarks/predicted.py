"""What the model of cost predicts for GPUs that are not here, from shapes alone: `python -m benchmarks.predicted`.

Sweeps over all heads of Llama-2 7B, and the paper's experiments on the authors' number of problems, beside the authors' own
loops. Nothing of it is measured.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks import llama7b
from pycotmech import cost
from pycotmech.cost import DEVICES
from pycotmech.cot.tools.cost import Cost, Workload
from pycotmech.paper import ENTRIES
from pycotmech.paper.plan import make
from pycotmech.runs.speed import shown_time

SHARED_ROWS, SHARED_SWEEPS = 0.5, 0.4
"""Steps of an example that ask for the same word share a sweep: what is left of its rows and of its runs, on the task of the
paper."""

HUNDRED = Workload(
    examples=100, cells=1000, length=640, suffix=60, shared=575, longest=655, inductive=100, swept=SHARED_ROWS * 1000 * 60,
    sweeps=round(SHARED_SWEEPS * 1000), together=3, beginnings=232, left=20.0,
)  # fmt: skip
"""100 problems of ten steps, all of which count, with six demonstrations; beginnings and what is left as the authors had
them."""


def table() -> str:
    """Markdown: sweeps on each device, then the paper on an H100, analysis by analysis, then the other devices."""
    family = cost.without_weights(llama7b.shape())
    bfloat16 = replace(family.cfg, dtype=llama7b.torch.bfloat16)
    lines = [
        f"| all 1,024 heads, bfloat16, nothing kept | TFLOP | {' | '.join(name.upper() for name in DEVICES)} |",
        f"|---|--:|{'--:|' * len(DEVICES)}",
    ]
    for name, tokens, positions in (("T = 512, last position", 512, "last"), ("T = 640, 40 positions", 640, "all")):
        demand = cost.heads(family, tokens=tokens, suffix=llama7b.SUFFIX, positions=positions, metric="logit_diff")
        times = [_short(device.seconds(bfloat16, replace(demand, launches=0))) for device in DEVICES.values()]
        lines.append(f"| {name} | {demand.flop(bfloat16) / 1e12:.1f} | {' | '.join(times)} |")
    plans = {
        name: make(bfloat16, ENTRIES, HUNDRED, device, device.rate(bfloat16.dtype), authors=True)
        for name, device in DEVICES.items()
    }
    plan = plans["h100"]
    lines += [
        "",
        "| analysis | paper | token-forwards | TFLOP | H100 | authors' forwards | TFLOP | H100, float32 | times ours |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for line in plan.lines:
        lines.append(_line(line.name, line.source, line.ours, line.seconds, line.authors, line.authors_seconds))
    ours, theirs = (sum((getattr(line, which) for line in plan.lines), Cost()) for which in ("ours", "authors"))
    lines.append(_line("all", "", ours, plan.seconds, theirs, sum(line.authors_seconds for line in plan.lines)))
    lines += ["", "| all of it on | ours | the authors' loops |", "|---|--:|--:|"]
    for name, plan in plans.items():
        theirs_seconds = sum(line.authors_seconds for line in plan.lines)
        lines.append(f"| {name.upper()} | {shown_time(plan.seconds)} | {shown_time(theirs_seconds)} |")
    return "\n".join([*lines, ""])


def _line(name: str, source: str, ours: Cost, seconds: float, theirs: Cost, loops: float) -> str:
    times = f"{loops / seconds:,.0f}" if seconds and loops else ""
    return (
        f"| {name} | {source} | {ours.token_forwards:,.0f} | {ours.flop / 1e12:,.1f} | {_short(seconds)} "
        f"| {theirs.forwards:,.0f} "
        f"| {theirs.flop / 1e12:,.0f} | {_short(loops)} | {times} |"
    )


def _short(seconds: float) -> str:
    return "" if not seconds else f"{seconds * 1e3:.0f} ms" if seconds < 1 else shown_time(seconds)


if __name__ == "__main__":
    print(table())
