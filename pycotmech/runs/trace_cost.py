"""What the analyses of traces ask of a machine, counted from the sizes of the model and of the traces."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pycotmech.cost import Demand, prompts, suppression
from pycotmech.model.config import ModelConfig
from pycotmech.model.sizes import CPU
from pycotmech.traces.analyses.chain_use import SHUFFLES
from pycotmech.traces.analyses.receiver_heads import DRAWS, FEWEST

if TYPE_CHECKING:
    from pycotmech.traces import Trace

_READ = 1.7
"""Time of a row of logits of which the answer's probability and the likeliest token are read, over that of a row and its
divergence (measured)."""
_NULL_BYTES = 40.0
"""Bytes that one permutation of the null moves for each entry of a head's matrix: picked, added up."""


def demands(cfg: ModelConfig, traces: list[Trace], *, proximity: int, controls: int) -> dict[str, Demand]:
    """The work of each result of a run, by its name ("receiver_heads", "trace_000/suppress", ...). What the traces do not allow
    is left out."""
    out: dict[str, Demand] = {}
    answered = sum(trace.answer is not None for trace in traces)
    for i, trace in enumerate(traces):
        T, S, where = len(trace), trace.n_sentences, f"trace_{i:03d}"
        if proximity + FEWEST <= S:
            out["receiver_heads"] = out.get("receiver_heads", Demand()) + _receiver_heads(cfg, trace, proximity)
        # The last token of an answer predicts nothing that is read.
        end = trace.reasoning.stop if trace.answer is None else trace.answer.stop - 1
        spans = [(s.start, s.stop) for s in trace.sentences if s.stop < end]
        out[f"{where}/suppress"] = suppression(cfg, end, spans, controls=controls)
        if trace.answer is None:
            continue
        n, tail, stop = len(trace.answer_tokens), T - trace.reasoning.stop, trace.reasoning.stop
        after = (trace.reasoning.start + stop) // 2
        asked = prompts(cfg, [tail] * (S + 1), after=after, read=_READ * (S + 1) * n * (1 + cfg.n_layers))
        out[f"{where}/early_answers"] = prompts(cfg, [stop]) + asked
        parts = 2.0 * (S + 3) * cfg.n_layers * cfg.n_heads * cfg.d_head * cfg.d_model
        out[f"{where}/answer_paths"] = prompts(cfg, [T]) + Demand(wide=parts)
        if answered > 1:
            out["chain_use"] = out.get("chain_use", Demand()) + _chain_use(cfg, trace)
    return out


def _receiver_heads(cfg: ModelConfig, trace: Trace, proximity: int) -> Demand:
    """One pass whose attention is added up by sentence, and the null."""
    stop, L = trace.reasoning.stop, cfg.n_layers
    entries = (trace.n_sentences - proximity) * (trace.n_sentences - proximity + 1) / 2
    null = _NULL_BYTES * DRAWS * L * cfg.n_heads * entries
    return prompts(cfg, [stop]) + Demand(weighed=L * stop * (stop + 1) / 2, summarised=float(L * stop), traffic=null)


def _chain_use(cfg: ModelConfig, trace: Trace) -> Demand:
    """The conditions, and the sweep over heads, whose variants join at their own layer. Suppression and early answers are
    there already."""
    L, H, n = cfg.n_layers, cfg.n_heads, len(trace.answer_tokens)
    length, tail = trace.reasoning.stop - trace.reasoning.start, len(trace) - trace.reasoning.stop
    chains = 2 + SHUFFLES
    conditions = prompts(cfg, [length + tail] * chains, after=trace.reasoning.start, read=float(chains * n))
    rows = H * L * (L + 1) / 2 * tail
    passes = L * math.ceil(H * L * tail / 2 / CPU.row_block)
    heads = Demand(rows, passes, rows * len(trace), unembedded=float(L * H * n))
    return conditions + prompts(cfg, [len(trace)]) + heads
