"""Scores of known kinds of heads: how much each head attends to the previous token, to what followed the same token before
(induction; Olsson et al. 2022), to earlier copies of the same token (duplicate-token heads; Wang et al. 2022), and to the
first token (the sink; Xiao et al. 2023).

Every score is an average of exact attention weights, computed entry by entry from queries, keys and the normaliser.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycotmech._choices import unknown_choice
from pycotmech.attention.prompts import checked, chosen_rows
from pycotmech.display import Arrays, Displayed, View
from pycotmech.model.arguments import check_integer, check_model, check_seed
from pycotmech.model.prompts import Tokens
from pycotmech.model.run import watch

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from pycotmech.model import Model

KINDS = ("first", "previous", "duplicate", "induction")

_PAIRS = 1 << 18
"""Pairs of positions that are compared at a time."""


@dataclass(frozen=True, eq=False)
class HeadScores(Displayed):
    """Per layer and head, float64 [L, H] each: the attention of a kind, averaged over the rows where the kind is possible.

    first: to token 0, over all rows after it. previous: to the token before, over the same rows. duplicate: to all earlier
    copies of the row's own token. induction: to all tokens that follow an earlier copy of the row's own token.
    n_rows: over how many rows each was averaged; a score without rows is NaN.
    """

    first: NDArray[np.float64]
    previous: NDArray[np.float64]
    duplicate: NDArray[np.float64]
    induction: NDArray[np.float64]
    n_rows: dict[str, int]
    model_name: str = ""

    def __getitem__(self, kind: str) -> NDArray[np.float64]:
        if kind not in KINDS:
            raise KeyError(unknown_choice("kind", kind, KINDS))
        return getattr(self, kind)

    def top(self, kind: str, k: int = 10) -> list[tuple[tuple[int, int], float]]:
        """The k heads with the highest score of a kind: [((layer, head), score), ...]."""
        score = self[kind]
        order = np.argsort(-np.nan_to_num(score, nan=-1.0).ravel(), kind="stable")[:k]
        return [(tuple(int(i) for i in np.unravel_index(o, score.shape)), float(score.ravel()[o])) for o in order]  # type: ignore[misc]

    def to_dataframe(self) -> pd.DataFrame:
        """One line per head: layer, head, and one column for each kind."""
        import pandas as pd

        layer, head = np.indices(self.first.shape).reshape(2, -1)
        return pd.DataFrame({"layer": layer, "head": head, **{kind: self[kind].ravel() for kind in KINDS}})

    def view(self) -> View:
        """The scores of all kinds."""
        best = [f"{kind}: " + ", ".join(f"L{l}H{h} {s:.2f}" for (l, h), s in self.top(kind, 3)) for kind in KINDS]
        return View(
            title="How much each head attends to the first token, the previous one, copies of its own, and what followed them",
            values=np.stack([self[kind] for kind in KINDS]), axes=("kind", "layer", "head"), labels={"kind": list(KINDS)},
            label="mean attention", share=True, by_size=False, facts=(self.model_name, *best),
            go_on=(("scores.top('induction')", "the heads with the highest score of a kind"),),
        )  # fmt: skip

    def to_xarray(self) -> xr.Dataset:
        """The score of each kind [layer, head]; how many rows each was averaged over is in its attributes."""
        found = Arrays(
            data={kind: (("layer", "head"), self[kind]) for kind in KINDS},
            coords={axis: np.arange(n) for axis, n in zip(("layer", "head"), self.first.shape, strict=True)},
            units=dict.fromkeys(KINDS, "share of attention"),
            attrs={"title": "Scores of known kinds of heads", "model": self.model_name, "source": "docs/attention.md"},
        ).dataset()
        for kind in KINDS:
            found[kind].attrs["n_rows"] = self.n_rows[kind]
        return found

    def plot(self, *, kinds: Sequence[str] = KINDS, title: str | None = None, path: str | PathLike | None = None):
        """One heat map for each kind, layers upward, heads to the right; a matplotlib figure, saved to `path` if given."""
        from pycotmech.figures.heatmap import share_maps_figure

        title = title or f"{self.model_name}: mean attention to ...".lstrip(": ")
        return share_maps_figure({kind: self[kind] for kind in kinds}, title=title, label="mean attention", path=path)

    def __repr__(self) -> str:
        best = ", ".join(f"{kind} {h[0]}.{h[1]} {s:.2f}" for kind in KINDS for h, s in self.top(kind, 1))
        return f"HeadScores({self.first.shape[0]} layers x {self.first.shape[1]} heads; highest: {best})"


def head_scores(
    model: Model, tokens: Tokens | None = None, *, rows: slice | Sequence[int] | None = None, seed: int = 0
) -> HeadScores:
    """Scores every head for attending to the first token, the previous token, copies of its token, and what followed them.

    tokens: ids [T] or [B, T], or a string. None: random tokens repeated once (`repeated_tokens`, drawn with `seed`), on
        which induction cannot be confused with knowledge of the text; then only rows of the repeat are scored.
    rows: query rows to score, negative from the end; None: all.

    Returns `HeadScores`, each [L, H], averaged over rows (and the batch).
    Raises ValueError naming the argument.
    Cost: a forward pass without logits, and one product of D for each pair of positions that a kind looks at.
    """
    check_model(model)
    model.family.refuse_unsupported()
    if tokens is None:
        tokens = repeated_tokens(model, seed=seed)
        rows = slice(tokens.shape[1] // 2 + tokens.shape[1] % 2, None) if rows is None else rows
    batch, _ = checked(model, tokens)
    T = batch.shape[1]
    chosen = chosen_rows(rows, T)
    scored = torch.tensor([i for i in (range(T) if chosen is None else sorted(set(chosen))) if i > 0], dtype=torch.long)
    family, cfg = model.family, model.cfg
    found = {kind: torch.zeros(cfg.n_layers, cfg.n_heads, dtype=torch.float64, device=family.device) for kind in KINDS}

    def attend(l: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attention = family.attention(l)
        out = attention.extract(q, k, v)
        for kind in KINDS:
            for b, qi, ki in _pairs(kind, batch, scored):
                at = slice(None) if b is None else slice(b, b + 1)
                p = attention.entries(q[at], k[at], out.lse[at].contiguous(), qi.to(q.device), ki.to(q.device))
                found[kind][l] += p.sum((0, 2), dtype=torch.float64)
        return out.z

    watch(family, batch, attend)
    sums = {kind: value.cpu() for kind, value in found.items()}
    n = {kind: _count(kind, batch, scored) for kind in KINDS}
    scores = {kind: (sums[kind] / n[kind] if n[kind] else torch.full_like(sums[kind], torch.nan)).numpy() for kind in KINDS}
    return HeadScores(**scores, n_rows=n, model_name=model.name)


def repeated_tokens(model: Model, *, length: int = 64, batch: int = 4, seed: int = 0) -> Tensor:
    """Random token ids, repeated once: [batch, 2 length], after the tokenizer's BOS where prompts begin with one.

    The second half can be predicted by attending to what followed the same token in the first, and by nothing else. Ids
    are drawn without replacement where the vocabulary allows it, and never from the special tokens.
    """
    check_model(model)
    check_seed(seed)
    check_integer(length, "length", 1)
    check_integer(batch, "batch", 1)
    tokenizer = model.tokenizer
    special = set() if tokenizer is None else set(tokenizer.all_special_ids)
    ids = torch.tensor([i for i in range(model.cfg.d_vocab) if i not in special])
    g = torch.Generator().manual_seed(seed)
    if length <= len(ids):
        drawn = [torch.randperm(len(ids), generator=g)[:length] for _ in range(batch)]
    else:
        drawn = [torch.randint(len(ids), (length,), generator=g) for _ in range(batch)]
    once = ids[torch.stack(drawn)]
    parts = [once, once]
    bos = None if tokenizer is None else tokenizer.bos_token_id
    if model.prepend_bos is not False and bos is not None:
        parts = [torch.full((batch, 1), bos), *parts]
    return torch.cat(parts, 1)


def _pairs(kind: str, tokens: Tensor, rows: Tensor) -> Iterator[tuple[int | None, Tensor, Tensor]]:
    """(example or None for all, query rows [E], keys [E]) that a kind looks at, a bounded number at a time."""
    if not len(rows):
        return
    if kind == "first":
        yield None, rows, torch.zeros_like(rows)
    elif kind == "previous":
        yield None, rows, rows - 1
    else:
        for b, ids in enumerate(tokens):
            for queries, seen in _matches(kind, ids, rows):
                at, key = seen.nonzero(as_tuple=True)
                if len(at):
                    yield b, queries[at], key


def _matches(kind: str, ids: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows [r], bool [r, T]): which keys are earlier copies of the row's token, or follow one."""
    T = len(ids)
    keys = torch.arange(T)
    for queries in rows.split(max(1, _PAIRS // T)):
        same = ids[queries][:, None] == ids  # [r, T]
        if kind == "induction":
            same = torch.nn.functional.pad(same[:, :-1], (1, 0))
        yield queries, same & (keys < queries[:, None])


def _count(kind: str, tokens: Tensor, rows: Tensor) -> int:
    """Rows at which the kind is possible."""
    if kind in ("first", "previous"):
        return len(rows) * len(tokens)
    return sum(int(seen.any(1).sum()) for ids in tokens for _, seen in _matches(kind, ids, rows))
