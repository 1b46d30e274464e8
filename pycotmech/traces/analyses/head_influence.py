"""Heads through which a sentence influences a later one, or the answer: its keys are cut in one head at a time, in one sweep.

For each head of each layer, attention of later tokens to the sentence is cut in this head alone, everything above is computed
again, and the predictions at the target are compared with the untouched run's. A head's cut changes its own output only, so
each variant joins the others by that difference; what lies below is never computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pycotmech._choices import check_choice
from pycotmech._words import listed
from pycotmech.cot.tools.result import top_cells
from pycotmech.engine import planner
from pycotmech.engine.bases import Bases, Stage, run_pairs
from pycotmech.engine.budget import Batch, Budget
from pycotmech.engine.evaluate import Evaluator, Ticker
from pycotmech.engine.jitter import Jitter
from pycotmech.engine.joins import HeadJoins
from pycotmech.engine.metrics import ExampleMetric, log_probability
from pycotmech.engine.row_edits import RowEdits
from pycotmech.engine.rows import Variants
from pycotmech.model.arguments import check_common, check_integer
from pycotmech.model.families.base import Family
from pycotmech.model.prompts import ranges_of
from pycotmech.patching.question import Progress
from pycotmech.traces.result import TraceAnalysis, check_trace

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.model import Model
    from pycotmech.traces.trace import Trace

Source = int | Sequence[int] | Literal["reasoning", "prompt"]
Target = int | Literal["answer"]
Rows = Literal["after", "target"]


class HeadInfluence(TraceAnalysis):
    """What each head carries from a sentence to a target.

    data: influence [layer, head]. For a later sentence the mean over its tokens of KL(P || P without the head's view of the
    source), in nats; for the answer the fall of its log probability.
    """

    name, title = "head_influence", "Heads that carry a sentence's influence"
    source = "ours, on knock-outs as in docs/knock_out.md"
    label = "influence"

    @property
    def values(self) -> NDArray[np.float64]:
        """[L, H]."""
        return self.data["influence"].transpose("layer", "head").values

    def shown(self) -> xr.Dataset:
        return xr.Dataset({"mean": self.data["influence"].transpose("layer", "head")})

    def table(self) -> pd.DataFrame:
        """A line for each head, the largest first: layer, head, influence."""
        import pandas as pd

        layer, head = np.indices(self.values.shape).reshape(2, -1)
        frame = pd.DataFrame({"layer": layer, "head": head, "influence": self.values.ravel()})
        return frame.sort_values("influence", ascending=False, kind="stable").reset_index(drop=True)

    def findings(self) -> list[str]:
        s = self.about["settings"]
        best = ", ".join(f"L{l}H{h} {v:.3g}" for l, h, v in top_cells(self.data["influence"], 5))
        return [f"from {s['source']} to {s['target']}, {self.about['unit']}: {best}"]

    def plot(self, *, path: str | PathLike | None = None) -> Figure:
        """A map of the heads."""
        from pycotmech.figures.heatmap import maps_figure

        s = self.about["settings"]
        return maps_figure(
            [self.values], [f"from {s['source']} to {s['target']}"], title=f"{self.about['model']}: {self.title}",
            label=self.about["unit"], lines=self.small_print(), path=path,
        )  # fmt: skip


@torch.no_grad()
def head_influence(
    model: Model,
    trace: Trace,
    *,
    source: Source,
    target: Target = "answer",
    rows: Rows = "after",
    memory_gb: float | None = None,
    progress: Progress | None = None,
) -> HeadInfluence:
    """Cuts each head's attention to the source, one head at a time, and measures the target: [L, H].

    source: the number of a sentence, several numbers, "reasoning" for all of them (up to where the target is read), or "prompt"
        (without its first token).
    target: the number of a sentence after the source, whose predictions are compared by KL; or "answer", whose log
        probability is read.
    rows: at which tokens the head does not see the source: "after", all from the end of the source on; "target", only those
        where the target is read: what goes there directly.
    progress: called with (token-forwards done, in all).

    Raises TypeError or ValueError naming the argument, before anything is run.
    Cost: the trace once, one attention more, and for each of L x H heads the tokens after the source through the layers above
    it, as in `pycotmech.sweep`. Memory: z, queries and residual stream of those tokens in all layers, within memory_gb.
    """
    check_common(model, memory_gb=memory_gb)
    check_trace(trace, model.cfg.d_vocab)
    reads = _reads(trace, target)
    keys = _keys(trace, source, reads[0])
    first = keys[-1] + 1
    if reads[0] < first:
        raise ValueError(
            f"target: {target} begins at token {reads[0]}, before the source ends at {first}; expected a later one"
        )
    check_choice("rows", rows, ("after", "target"))
    cfg, family = model.cfg, model.family
    family.refuse_unsupported()
    by_token = target == "answer"
    room = planner.memory_budget(memory_gb, *model.family.devices)
    budget = Budget(family, room, columns=None)
    layer, head = (i.flatten() for i in torch.meshgrid(torch.arange(cfg.n_layers), torch.arange(cfg.n_heads), indexing="ij"))
    n, length = len(layer), reads[-1] + 1 - first
    variants = Variants(
        base=torch.zeros(n, dtype=torch.long),
        layer=layer,
        stage=torch.full((n,), int(Stage.MID)),
        first=torch.full((n,), first),
    )
    held = budget.base_bytes(reads[-1] + 1, length, ("q", "z", "z", "resid_mid"))
    if not by_token:
        held += 4 * cfg.d_vocab * len(reads)
    batch = Batch(variants, torch.full((n,), length), torch.ones(n, dtype=torch.bool), [reads], held)
    pieces = budget.pieces(batch)
    past = model.prefixes.key_values(trace.tokens[:first], room)
    runs = run_pairs(
        family, [trace.tokens], [], past=past, first=[first], reads=[reads], sites=("q", "z", "resid_mid"), source_sites=()
    )
    cut = _without(family, runs.bases, keys, first)
    kept = {name: runs.bases.sites[name] for name in ("z", "resid_mid")}
    bases = replace(runs.bases, sites=kept, source={"z": cut})
    editable = torch.ones(length, dtype=torch.bool)
    if rows == "target":
        editable[:] = False
        editable[torch.tensor(reads) - first] = True
    joins = HeadJoins.on_device_of(
        family, bases, control=torch.zeros(n, dtype=torch.bool), moves=torch.ones(n, dtype=torch.bool), head=head,
        position=torch.full((n,), -1), editable=editable,
        signs=torch.zeros(length, cfg.n_heads, cfg.d_head, dtype=torch.int8),
    )  # fmt: skip
    base_logits = [family.logits(runs.base_final[[i]])[0] for i in range(len(reads))]
    if by_token:
        tokens = trace.tokens[torch.tensor(reads) + 1].tolist()
        metrics = [ExampleMetric(partial(log_probability, token=t), None, t, None) for t in tokens]
    else:
        metrics = [ExampleMetric("kl", logits, None, None) for logits in base_logits]
    plan = budget.plan([(batch, pieces)], examples=1, prompts=planner.prompt_work(family, [(first, reads[-1] + 1)]))
    evaluator = Evaluator(family, room, False, Ticker(progress, plan, cfg.n_layers))
    jitter = Jitter.of_streams(family, torch.full((n,), -1), 0)
    values, _, _ = evaluator.run(
        variants, pieces, joins, RowEdits(family, bases), metrics, jitter, torch.zeros(n, dtype=torch.bool)
    )
    found = values.view(n, len(reads))
    if by_token:
        before = torch.stack([m(x[None])[0] for m, x in zip(metrics, base_logits, strict=True)]).cpu()
        influence = (before - found).sum(1)
    else:
        influence = found.mean(1)
    data = xr.Dataset(
        {"influence": (("layer", "head"), influence.view(cfg.n_layers, cfg.n_heads).numpy())},
        coords={"layer": np.arange(cfg.n_layers), "head": np.arange(cfg.n_heads)},
    )
    numbers = [] if isinstance(source, str) else [str(i) for i in _numbers(trace, source)]
    named = source if isinstance(source, str) else f"{'sentence' if len(numbers) == 1 else 'sentences'} {listed(numbers)}"
    settings = {"source": named, "target": target if by_token else f"sentence {target}", "rows": rows}
    where = "all tokens after the source" if rows == "after" else "the tokens where the target is read"
    words = f"attention of {where} to the source cut in one head at a time"
    result = HeadInfluence.of_traces(model, [trace], data, words, settings)
    unit = "fall of the answer's log probability" if by_token else "mean KL in nats"
    return HeadInfluence(result.data, {**result.about, "unit": unit})


def _numbers(trace: Trace, source: int | Sequence[int]) -> list[int]:
    given = [source] if isinstance(source, int | np.integer) else list(source)
    if not given:
        raise ValueError("source: got no sentence; expected at least one")
    return sorted({check_integer(j, "source", 0, trace.n_sentences - 1) for j in given})


def _keys(trace: Trace, source: Source, read: int) -> list[int]:
    """The positions of the source, ascending; of the whole reasoning those before `read`, where the target is first read."""
    if isinstance(source, str):
        if source == "reasoning":
            return list(range(trace.reasoning.start, min(trace.reasoning.stop, max(read, trace.reasoning.start + 1))))
        if source == "prompt" and trace.prompt.stop > 1:
            return list(range(1, trace.prompt.stop))
        raise ValueError(
            f"source: got {source!r}; expected numbers of sentences, 'reasoning', or 'prompt' (of two tokens or more)"
        )
    return [p for j in _numbers(trace, source) for p in range(trace.sentences[j].start, trace.sentences[j].stop)]


def _reads(trace: Trace, target: Target) -> list[int]:
    """The positions at which the target is read, ascending."""
    if isinstance(target, str):
        if target != "answer":
            raise ValueError(f"target: got {target!r}; expected the number of a sentence, or 'answer'")
        return list(range(trace.answered.start - 1, trace.answered.stop - 1))
    s = trace.sentences[check_integer(target, "target", 0, trace.n_sentences - 1)]
    return list(range(s.start, s.stop))


@torch.no_grad()
def _without(family: Family, bases: Bases, keys: list[int], first: int) -> Tensor:
    """z of rows `first` on with the keys cut in every head, from the untouched run's q, k and v: [L, rows, H, D]."""
    q, device = bases.sites["q"], family.device
    rows = q.shape[1]
    positions = torch.arange(first, first + rows)
    zeros = torch.zeros(rows, dtype=torch.long)
    # All keys are shared ones: positions 0 up to the row's own.
    table = torch.stack((zeros, zeros, zeros, positions + 1), 1).to(torch.int32).to(device)
    ranges = torch.tensor(ranges_of(keys))  # [n, 2]
    each = torch.arange(rows).repeat_interleave(len(ranges))
    cuts = torch.cat((torch.stack((each, torch.full_like(each, -1)), 1), ranges.repeat(rows, 1)), 1).to(torch.int32).to(device)
    out = torch.empty_like(bases.sites["z"])
    at = positions.to(device)
    for l in range(len(q)):
        rotated = q[l].clone()
        family.rotate(l, bases.angles, at, rotated)
        k, v = bases.k[l], bases.v[l]
        out[l] = family.attend(l, rotated, k, v, k[:0], v[:0], table, cuts)
    return out
