"""What each head, MLP and the embedding add to a logit: direct logit attribution (Elhage et al. 2021).

How the paper's analyses use it: docs/protocol.md, E4 and E8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from pycotmech._choices import check_choice
from pycotmech.engine import planner
from pycotmech.lens.heads import HeadLogits, Parts
from pycotmech.lens.readout import VALUES, LogitReadout
from pycotmech.lens.request import NO_TOKEN, PromptRows, check_request, rows_of
from pycotmech.model.arguments import check_model
from pycotmech.model.prompts import Tokens

if TYPE_CHECKING:
    from pycotmech.model import Model
    from pycotmech.model.families.base import Family

Normalization = Literal["final", "own", "none"]
_NORMALIZATIONS = ("final", "own", "none")


@torch.no_grad()
def head_logits(
    model: Model,
    tokens: Tokens | Sequence[Tokens],
    *,
    positions: int | Sequence[int] | Tensor | None = -1,
    answer: Any = None,
    wrong: Any = None,
    normalization: Normalization = "final",
    memory_gb: float | None = None,
) -> HeadLogits:
    """The direct contribution of every head to the logits of some tokens.

    A logit is W_U[v] . norm(x), and x is the sum of the embedding, of z W_O of every head and of every MLP's output.
    With the root mean square of this run's row held fixed (after subtracting its mean, if the model has a LayerNorm), the norm
    is linear, so the logit is the sum of the contributions of these components.

    tokens: ids [T] or [B, T], a string, or a list of prompts (of unequal lengths only with `positions`).
    positions: an int drops the axis; a list keeps it; None: every position. Negative ones count from each prompt's end.
    answer: the tokens whose logits are decomposed, as in `logit_lens`; None: the model's own next token.
    wrong: one token to compare with; then `HeadLogits.difference` is the attribution of logit(answer) - logit(wrong).
    normalization:
        "final": the true final norm, root mean square of the run and weight: the components add up to the logit.
        "own": each component normalised by itself, W_U[v] . RMSNorm(z W_O) (docs/protocol.md, E8). It does not depend
            on the size of what a head writes, and does not add up.
        "none": <z W_O, W_U[v]> without norm and weight (docs/protocol.md, E4).
    memory_gb: the memory that may be used in addition to the model; None: half of the free memory.

    Returns `HeadLogits`: .heads [.., L, H, K], .mlps [.., L, K], .embedding, .bias, .total [.., K], with the axes B (for
    a batch or list) and R (for a list of positions) first.
    Raises ValueError naming the argument before anything is run, and ValueError if something attached to an output
    projection, the final norm or the unembedding makes it non-linear: then the parts do not add up.
    Cost: one forward pass; for each position the output projections of all layers once.
    """
    check_model(model)
    model.family.refuse_unsupported()
    check_choice("normalization", normalization, _NORMALIZATIONS)
    planner.memory_budget(memory_gb, *model.family.devices)
    request = check_request(model, tokens, positions, answer, wrong)
    family, cfg = model.family, model.cfg
    B, R = request.positions.shape
    N, L, H = B * R, cfg.n_layers, cfg.n_heads
    K = 1 if request.ids is None else request.ids.shape[-1]
    wide = family.resid_dtype
    parts = Parts(
        z=torch.empty(L, N, H, cfg.d_head, dtype=family.dtype),
        factor=torch.empty(N, 1, dtype=wide),
        ids=torch.empty(N, K, dtype=torch.long) if request.ids is None else request.ids.flatten(0, 1),
    )
    heads, mlps = torch.empty(N, L, H, K, dtype=wide), torch.empty(N, L, K, dtype=wide)
    embedding, bias, total = (torch.empty(N, K, dtype=wide) for _ in range(3))
    readout = LogitReadout(family)
    for rows in rows_of(model, request, ("z", "mlp_out"), memory_gb):
        for a, b in _blocks(rows, H * cfg.d_model):
            here = slice(rows.first * R + a, rows.first * R + b)
            final = rows.final[a:b].contiguous()
            logits = family.logits(final)
            if request.ids is None:
                parts.ids[here] = logits.argmax(-1, keepdim=True).cpu()
            ids = parts.ids[here]
            total[here] = logits.gather(1, ids.clamp_min(0).to(logits.device)).cpu()
            parts.z[:, here] = rows.sites["z"][:, a:b].cpu()
            parts.factor[here] = readout.factor(final).cpu()
            if normalization == "final":
                readout.check_norm(final)
            prepared = _Block(readout, normalization, parts.factor[here].to(family.device), ids)
            constant = torch.zeros(b - a, cfg.d_model, dtype=wide, device=family.device)
            for l in range(L):
                z = rows.sites["z"][l, a:b]
                out = family.head_out(l, z)
                _check_linear(family, readout, l, z, out)
                heads[here, l] = prepared(out)
                mlps[here, l] = prepared(rows.sites["mlp_out"][l, a:b][:, None].to(wide))[:, 0]
                constant += family.attn_bias(l, z)
            embedding[here] = prepared(rows.embedding[a:b][:, None])[:, 0]
            bias[here] = prepared(constant[:, None])[:, 0]
            added = readout.bias(ids, normalization)
            if added is not None:
                bias[here] += added.cpu()
    missing = parts.ids == NO_TOKEN
    for value in (heads, mlps, embedding, bias, total):
        value.masked_fill_(missing.view(N, *[1] * (value.ndim - 2), K), torch.nan)
    if normalization == "final":
        _check_sum(readout, heads, mlps, embedding, bias, total)

    def shaped(x: Tensor):
        x = x.unflatten(0, request.shape) if request.shape else x[0]
        return x.numpy()

    return HeadLogits(
        heads=shaped(heads),
        mlps=shaped(mlps),
        embedding=shaped(embedding),
        bias=shaped(bias) if bool((bias != 0).any()) and normalization != "own" else None,
        total=shaped(total),
        tokens=shaped(parts.ids),
        positions=request.where(),
        axes=request.axes,
        labels=request.labels,
        normalization=normalization,
        model_name=model.name,
        compared=wrong is not None,
        _model=model,
        _parts=parts,
    )


class _Block:
    """Parts of n rows [n, M, d] -> what they contribute to the rows' tokens, [n, M, K], on the CPU."""

    def __init__(self, readout: LogitReadout, normalization: Normalization, factor: Tensor, ids: Tensor) -> None:
        self.readout, self.normalization, self.factor, self.ids = readout, normalization, factor, ids

    def __call__(self, parts: Tensor) -> Tensor:
        return self.readout.tokens(self.readout.normalised(parts, self.normalization, self.factor[:, None]), self.ids).cpu()


def _blocks(rows: PromptRows, width: int):
    """Ranges of rows whose head outputs fit in one temporary."""
    step = max(1, VALUES // width)
    return ((a, min(a + step, len(rows.final))) for a in range(0, len(rows.final), step))


def _check_linear(family: Family, readout: LogitReadout, l: int, z: Tensor, out: Tensor) -> None:
    """Raises ValueError if the heads' separate outputs do not add up to their joint output."""
    if family.is_plain_projection(l):
        return
    together = family.attn_out(l, z).to(out.dtype)
    gap = out.sum(1) + family.attn_bias(l, z) - together
    # With 16-bit or quantised weights every one of the H + 1 calls rounds.
    if not gap.norm() <= 10 * readout.tolerance * (together.norm() + out.norm()):
        raise ValueError(
            f"model: what is attached to {family.tap('z', l)[0]} is not linear (the outputs of its heads, "
            f"added up, miss its output by {float(gap.norm() / together.norm()):.2g} of it), so heads have no share in it"
        )


def _check_sum(readout: LogitReadout, heads: Tensor, mlps: Tensor, embedding: Tensor, bias: Tensor, total: Tensor) -> None:
    """Raises ValueError if the parts do not add up to the logits by far more than rounding."""
    size = heads.abs().sum((1, 2)) + mlps.abs().sum(1) + embedding.abs() + bias.abs() + total.abs()
    gap = (heads.sum((1, 2)) + mlps.sum(1) + embedding + bias - total).abs()
    bad = gap > readout.tolerance * size
    if bool(bad.any()):
        raise ValueError(
            f"model: the parts of a logit miss it by {gap[bad].max().item():.3g}, where a head contributes up to "
            f"{heads.abs().max().item():.3g}; "
            "what is attached to its unembedding is not linear, so logits are not a sum over heads"
        )
