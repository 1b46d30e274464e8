"""What a probe misses when heads are out of the run: sets of heads, and the probe's verdicts on ablated runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycotmech.cot.task.relations import Question, WordPair
from pycotmech.cot.tools.probes import Projection, balanced, fit_linear
from pycotmech.engine.ablated import AblatedRuns
from pycotmech.engine.bases import common_prefix
from pycotmech.model.config import ModelConfig

if TYPE_CHECKING:
    from pycotmech.model import Model

Rows = tuple[list[int], NDArray]
"""Positions of a question, and the residual stream there [positions, d]."""


def read_positions(question: Question) -> list[int]:
    """Where a probe reads: the last pieces of the words of its pairs."""
    return sorted({word.stop - 1 for p in (*question.pairs, *question.across) for word in (p.first, p.second)})


def head_sets(
    selected: list[tuple[int, int]], cfg: ModelConfig, depth: int, n: int, rng: np.random.Generator
) -> dict[str, Tensor]:
    """The selected heads as bool [L, H], and n sets of as many others, of the same layers while these have some left."""
    if not selected:
        return {}
    sets = {"selected": _mask(selected, cfg)}
    for k in range(n):
        chosen: list[tuple[int, int]] = []
        for l in sorted({l for l, _ in selected}):
            free = [(l, h) for h in range(cfg.n_heads) if (l, h) not in selected]
            drawn = rng.permutation(len(free))[: sum(x == l for x, _ in selected)]
            chosen += [free[i] for i in drawn]
        free = [(l, h) for l in range(depth) for h in range(cfg.n_heads) if (l, h) not in (*selected, *chosen)]
        chosen += [free[i] for i in rng.permutation(len(free))[: len(selected) - len(chosen)]]
        sets[f"random {k + 1}"] = _mask(chosen, cfg)
    return sets


def _mask(heads: Sequence[tuple[int, int]], cfg: ModelConfig) -> Tensor:
    mask = torch.zeros(cfg.n_layers, cfg.n_heads, dtype=torch.bool)
    for l, h in heads:
        mask[l, h] = True
    return mask


def probed(
    model: Model,
    questions: Sequence[Question],
    rows: list[Rows],
    depth: int,
    choose: NDArray,
    report: NDArray,
    sets: dict[str, Tensor],
    fill: Tensor | None,
    seed: int,
    memory_gb: float | None,
) -> tuple[NDArray, NDArray]:
    """Accuracy and margin [questions, runs] of a probe trained on the whole runs of one half, on the other half's runs.

    Subjects and objects of different sentences are among its unrelated pairs: without them it would need the words' roles
    only, which no head along a relation has to bring. Every class of a question counts the same.
    """
    accuracy, margin = np.full((2, len(questions), 1 + len(sets)), np.nan)
    judged = [(*question.pairs, *question.across) for question in questions]
    flat = [(q, p) for q in choose.tolist() for p in judged[q]]
    flat = [flat[i] for i in balanced(np.array([p.label for _, p in flat]), seed=seed)]
    if not flat:
        return accuracy, margin
    x = np.stack([_feature(rows[q], p) for q, p in flat])
    held = set(np.random.default_rng(seed).permutation(choose)[: max(1, len(choose) // 5)].tolist())
    projection = Projection.fit(x)
    probe = fit_linear(projection(x), np.array([p.label for _, p in flat]), np.array([q in held for q, _ in flat]))

    def judge(run: int, found: Iterator[tuple[int, Rows]]) -> None:
        for q, here in found:
            if not judged[q]:
                continue
            logits = probe(projection(np.stack([_feature(here, p) for p in judged[q]])))
            labels = np.array([p.label for p in judged[q]])
            true = logits[np.arange(len(labels)), labels]
            hits, lead = logits.argmax(1) == labels, true - (logits.sum(1) - true) / (logits.shape[1] - 1)
            accuracy[q, run], margin[q, run] = (_mean_of_classes(x, labels) for x in (hits, lead))

    judge(0, ((q, rows[q]) for q in report.tolist()))
    if sets:
        texts = [questions[q].tokens[: rows[q][0][-1] + 1] for q in report.tolist()]
        roles = None if fill is None else [(torch.arange(len(t)) > 0).long() for t in texts]
        reads = [rows[q][0] for q in report.tolist()]
        shared = min(common_prefix(texts), min(r[0] for r in reads))
        runner = AblatedRuns(model.family, texts, reads, shared=shared, fill=fill, roles=roles, memory_gb=memory_gb, upto=depth)
        cuts = np.cumsum([len(r) for r in reads])[:-1]
        for run, heads in enumerate(sets.values(), 1):
            parts = np.split(runner.final(heads).float().cpu().numpy(), cuts)
            judge(run, ((q, (reads[i], parts[i])) for i, q in enumerate(report.tolist())))
    return accuracy, margin


def _mean_of_classes(values: NDArray, labels: NDArray) -> float:
    return float(np.mean([values[labels == c].mean() for c in np.unique(labels)]))


def _feature(rows: Rows, pair: WordPair) -> NDArray:
    positions, values = rows
    return np.concatenate([values[positions.index(word.stop - 1)] for word in (pair.first, pair.second)])
