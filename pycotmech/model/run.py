"""Prompts run as packed rows, with activations kept on the way.

Two things differ from running the Hugging Face model: several sequences that continue one shared prefix are computed as
rows of one matrix, on keys and values of the prefix that were computed once; and only what is asked for is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pycotmech.display import Described, Facts
from pycotmech.model.climb import Attention, EditZ, Kept, KeySlots, climb
from pycotmech.model.families.base import Family
from pycotmech.model.packed import KeyValues, Packed, RowKeys, causal_attention, site_dtype, site_shape
from pycotmech.model.prompt_pass import PromptPass
from pycotmech.model.sites import parse_site, refuse_missing

Replay = Callable[[PromptPass], Packed]
"""Runs a pass, or replays one that was captured (`engine.graphs`)."""


@torch.no_grad()
def forward_packed(
    family: Family,
    sequences: Sequence[Tensor],
    past: KeyValues | None = None,
    *,
    after: Sequence[tuple[int, int]] | None = None,
    sites: Sequence[str] = (),
    keep: Tensor | None = None,
    read: Tensor | None = None,
    edit_z: EditZ | None = None,
    upto: int | None = None,
    replay: Replay | None = None,
) -> Packed:
    """Runs sequences that continue a past (or start at position 0) through the model as packed rows.

    sequences: token ids, each [S_i]. after: for each sequence the range of the past's keys that it continues, whose first
    one is at position 0; None: all of them.
    sites: what to keep, in all layers, for the packed row numbers `keep`, ascending; None: for all rows.
    read: packed row numbers whose final residual is wanted. Without sites, the last layer computes queries, attention and
    MLP for these rows only (none: only its keys and values).
    edit_z: what every layer does to z before its output projection; layers above see its consequences. The past is
    taken as it is: an edit that reaches it has to be made where the past is computed.
    upto: only the first so many layers, 1 .. n_layers; what is said of the last layer then holds for the last of these.
    replay: takes the pass, padded (`prompt_pass`), if it edits nothing and has few enough rows. None: rows are not padded.
    Raises what `refuse_unsupported` and `check_length` raise: every run begins here, and one that would be wrong does not
    begin.
    """
    family.refuse_unsupported()
    lengths = [len(s) for s in sequences]
    offsets = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    R, L, device = offsets[-1], family.cfg.n_layers if upto is None else upto, family.device
    after = [(0, 0 if past is None else len(past))] * len(lengths) if after is None else after
    family.check_length(max((n + b - a for n, (a, b) in zip(lengths, after, strict=True)), default=0))
    read = torch.empty(0, dtype=torch.long) if read is None else read
    if replay is not None and edit_z is None and PromptPass.is_for(family, R):
        return replay(PromptPass(family, sequences, past, after, sites=sites, keep=keep, read=read, n_layers=L))
    read = read.to(device)
    tokens = torch.cat([s.to(device) for s in sequences])
    keys = RowKeys.of(lengths, after)
    n_kept = R if keep is None else len(keep)
    kept = {
        s: torch.empty(L, n_kept, *site_shape(family, s), dtype=site_dtype(family, s), device=device)
        for s in dict.fromkeys(sites)
    }
    own = KeySlots.empty(family, R, n_layers=L)
    x = climb(
        family, tokens, keys.positions.to(device), _attention(family, lengths, past, keys), own,
        kept=Kept(kept, keep), edit_z=edit_z, read=None if kept else read, n_layers=upto,
    )  # fmt: skip
    return Packed(offsets, own.k, own.v, kept, x[read] if kept else x)


def packed_attention(
    family: Family, lengths: Sequence[int], past: KeyValues | None, after: Sequence[tuple[int, int]]
) -> Attention:
    """Causal attention of sequences that are packed one after another: over their own keys, and over a range of the past's."""
    return _attention(family, lengths, past, RowKeys.of(lengths, after))


def _attention(family: Family, lengths: Sequence[int], past: KeyValues | None, keys: RowKeys) -> Attention:
    table = keys.table(family, sum(lengths), 0 if past is None else len(past))
    return causal_attention(family, lengths, table, past)


def watch(family: Family, tokens: Tensor, attend: Callable[[int, Tensor, Tensor, Tensor], Tensor | None]) -> None:
    """Runs tokens [B, T] up to the last layer's attention, with `attend` in the place of attention.

    attend: (layer, q [B, H, T, D], k and v [B, Hkv, T, D], rotated) -> z [B, H, T, D]; None in the last layer, where
    it is not used. The tensors are overwritten by the next layer: copy what is to be kept.

    Memory: the residual stream, and q, k, v and z of one layer. Cost: a forward pass without the last layer's output
    projection and MLP, and without the unembedding.
    """
    B, T = tokens.shape

    def attention(l: int, q: Tensor, k: Tensor, v: Tensor, _rows: Tensor | None) -> Tensor | None:
        z = attend(l, *(t.unflatten(0, (B, T)).transpose(1, 2) for t in (q, k, v)))  # views [B, heads, T, D]
        return None if z is None or l == family.cfg.n_layers - 1 else z.transpose(1, 2).flatten(0, 1)  # [B * T, H, D]

    positions = torch.arange(T, device=family.device).repeat(B)
    climb(family, tokens.to(family.device).flatten(), positions, attention, KeySlots.empty(family, B * T))


@dataclass(frozen=True)
class Activations(Mapping, Described):
    """What `Model.run` kept. acts[site] is [L, T, ...] for one sequence, [B, L, T, ...] for a batch.

    resid_pre, resid_mid, resid_post [.., T, d] in the residual stream's float32; attn_out, mlp_out [.., T, d], q, z
    [.., T, H, D] and k, v [.., T, Hkv, D] in the model's dtype. q and k are before the rotary embedding, z before W_O.
    A TransformerLens hook name gives one layer: acts["blocks.3.attn.hook_z"] is acts["z"][3].
    """

    logits: Tensor
    """[T, V] (or [B, T, V]) float32, at `positions` if they were chosen."""
    tokens: Tensor
    """[T] or [B, T]."""
    _sites: dict[str, Tensor] = field(repr=False)

    def __getitem__(self, site: str) -> Tensor:
        name, layer = parse_site(site)
        if name not in self._sites:
            raise KeyError(f"{site!r} was not captured; run with capture=({name!r}, ...)")
        value = self._sites[name]
        return value if layer is None else value.select(self.tokens.ndim - 1, layer)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def described(self) -> Facts:
        kept = {site: _sizes(value) for site, value in self._sites.items()}
        n = self.tokens.shape[-1]
        of = f"{n} tokens" if self.tokens.ndim == 1 else f"{len(self.tokens)} prompts of {n} tokens"
        return Facts(f"One run over {of}", {"logits": _sizes(self.logits), **kept})

    def __repr__(self) -> str:
        kept = ", ".join(f"{site} {list(value.shape)}" for site, value in self._sites.items())
        return f"Activations(logits {list(self.logits.shape)}{', ' if kept else ''}{kept})"


def _sizes(value: Tensor) -> str:
    """A tensor's shape, dtype and memory."""
    mib = value.numel() * value.element_size() / 2**20
    return f"{list(value.shape)}, {str(value.dtype).removeprefix('torch.')}, {mib:,.1f} MiB"


def run(family: Family, tokens: Tensor, capture: Sequence[str], positions: Sequence[int] | None) -> Activations:
    """`Model.run` on checked input: tokens [B, T]; positions already counted from the front."""
    B, T = tokens.shape
    sites = [parse_site(name, argument="capture")[0] for name in capture]
    for site in sites:
        refuse_missing(site, family.cfg, argument="capture")
    where = torch.arange(T) if positions is None else torch.tensor(positions, dtype=torch.long)
    read = (torch.arange(B)[:, None] * T + where).flatten()
    packed = forward_packed(family, list(tokens), sites=sites, read=read)
    with torch.no_grad():
        logits = family.logits(packed.resid_final).unflatten(0, (B, -1))
    kept = {s: t.unflatten(1, (B, T)).movedim(1, 0) for s, t in packed.sites.items()}
    return Activations(logits, tokens, kept)
