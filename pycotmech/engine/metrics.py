"""What a patch is measured by: one number from the logits at one position.

kl          KL(P_clean || P), nats, in both directions: 0 where the run predicts what the clean run predicts
            (docs/protocol.md, E1)
logit_diff  logit(answer) - logit(wrong)
prob        P(answer)
a callable  gets the logits [N, V] (float32) of one example, returns [N], row by row
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from pycotmech._choices import check_choice

MetricName = Literal["kl", "logit_diff", "prob"]
Metric = MetricName | Callable[[Tensor], Tensor]

KL_VALUES = (2**18, 2**24)
"""Float64 values that exist at once in a KL, on CPU (2 MiB: they stay in the cache) and on CUDA."""

_NAMES = ("kl", "logit_diff", "prob")


def check_metric(metric: Metric, answer: object, wrong: object) -> str:
    """The metric's name, after checking that it has the tokens it needs."""
    if callable(metric):
        return getattr(metric, "__name__", type(metric).__name__)
    check_choice("metric", metric, _NAMES, also="a callable on logits [N, V] -> [N]")
    if metric in ("logit_diff", "prob") and answer is None:
        raise ValueError(f"answer: metric {metric!r} needs it; expected a token id, a string, or one per example")
    if metric == "logit_diff" and wrong is None:
        raise ValueError("wrong: metric 'logit_diff' needs it; expected a token id, a string, or one per example")
    return metric


class ExampleMetric:
    """The metric of one example, on final residual rows or on logits."""

    def __init__(self, metric: Metric, clean_logits: Tensor | None, answer: int | None, wrong: int | None) -> None:
        self.metric, self.clean, self.answer, self.wrong = metric, clean_logits, answer, wrong
        self.token_ids = [answer, wrong] if metric == "logit_diff" else None
        """The tokens whose logits are enough; None: the whole vocabulary."""

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits [N, V], or [N, len(token_ids)] -> float64 [N]."""
        if self.metric == "kl":
            assert self.clean is not None
            return kl_from(self.clean, logits)
        if self.metric == "logit_diff":
            if logits.shape[-1] != 2:
                logits = logits[:, self.token_ids]
            return logits[:, 0].double() - logits[:, 1].double()
        if self.metric == "prob":
            assert self.answer is not None
            return torch.exp(log_probability(logits, self.answer))
        assert callable(self.metric)
        out = self.metric(logits)
        if not isinstance(out, Tensor) or out.shape != (len(logits),):
            got = f"shape {list(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"metric: the callable must map logits [N, V] to [N]; for N = {len(logits)} it returned {got}")
        return out.double()


def log_probability(logits: Tensor, token: int | Tensor) -> Tensor:
    """Log probability of a token in each row: logits [N, V] -> float64 [N]. token: the same in all rows, or of each, [N]."""
    of_token = logits.gather(1, token[:, None])[:, 0] if isinstance(token, Tensor) else logits[:, token]
    return of_token.double() - torch.logsumexp(logits.double(), -1)


def kl_from(clean: Tensor, logits: Tensor) -> Tensor:
    """KL(P_clean || P) of each row, nats: clean [V], logits [N, V] -> float64 [N].

    With delta = logits - clean it is log(sum P_clean exp(delta)) - sum P_clean delta: two numbers of the size of the
    effect, so small effects keep their digits (the difference of two log-probabilities would not).
    """
    clean = clean.double()
    p = torch.log_softmax(clean, -1).exp()
    out = torch.empty(len(logits), dtype=torch.float64, device=logits.device)
    rows = max(1, KL_VALUES[logits.is_cuda] // logits.shape[-1])
    for a in range(0, len(logits), rows):
        delta = logits[a : a + rows].to(torch.float64, copy=True).sub_(clean)
        mean, top = delta @ p, delta.amax(-1, keepdim=True)
        # A gradient needs delta as it was; without one nothing is allocated.
        ratio = (delta - top).exp() if delta.requires_grad else delta.sub_(top).exp_()
        out[a : a + rows] = ratio.mv(p).log() + top[:, 0] - mean
    return out.clamp_min_(0.0)


def normalise(metric: str, raw: Tensor, clean: Tensor, corrupted: Tensor) -> Tensor:
    """Raw values on the scale corrupted 0, clean 1 (docs/protocol.md, E1); of one example, or already averaged.

    kl: (KL_corrupted - KL) / KL_corrupted, since KL_clean is 0; others: (m - m_corrupted) / (m_clean - m_corrupted).
    Raises ValueError if clean and corrupted do not differ.
    """
    span = clean - corrupted
    if bool((span == 0).any()):
        raise ValueError(
            f"metric: {metric} is the same in the clean and the corrupted run, so nothing can be restored; "
            "choose another metric or pair, or normalize=False"
        )
    return (raw - corrupted) / span
