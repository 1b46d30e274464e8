"""The logit lens: what the model would predict if it stopped after a layer (nostalgebraist 2020; docs/protocol.md, E11)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from pycotmech._choices import check_choice
from pycotmech.engine import planner
from pycotmech.lens.readout import VALUES
from pycotmech.lens.request import NO_TOKEN, PromptRows, check_request, rows_of
from pycotmech.lens.results import LogitLens
from pycotmech.model.arguments import check_integer, check_model
from pycotmech.model.families.base import Family
from pycotmech.model.prompts import Tokens
from pycotmech.model.sites import refuse_missing

if TYPE_CHECKING:
    from pycotmech.model import Model

LensSite = Literal["resid_post", "resid_pre", "resid_mid", "resid"]
_SITES = ("resid_post", "resid_pre", "resid_mid", "resid")


@torch.no_grad()
def logit_lens(
    model: Model,
    tokens: Tokens | Sequence[Tokens],
    *,
    site: LensSite = "resid_post",
    positions: int | Sequence[int] | Tensor | None = None,
    answer: Any = None,
    top_k: int = 5,
    memory_gb: float | None = None,
) -> LogitLens:
    """Final norm and unembedding of the residual stream of every layer: U(x) = softmax(W_U RMSNorm(x)).

    tokens: ids [T] or [B, T], a string, or a list of prompts (of unequal lengths only with `positions`).
    site: "resid_post" after each block, the last one being the model itself; "resid_pre" before it; "resid_mid" between
        attention and MLP; "resid": the embedding and then after each block, L + 1 entries (entry j has passed j blocks).
    positions: an int drops the axis; a list keeps it; None: every position. Negative ones count from each prompt's end.
    answer: the tokens to follow. A token id, a string (its first token after the last position), or a sequence of them;
        for several prompts one for all, or one (or a sequence) for each; or a table of ids [R, K] ([B, R, K] for several
        prompts) with other tokens at each position, -1 where there is none. None: the model's own next token.
    top_k: the number of most likely tokens to keep for each layer and position.
    memory_gb: the memory that may be used in addition to the model; None: half of the free memory.

    Returns `LogitLens`: .logits, .probabilities, .ranks [.., L, K], .entropy [.., L], .top_ids, .top_probabilities
    [.., L, k], with the axes B (for a batch or list) and R (for a list of positions) first.
    Raises ValueError naming the argument, before anything is run.
    Cost: one forward pass, and L rows through the unembedding for each position. [L, T, V] is never held: logits
    exist for 64 MiB of rows at a time.
    """
    check_model(model)
    model.family.refuse_unsupported()
    check_choice("site", site, _SITES)
    refuse_missing(site, model.cfg)
    check_integer(top_k, "top_k", 0, model.cfg.d_vocab)
    planner.memory_budget(memory_gb, *model.family.devices)
    request = check_request(model, tokens, positions, answer)
    B, R = request.positions.shape
    L = model.cfg.n_layers + (site == "resid")
    K = 1 if request.ids is None else request.ids.shape[-1]
    wide = model.family.resid_dtype
    out = {
        "logits": torch.empty(B * R, L, K, dtype=wide),
        "probabilities": torch.empty(B * R, L, K, dtype=wide),
        "ranks": torch.empty(B * R, L, K, dtype=torch.int32),
        "entropy": torch.empty(B * R, L, dtype=wide),
        "top_ids": torch.empty(B * R, L, top_k, dtype=torch.int32),
        "top_probabilities": torch.empty(B * R, L, top_k, dtype=wide),
    }
    ids = torch.empty(B * R, K, dtype=torch.long) if request.ids is None else request.ids.flatten(0, 1)
    for rows in rows_of(model, request, ("resid_post" if site == "resid" else site,), memory_gb):
        here = slice(rows.first * R, rows.end * R)
        if request.ids is None:
            ids[here] = _said(model.family, rows.final)[:, None].cpu()
        for l, x in enumerate(_layers(model.family, rows, site)):
            _look(model.family, x, ids[here], {name: value[here, l] for name, value in out.items()})
    shaped = {name: value.unflatten(0, request.shape or (1,)).numpy() for name, value in out.items()}
    if not request.shape:
        shaped = {name: value[0] for name, value in shaped.items()}
    return LogitLens(
        **shaped,
        tokens=ids.view(*request.shape, K).numpy(),
        positions=request.where(),
        axes=request.axes,
        labels=request.labels,
        site=site,
        model_name=model.name,
        tokenizer=model.tokenizer,
        prompt=request.prompts[0].numpy() if B == 1 else None,
    )


def _layers(family: Family, rows: PromptRows, site: str):
    """The residual stream of one layer after another, [N, d]."""
    if site == "resid":
        yield rows.embedding
        yield from rows.sites["resid_post"]
    else:
        yield from rows.sites[site]


def _blocks(family: Family, n: int):
    step = max(1, VALUES // family.cfg.d_vocab)
    return (slice(a, min(a + step, n)) for a in range(0, n, step))


def _said(family: Family, final: Tensor) -> Tensor:
    """The model's own next token of each row, [N]."""
    return torch.cat([family.logits(final[rows].contiguous()).argmax(-1) for rows in _blocks(family, len(final))])


def _look(family: Family, x: Tensor, ids: Tensor, out: dict[str, Tensor]) -> None:
    """One layer: rows [N, d], tokens [N, K]; fills out's views of this layer, [N, ...]."""
    k = out["top_ids"].shape[-1]
    for rows in _blocks(family, len(x)):
        logits = family.logits(x[rows].contiguous())
        chosen = ids[rows].to(logits.device)
        log_z = logits.logsumexp(-1, keepdim=True)
        found = logits.gather(1, chosen.clamp_min(0))
        missing = chosen == NO_TOKEN
        out["logits"][rows] = found.masked_fill(missing, torch.nan).cpu()
        out["probabilities"][rows] = torch.exp(found - log_z).masked_fill(missing, 0.0).cpu()
        ranks = torch.stack([(logits > found[:, [i]]).sum(-1) for i in range(found.shape[1])], -1)
        out["ranks"][rows] = ranks.masked_fill(missing, -1).int().cpu()
        if k:
            top = logits.topk(k)
            out["top_ids"][rows] = top.indices.int().cpu()
            out["top_probabilities"][rows] = torch.exp(top.values - log_z).cpu()
        # log Z - sum p x: with the largest logit at 0, so that no digits are lost to its size.
        shifted = logits - logits.amax(-1, keepdim=True)
        p = torch.exp(shifted)
        z = p.sum(-1)
        out["entropy"][rows] = (z.log() - (p * shifted).sum(-1) / z).clamp_min(0).cpu()
