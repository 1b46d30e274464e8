"""Pairs that are read off one another's runs.

A causal model's run of a prompt holds the runs of all its beginnings. A pair whose prompts, up to where they are read, begin
those of another pair, and which is patched at all of its positions, is answered by the other's variants: each is read at one
position more. The steps of one chain of thought that ask for the same word under the same replacement are such pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pycotmech.engine.bases import PairRuns, run_pairs
from pycotmech.engine.evaluate import Evaluator
from pycotmech.engine.metrics import ExampleMetric, Metric
from pycotmech.model.families.base import Family
from pycotmech.model.run import KeyValues
from pycotmech.patching.pairs import Pair, targets_of


@dataclass(frozen=True)
class SharedRun:
    """host: the number of the pair that is run. readers: the pairs that are read off it, by where they are read; the last of
    them is the host."""

    host: int
    readers: tuple[int, ...]


def each_alone(n: int) -> list[SharedRun]:
    """Every pair its own run."""
    return [SharedRun(i, (i,)) for i in range(n)]


def shared_runs(pairs: Sequence[Pair], targets: Sequence[Sequence[int]] | None = None) -> list[SharedRun]:
    """The fewest runs from which all pairs can be read, in the order of their hosts. targets: the positions patched of each
    pair (None: all that can change anything); one that is not patched at all of those is run alone."""
    hosts: dict[int, list[int]] = {}
    text = [(_upto(p.clean, p), _upto(p.corrupted, p)) for p in pairs]
    targets = [targets_of(p, None) for p in pairs] if targets is None else targets
    whole = [list(t) == targets_of(p, None) for p, t in zip(pairs, targets, strict=True)]
    for i in sorted(range(len(pairs)), key=lambda i: -pairs[i].read):
        found = (h for h in hosts if whole[h] and all(a.startswith(b) for a, b in zip(text[h], text[i], strict=True)))
        host = next(found, i) if whole[i] else i
        hosts.setdefault(host, []).insert(0, i)
    return [SharedRun(h, tuple(hosts[h])) for h in sorted(hosts)]


def _upto(tokens: Tensor, pair: Pair) -> bytes:
    return tokens[: pair.read + 1].long().numpy().tobytes()


def run_hosts(
    family: Family,
    pairs: Sequence[Pair],
    runs: Sequence[SharedRun],
    direction: str,
    past: KeyValues | None,
    first: Sequence[int],
    sites: Sequence[str],
    source_sites: Sequence[str],
) -> PairRuns:
    """Both runs of these hosts, with what is kept of the base and of the source run in this direction, from `first` on; read
    wherever a pair is."""
    base, source = prompts_of([pairs[run.host] for run in runs], direction)
    return run_pairs(
        family,
        base,
        source,
        past=past,
        first=first,
        reads=[[pairs[i].read for i in run.readers] for run in runs],
        sites=sites,
        source_sites=source_sites,
    )


def example_metrics(
    evaluator: Evaluator, metric: Metric, pairs: Sequence[Pair], direction: str, runs: PairRuns
) -> tuple[list[ExampleMetric], list[tuple[float, float]]]:
    """Each example's metric, and its value in the (clean, corrupted) run. pairs: in the order in which the runs are read."""
    clean_rows, corrupted_rows = runs.source_final, runs.base_final
    if direction == "noise":
        clean_rows, corrupted_rows = corrupted_rows, clean_rows
    metrics, values = [], []
    for e, pair in enumerate(pairs):
        ids = None if metric != "logit_diff" else [pair.answer, pair.wrong]
        logits = evaluator.logits(torch.stack((clean_rows[e], corrupted_rows[e])), ids)
        measure = ExampleMetric(metric, logits[0] if metric == "kl" else None, pair.answer, pair.wrong)
        clean, corrupted = measure(logits).tolist()
        values.append((0.0 if metric == "kl" else clean, corrupted))  # KL(P || P), without the rounding of its sum
        metrics.append(measure)
    return metrics, values


def prompts_of(pairs: Sequence[Pair], direction: str) -> tuple[list[Tensor], list[Tensor]]:
    """Base and source prompts, up to where they are read."""
    clean, corrupted = [p.clean[: p.read + 1] for p in pairs], [p.corrupted[: p.read + 1] for p in pairs]
    return (corrupted, clean) if direction == "denoise" else (clean, corrupted)
