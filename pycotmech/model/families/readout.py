"""The end of a model: from the residual stream after the last layer to logits."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from pycotmech import ops
from pycotmech.model import work
from pycotmech.model.config import ModelConfig
from pycotmech.model.families.one_module import is_exactly, linear
from pycotmech.model.placement import bias_of, weight_of

VOCAB_SLICE = 8192
"""Rows of the unembedding that are widened to float32 at a time: 128 MiB for Llama-2 7B."""


class Readout(ABC):
    """The final norm and the unembedding of a family.

    A subclass says what they are; whatever is attached to them is called as it is.
    """

    cfg: ModelConfig
    dtype: torch.dtype
    """Of weights, keys, queries and values."""
    resid_dtype: torch.dtype
    """Of the residual stream, of logits and of attention weights: float32, or float64 for a float64 model."""
    device: torch.device
    """Of the embedding: where prompts come in and results come out."""

    centred: ClassVar[bool] = False
    """Whether the final norm subtracts from each row its mean: LayerNorm, not RMSNorm."""

    def logits(self, x: Tensor, token_ids: Tensor | None = None) -> Tensor:
        """resid_post of the last layer [R, d] -> logits [R, V], or only those of `token_ids` [K]: [R, K].

        Float32 (float64 for a float64 model) throughout: rounding logits to bfloat16 would cost more precision than all
        the layers below. Cost: the unembedding's weights are widened a slice of the vocabulary at a time.
        """
        work.count_logits(self, len(x), None if token_ids is None else len(token_ids))
        return self.unembed(self.final_norm(x), token_ids)

    @abstractmethod
    def final_norm(self, x: Tensor) -> Tensor:
        """resid_post of the last layer [R, d] -> what the unembedding reads, [R, d]; as precise as `logits` needs it."""

    def centre(self, x: Tensor) -> Tensor:
        """Rows [..., d] less their means, if the final norm does so."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    @abstractmethod
    def final_factor(self, x: Tensor) -> Tensor:
        """What the final norm multiplies rows [..., d] by before its weight: [..., 1]."""

    @abstractmethod
    def final_gain(self) -> Tensor:
        """The final norm's weight, [d] in the residual stream's dtype: final_norm(x) = centre(x) * final_factor(x) *
        final_gain() + final_bias() unless something is attached to it."""

    def final_bias(self) -> Tensor | None:
        """The final norm's bias, [d] in the residual stream's dtype; None if it has none."""
        return None

    @abstractmethod
    def _unembedding(self) -> nn.Linear:
        """The module W_U: [R, d] -> [R, V]; or what was put in its place, whose weights are not read."""

    def unembed(self, n: Tensor, token_ids: Tensor | None = None) -> Tensor:
        """Normalised rows [R, d] -> logits [R, V] or [R, K], as `logits`."""
        head = self._unembedding()
        if not self.plain_unembedding():
            out = linear(head, n.to(self.dtype)).to(self.resid_dtype)
            return out if token_ids is None else out[:, token_ids]
        weight = weight_of(head) if token_ids is None else weight_of(head)[token_ids]
        if weight.dtype == n.dtype:
            out = ops.linear(n, weight, None).to(self.resid_dtype)
        elif weight.is_cuda:
            out = torch.mm(n.to(weight.dtype), weight.T, out_dtype=self.resid_dtype)
        else:
            out = torch.empty(len(n), len(weight), dtype=n.dtype)
            for a in range(0, len(weight), VOCAB_SLICE):
                b = min(a + VOCAB_SLICE, len(weight))
                out[:, a:b] = ops.linear(n, weight[a:b].to(n.dtype), None)
        if (bias := bias_of(head)) is not None:
            out += bias if token_ids is None else bias[token_ids]
        return out

    def plain_unembedding(self) -> bool:
        """Whether logits are what the unembedding reads times a matrix (and perhaps a bias), with nothing attached."""
        return is_exactly(self._unembedding(), nn.Linear)

    def unembedding_rows(self, token_ids: Tensor | Sequence[int] | int) -> Tensor:
        """Rows of the unembedding [..., d] for token ids [...], in the weights' dtype or the residual stream's.

        Raises NotImplementedError if logits are more than a product with these rows.
        """
        self._needs_plain_unembedding()
        return weight_of(self._unembedding()).detach()[token_ids]

    def unembedding_mean(self) -> Tensor:
        """The mean row of the unembedding over the vocabulary, [d] in the residual stream's dtype.

        Raises NotImplementedError as `unembedding_rows`.
        """
        self._needs_plain_unembedding()
        weight = weight_of(self._unembedding()).detach()
        total = torch.zeros(self.cfg.d_model, dtype=self.resid_dtype, device=weight.device)
        for a in range(0, len(weight), VOCAB_SLICE):
            total += weight[a : a + VOCAB_SLICE].to(self.resid_dtype).sum(0)
        return total / len(weight)

    def unembedding_bias(self) -> Tensor | None:
        """The unembedding of zeros, [V] in the residual stream's dtype; None if it is a matrix without a bias."""
        if not self.plain_unembedding():
            return self.unembed(torch.zeros(1, self.cfg.d_model, dtype=self.resid_dtype, device=self.device))[0]
        bias = bias_of(self._unembedding())
        return None if bias is None else bias.detach().to(self.resid_dtype)

    def _needs_plain_unembedding(self) -> None:
        if not self.plain_unembedding():
            raise NotImplementedError(
                "model: something is attached to its unembedding; the share of heads in logits needs the unembedding as it is"
            )

    def _widened_logits(self, norm: nn.Module, x: Tensor) -> Tensor:
        """The final norm and the unembedding of rows [1, T, d] in float32: logits [T, V] on the CPU."""
        n, head = copy.deepcopy(norm).float()(x)[0], self._unembedding()
        logits = torch.cat([n @ rows.float().T for rows in head.weight.split(VOCAB_SLICE)], -1)
        return (logits if head.bias is None else logits + head.bias.float()).cpu()
