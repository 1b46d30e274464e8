"""What is asked of a lens, checked: prompts, positions, tokens; and the rows of the forward passes that answer it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycotmech.engine import planner
from pycotmech.engine.bases import common_prefix
from pycotmech.model.prompts import Tokens, listed, resolve_positions
from pycotmech.model.run import forward_packed
from pycotmech.patching.pairs import answer_token

if TYPE_CHECKING:
    from pycotmech.model import Model

NO_TOKEN = -1
"""Fills a table of token ids where a row has fewer than the others."""


@dataclass(frozen=True)
class Request:
    """B prompts, R positions of each, and K tokens of each position.

    ids [B, R, K] on the CPU; None: the model's own next token at each position.
    batched, listed: whether the results keep the axes B and R.
    """

    raw: list[Tokens]
    prompts: list[Tensor]
    positions: Tensor  # [B, R]
    ids: Tensor | None
    labels: tuple[str, ...]
    batched: bool
    listed: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The first axes of every result."""
        B, R = self.positions.shape
        return (*((B,) if self.batched else ()), *((R,) if self.listed else ()))

    def where(self) -> NDArray[np.int64]:
        """The positions, with the axes that results have."""
        where = self.positions.numpy() if self.batched else self.positions[0].numpy()
        return where if self.listed else where[..., 0]

    @property
    def axes(self) -> tuple[str, ...]:
        return (*(("example",) if self.batched else ()), *(("position",) if self.listed else ()))


def check_request(
    model: Model,
    tokens: Tokens | Sequence[Tokens],
    positions: int | Sequence[int] | Tensor | None,
    answer: Any,
    wrong: Any = None,
) -> Request:
    """Checks what the user gave; ValueError names the argument."""
    raw, single = listed(tokens, argument="tokens")
    batched = not single
    if not raw:
        raise ValueError("tokens: got no prompt; expected at least one")
    prompts = [model.to_tokens(p, argument=f"tokens[{i}]" if batched else "tokens") for i, p in enumerate(raw)]
    if positions is None and len({len(p) for p in prompts}) > 1:
        raise ValueError("positions: got None (all positions) for prompts of unequal lengths; expected positions, such as [-1]")
    chosen = positions.tolist() if isinstance(positions, Tensor | np.ndarray) else positions
    keeps_axis = not isinstance(chosen, Integral)
    where = [resolve_positions(range(len(p)) if chosen is None else chosen, len(p)) for p in prompts]  # type: ignore[arg-type]
    if not where[0]:
        raise ValueError("positions: got an empty list; expected at least one position, or None for all")
    if wrong is not None and answer is None:
        raise ValueError("answer: got wrong without answer; expected the token that it is compared with")
    at = torch.tensor(where)
    ids = None if answer is None else _ids(model, raw, prompts, at, answer, batched, "answer")
    labels: tuple[str, ...] = ("next token",)
    if ids is not None:
        labels = _labels(model, ids, "answer")
    if wrong is not None:
        other = _ids(model, raw, prompts, at, wrong, batched, "wrong")
        assert ids is not None
        if ids.shape[-1] != 1 or other.shape[-1] != 1:
            raise ValueError(f"answer, wrong: {ids.shape[-1]} and {other.shape[-1]} tokens; expected one of each to compare")
        if bool(((ids == other) & (ids != NO_TOKEN)).any()):
            raise ValueError(f"answer, wrong: {answer!r} and {wrong!r} begin with the same token; expected two that differ")
        ids = torch.cat((ids, other), -1)
        labels = (*labels, *_labels(model, other, "wrong"))
        if bool((ids != ids[:1, :1]).any()):
            labels = ("answer", "wrong")
    return Request(raw, prompts, at, ids, labels, batched, keeps_axis)


def _ids(model: Model, raw, prompts: list[Tensor], where: Tensor, answer: Any, batched: bool, argument: str) -> Tensor:
    """Token ids [B, R, K]."""
    B, R = where.shape
    if isinstance(answer, Tensor) and answer.ndim == 2 + batched:  # a table: other tokens at each position
        table = answer.long().cpu().view(B, -1, answer.shape[-1]) if answer.numel() else answer.view(B, 0, 0)
        if answer.is_floating_point() or table.shape[1] != R or table.shape[2] == 0:
            want = f"[{B}, {R}, K]" if batched else f"[{R}, K]"
            raise ValueError(f"{argument}: got {answer.dtype} {list(answer.shape)}; expected integer token ids {want}")
        if int(table.max()) >= model.cfg.d_vocab or int(table.min()) < NO_TOKEN:
            raise ValueError(f"{argument}: a token id is outside the vocabulary of {model.cfg.d_vocab} tokens")
        return table
    given: Any = answer.tolist() if isinstance(answer, Tensor | np.ndarray) else answer
    if not isinstance(given, Integral | str | Sequence):
        raise TypeError(f"{argument}: got {given!r} of type {type(given).__name__}; expected token ids or strings")
    shared = isinstance(given, (Integral, str)) or not batched
    by_prompt: list[Any] = [given] * B if shared else list(given)  # pyright: ignore[reportArgumentType]
    if len(by_prompt) != B:
        raise ValueError(f"{argument}: {len(by_prompt)} given for {B} prompts; expected one, or one (or a list) per prompt")
    rows = []
    for i, (asked, prompt, ids) in enumerate(zip(by_prompt, raw, prompts, strict=True)):
        name = f"{argument}[{i}]" if batched else argument
        words: list[Any] = [asked] if isinstance(asked, (Integral, str)) else list(asked)
        if not words:
            raise ValueError(f"{name}: no token is given; expected at least one")
        last = int(where[i, -1])  # of a word its first token after the last position
        rows.append([answer_token(model, prompt, word, last, ids, name) for word in words])
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"{argument}: the prompts have {sorted({len(row) for row in rows})} tokens; expected equally many")
    return torch.tensor(rows)[:, None].expand(B, R, -1).contiguous()


def _labels(model: Model, ids: Tensor, role: str) -> tuple[str, ...]:
    """A name for each of the K tokens: the token where it is the same everywhere."""
    K = ids.shape[-1]
    out = []
    for k in range(K):
        found = ids[..., k].unique().tolist()
        out.append(token_text(model, found[0]) if len(found) == 1 else role if K == 1 else f"{role} {k}")
    return tuple(out)


def token_text(model: Model, token: int) -> str:
    """The token as text; its number where there is no tokenizer."""
    if token == NO_TOKEN:
        return "-"
    return str(token) if model.tokenizer is None else model.tokenizer.decode([token])


# ---- rows ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PromptRows:
    """The rows of prompts first .. end - 1: sites [L, n * R, ...] and resid_post of the last layer [n * R, d]."""

    first: int
    end: int
    embedding: Tensor  # [n * R, d] of the tokens at the rows
    sites: dict[str, Tensor]
    final: Tensor


def rows_of(model: Model, request: Request, sites: Sequence[str], memory_gb: float | None) -> Iterator[PromptRows]:
    """Runs the prompts and keeps what was asked for, in batches that fit the memory budget.

    What all prompts share before their first position is computed once, or taken from what the model keeps.
    """
    family, budget = model.family, planner.memory_budget(memory_gb, *model.family.devices)
    prompts, where = request.prompts, request.positions
    R = where.shape[1]
    P = min(common_prefix(prompts), int(where.min())) if len(prompts) > 1 else 0
    past = model.prefixes.key_values(prompts[0][:P], budget)
    ends = where.max(1).values + 1  # nothing after the last position is needed
    for a, b in planner.cut([planner.prompt_bytes(family, int(n), R, sites) for n in ends], budget // 2):
        suffixes = [prompts[i][P : ends[i]] for i in range(a, b)]
        starts = torch.tensor([0, *map(len, suffixes)]).cumsum(0)[:-1]
        read = (starts[:, None] + where[a:b] - P).flatten()
        keep, again = read.unique(return_inverse=True)
        packed = forward_packed(family, suffixes, past, sites=sites, keep=keep, read=read)
        kept = {site: packed.sites[site][:, again.to(family.device)] for site in sites}
        tokens = torch.cat([prompts[i][where[i]] for i in range(a, b)])
        embedding = family.embed(tokens.to(family.device), where[a:b].flatten().to(family.device))
        final = packed.resid_final
        del packed
        yield PromptRows(a, b, embedding, kept, final)
