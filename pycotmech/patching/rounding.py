"""How far rounding moves a metric: read from the logits of jittered copies of the base run.

With delta what the noise changes in the base run's logits, rounding elsewhere is taken to change logits alike: the metric of
any run is off by metric(logits + delta) - metric(logits), and a KL also by what delta changes in the logits it is taken from.
A few deltas may happen to hardly move what one metric reads; so each is also taken with its tokens shifted, as the noise of
other tokens' logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pycotmech.engine.evaluate import Evaluator
from pycotmech.engine.joins import N_JITTERED, N_SELF_PATCHES
from pycotmech.engine.metrics import ExampleMetric, kl_from

_SHIFTS = 2
"""How often each delta is taken again with its tokens shifted."""

N_DELTAS = N_JITTERED * (1 + _SHIFTS)
"""Deltas per example."""


def rounding_of_pair(
    evaluator: Evaluator, metric: ExampleMetric, base: Tensor, source: Tensor, controls: Tensor, denoise: bool
) -> Tensor:
    """base, source [d]: final residual rows of both runs where they are read. controls [N_CONTROLS, d]: of the controls.

    Returns float64 [N_DELTAS, 3]: what rounding changes in the metric of the base run, in that of the source run, and, of a
    KL, what rounding of the clean logits changes in that of the corrupted run.
    """
    ends = evaluator.logits(torch.stack((base, source)), metric.token_ids)
    delta = _delta(evaluator, metric, controls)
    changes = [_change(metric, logits, delta) for logits in ends]
    moved = _reference_change(metric, ends[0 if denoise else 1], delta)
    return torch.stack((*changes, moved), 1)


def rounding_of_variants(
    evaluator: Evaluator, metric: ExampleMetric, variants: Tensor, controls: Tensor
) -> tuple[Tensor, Tensor]:
    """variants [n, d], controls [N_CONTROLS, d]: final residual rows of some variants and of the controls.

    Returns float64 [N_DELTAS] and [N_DELTAS, n]: what rounding changes in the metric of the base run and of the variants.
    """
    delta = _delta(evaluator, metric, controls)
    base = evaluator.logits(controls[:N_SELF_PATCHES], metric.token_ids).mean(0)
    logits = evaluator.logits(variants, metric.token_ids)
    own = [_change(metric, x, delta).hypot(_reference_change(metric, x, delta)) for x in logits]
    return _change(metric, base, delta), torch.stack(own, 1)


def _delta(evaluator: Evaluator, metric: ExampleMetric, controls: Tensor) -> Tensor:
    """What the noise changes in the base run's logits, then the same with tokens shifted: [N_DELTAS, V], or of the tokens that
    the metric reads [N_DELTAS, K]."""
    V = evaluator.family.cfg.d_vocab
    read = None if metric.token_ids is None else [token for token in metric.token_ids if token is not None]
    shifts = [n * V // (_SHIFTS + 1) for n in range(_SHIFTS + 1)]
    # A metric of few tokens needs the noise of these and of those that are shifted onto them, not of the vocabulary.
    tokens = None if read is None else [(token - shift) % V for shift in shifts for token in read]
    logits = evaluator.logits(controls, tokens)
    delta = logits[N_SELF_PATCHES:] - logits[:N_SELF_PATCHES].mean(0)
    return torch.cat([delta.roll(shift, 1) for shift in shifts] if read is None else delta.split(len(read), 1))


def _change(metric: ExampleMetric, logits: Tensor, delta: Tensor) -> Tensor:
    """logits [V] (or [K]), delta [J, V] -> float64 [J], on the CPU."""
    return (metric(logits + delta) - metric(logits[None].clone())).cpu()


def _reference_change(metric: ExampleMetric, logits: Tensor, delta: Tensor) -> Tensor:
    """What delta changes in the KL of logits [V] if it moves those that the KL is taken from; 0 for other metrics: [J]."""
    if metric.metric != "kl" or metric.clean is None:
        return torch.zeros(len(delta), dtype=torch.float64)
    moved = torch.cat([kl_from(metric.clean + d, logits[None]) for d in delta])
    return (moved - kl_from(metric.clean, logits[None])).cpu()
