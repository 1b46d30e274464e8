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
    """The final RMSNorm and the unembedding, decomposed: logits(x) = sum over parts p of x of factor(x) p gamma W_U + bias."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.gamma = family.final_gain()
        self.tolerance = _TOLERANCE[family.dtype]

    def factor(self, x: Tensor) -> Tensor:
        """1 / root mean square of rows [..., d] -> [..., 1]."""
        return self.family.final_factor(x)

    def normalised(self, parts: Tensor, normalization: str, factor: Tensor) -> Tensor:
        """Parts [.., d] as the unembedding is to read them; factor [.., 1] of the run's final rows."""
        if normalization == "none":
            return parts
        return parts * (self.factor(parts) if normalization == "own" else factor) * self.gamma

    def check_norm(self, x: Tensor) -> None:
        """Raises ValueError if the final norm of these rows [N, d] is not their factor times its weight."""
        if not len(x):
            return
        ours, theirs = self.factor(x) * x * self.gamma, self.family.final_norm(x).to(x.dtype)
        if not (ours - theirs).norm() <= self.tolerance * theirs.norm():
            raise ValueError(
                "model: its final norm is not x / rms(x) * weight (something attached to it changes its output), so logits are "
                "not a sum over heads; normalization='none' does not need it"
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

    def bias(self, ids: Tensor) -> Tensor | None:
        """The unembedding's bias of the tokens [N, K]; None if it has none."""
        bias = self._bias
        return None if bias is None else bias[ids.clamp_min(0).to(bias.device)]

    @cached_property
    def _bias(self) -> Tensor | None:
        return self.family.unembedding_bias()
