"""From vectors in the residual stream to logits: the final norm's factor, and the unembedding of parts of a row."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from pycotmech.model.families.base import Family

VALUES = 2**24
"""Values of one temporary tensor, such as rows times vocabulary: 64 MiB in float32."""

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.01}


class LogitReadout:
    """The final norm and the unembedding, decomposed: logits(x) is the sum over parts p of x of factor(x) centre(p) gamma W_U,
    and of a bias.

    A LayerNorm subtracts the mean of each row, which is the sum of the means of its parts (`Family.centre`); RMSNorm does not.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self.gamma = family.final_gain()
        self.tolerance = _TOLERANCE[family.dtype]

    def factor(self, x: Tensor) -> Tensor:
        """1 / root mean square of rows [..., d], of a LayerNorm 1 / standard deviation -> [..., 1]."""
        return self.family.final_factor(x)

    def normalised(self, parts: Tensor, normalization: str, factor: Tensor) -> Tensor:
        """Parts [.., d] as the unembedding is to read them; factor [.., 1] of the run's final rows."""
        if normalization == "none":
            return parts
        return self.family.centre(parts) * (self.factor(parts) if normalization == "own" else factor) * self.gamma

    def directions(self, rows: Tensor) -> Tensor:
        """Rows of the unembedding [..., d] -> directions whose product with a part of x, times factor(x), is its share of
        the logit."""
        return self.family.centre(rows * self.gamma.to(rows.dtype))  # <w, p - mean p> = <w - mean w, p>

    def check_norm(self, x: Tensor) -> None:
        """Raises ValueError if the final norm of these rows [N, d] is not their factor times its weight, plus its bias."""
        if not len(x):
            return
        beta, theirs = self.family.final_bias(), self.family.final_norm(x).to(x.dtype)
        ours = self.normalised(x, "final", self.factor(x)) + (0 if beta is None else beta)
        if not (ours - theirs).norm() <= self.tolerance * theirs.norm():
            raise ValueError(
                "model: its final norm is not x / size(x) * weight (something attached to it changes its output), so logits "
                "are not a sum over heads; normalization='none' does not need it"
            )

    def tokens(self, parts: Tensor, ids: Tensor) -> Tensor:
        """Inner products of parts [N, M, d] with the unembedding's rows of the tokens [N, K], bias left out: [N, M, K].

        An unembedding that something is attached to is called on the parts, and on zeros.
        """
        known = ids.clamp_min(0).to(parts.device)
        if self.family.plain_unembedding():
            rows = self.family.unembedding_rows(known).to(parts.dtype)  # [N, K, d]
            return parts @ rows.transpose(1, 2)
        N, M, d = parts.shape
        out = torch.empty(N * M, ids.shape[1], dtype=parts.dtype, device=parts.device)
        for (a, b), logits in self.vocabulary(parts.reshape(-1, d)):
            out[a:b] = logits.gather(1, known.repeat_interleave(M, 0)[a:b])
        return out.view(N, M, -1)

    def vocabulary(self, rows: Tensor) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """Rows [n, d], already normalised -> ((a, b), logits [b - a, V] without the bias), a bounded number at a time."""
        step = max(1, VALUES // self.family.cfg.d_vocab)
        for a in range(0, len(rows), step):
            b = min(a + step, len(rows))
            logits = self.family.unembed(rows[a:b])
            bias = self._bias
            yield (a, b), logits if bias is None else logits - bias

    def bias(self, ids: Tensor, normalization: str) -> Tensor | None:
        """What the unembedding's bias, and with "final" that of the final norm, add to the logits of tokens [N, K]; None if
        there is neither."""
        bias, beta, known = self._bias, self.family.final_bias(), ids.clamp_min(0).to(self.gamma.device)
        added = None if bias is None else bias[known]
        if beta is None or normalization != "final":
            return added
        written = self.tokens(beta.expand(len(ids), 1, -1), ids)[:, 0]
        return written if added is None else written + added

    @cached_property
    def _bias(self) -> Tensor | None:
        return self.family.unembedding_bias()
