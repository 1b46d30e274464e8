"""Summarises the attention of all layers and heads in one pass through the layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pycotmech.attention.prompts import checked, chosen_rows, is_list_of_prompts
from pycotmech.attention.results import AttentionSummary
from pycotmech.attention.segments import SegmentRule, Segments
from pycotmech.attention.statistics import LayerStatistics, Readout, Wanted, read_layer
from pycotmech.model.arguments import check_model, check_progress
from pycotmech.model.prompts import Tokens, unpacked
from pycotmech.model.run import watch

if TYPE_CHECKING:
    from pycotmech.model import Model


def attention_summary(
    model: Model,
    tokens: Tokens | Sequence[Tokens],
    *,
    segments: Segments | None = None,
    rows: slice | Sequence[int] | Tensor | None = None,
    top_k: int = 8,
    entropy: bool = True,
    received: bool = True,
    readout: Readout | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AttentionSummary | list[AttentionSummary]:
    """Summarises the attention of every layer and head: mass per segment, entropy, top keys, attention received.

    tokens: ids [T] or [B, T] without padding, a string, or a list of prompts of any lengths (then a list is returned).
    segments: {name: slice or positions}, or integer labels [T], -1 for none; no overlap. The first token is a separate
        segment ("first", the last one) unless it is in another one. Negative positions count from the prompt's end.
    rows: the query rows to keep, negative from the end; None: every row, R = T. Other rows are discarded.
    top_k: the number of keys with the largest weights to keep, 0 to 64. entropy, received: whether to compute these.
    readout: features to average with the weights: "value_norm" (the norm of each value vector), an array [T, C], or a
        callable (layer, k [B, Hkv, T, D], v) -> [B or 1, H or 1, T, C].
    progress: called with (layers done, layers in all).

    Returns `AttentionSummary`: .mass [L, H, R, G], .entropy, .lse, .largest [L, H, R], .top_keys, .top_weights
    [L, H, R, k], .received [L, H, T]; a batch has a leading axis B. Float32 on the CPU (float64 for a float64 model).
    Raises TypeError or ValueError naming the argument, before anything is run.
    Cost: one forward pass without logits, in which one kernel computes attention together with its statistics, and half
    of the cost of attention more for `received`. Memory: the residual stream, one layer's q, k, v and z, and the results,
    L H R (3 + G + 2 k) + L H T numbers of 4 bytes; nothing of size T x T, and of keys and values one layer at a time.
    """
    check_model(model)
    check_progress(progress)
    wanted = Wanted(top_k, entropy, received, readout)
    model.family.refuse_unsupported()
    tokens = unpacked(tokens)
    if is_list_of_prompts(tokens):
        return _of_list(model, tokens, segments, rows, wanted, progress)  # type: ignore[arg-type]
    return _Job(model, tokens, segments, rows, wanted, progress).run()  # type: ignore[arg-type]


def _of_list(model: Model, prompts: Sequence[Tokens], segments, rows, wanted: Wanted, progress) -> list[AttentionSummary]:
    if not prompts:
        raise ValueError("tokens: the list of prompts is empty; expected at least one")
    by_prompt = [segments] * len(prompts)
    labels = isinstance(segments, (list, tuple)) and len(segments) > 0 and isinstance(segments[0], (int, np.integer))
    if isinstance(segments, (list, tuple)) and not labels:  # one for each prompt
        if len(segments) != len(prompts):
            raise ValueError(f"segments: got {len(segments)} for {len(prompts)} prompts; expected one for all, or one for each")
        by_prompt = list(segments)
    L, N = model.cfg.n_layers, len(prompts)
    steps = [None if progress is None else lambda done, _all, i=i: progress(i * L + done, N * L) for i in range(N)]
    jobs = [_Job(model, p, s, rows, wanted, step) for p, s, step in zip(prompts, by_prompt, steps, strict=True)]
    return [job.run() for job in jobs]


class _Job:
    """One prompt, or one batch of equal lengths, checked; results are filled in layer by layer."""

    def __init__(self, model: Model, tokens: Tokens, segments, rows, wanted: Wanted, progress) -> None:
        self.model, self.wanted, self.progress = model, wanted, progress
        self.tokens, self.batched = checked(model, tokens)
        B, T = self.tokens.shape
        self.rows = chosen_rows(rows, T)
        self.segments = SegmentRule(segments).label(T, batch=B)
        readout = wanted.readout
        if isinstance(readout, (Tensor, np.ndarray)) and (readout.ndim != 2 or len(readout) != T):
            raise ValueError(f"readout: got {list(readout.shape)} for {T} tokens; expected [{T}, C]")
        self.found: dict[str, Tensor] = {}

    def run(self) -> AttentionSummary:
        family, cfg = self.model.family, self.model.cfg
        labels = self.segments.labels.to(family.device)
        index = None if self.rows is None else torch.tensor(self.rows, device=family.device)

        def attend(l: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            z, statistics = read_layer(
                l,
                q,
                k,
                v,
                wanted=self.wanted,
                labels=labels,
                n_segments=len(self.segments.names),
                rows=index,
                z_unused=l == cfg.n_layers - 1,
                attention=family.attention(l),
            )
            self._keep(l, statistics)
            if self.progress is not None:
                self.progress(l + 1, cfg.n_layers)
            return z

        watch(family, self.tokens, attend)
        return self._result()

    def _keep(self, l: int, statistics: LayerStatistics) -> None:
        for name, value in statistics.on_cpu()._asdict().items():
            if value is None:
                continue
            if l == 0:  # [B, L, ...], its pages touched as layers come in
                self.found[name] = torch.empty(len(value), self.model.cfg.n_layers, *value.shape[1:], dtype=value.dtype)
            self.found[name][:, l] = value

    def _result(self) -> AttentionSummary:
        arrays = {name: (value if self.batched else value[0]).numpy() for name, value in self.found.items()}
        T = self.tokens.shape[1]
        return AttentionSummary(
            **{name: arrays.get(name) for name in LayerStatistics._fields},  # type: ignore[arg-type]
            segment_names=self.segments.names,
            rows=np.arange(T) if self.rows is None else np.array(self.rows),
            tokens=(self.tokens if self.batched else self.tokens[0]).numpy(),
            labels=self.segments.labels.numpy(),
            model_name=self.model.name,
        )
