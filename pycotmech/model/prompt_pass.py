"""A pass over packed prompts whose launches follow from a few sizes, so that passes over other prompts repeat them.

Its rows, those that are kept and those that are read are as many as the next of a few bucket sizes; what is added repeats the
last one. A row sees the keys that its line of the table says and no product adds up rows, so that what is added changes no
other row: whatever it holds, the rest is the same to the last bit. A pass with a bucket's rows can differ in the last digits
from one with its own number of rows, because a library chooses kernels by size. So a pass is padded wherever it may be
replayed, and not only where it is.

Nothing after the end of the past is read either: buffers that hold it may be longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from pycotmech.model import work
from pycotmech.model.climb import KeptRows, KeySlots, climb
from pycotmech.model.families.base import Family
from pycotmech.model.packed import KeyValues, Packed, RowKeys, causal_attention, padded, site_dtype, site_shape
from pycotmech.model.sizes import KEYS
from pycotmech.model.work import LayerRows

MOST_ROWS = 2048
"""Of more rows a pass is not padded: its products take longer than the program needs to launch them, at Llama-2 7B's widths
several times as long."""
_TILE = 128
"""Rows of a tile of a product, about: up to a multiple of it, more rows cost nothing. Fewer wait for the weights alone."""
_LEAST = 16


def bucket(n: int) -> int:
    """How many rows a pass has in place of n: a power of two from 16 to 128, or a multiple of 128; 0 for none."""
    if n > _TILE:
        return -(-n // _TILE) * _TILE
    return 0 if n == 0 else max(_LEAST, 1 << (n - 1).bit_length())


class PromptPass:
    """One such pass.

    tokens, positions [R], table [R, 4] (`Family.row_table`), angles (`Family.rotary`); past_k, past_v [L, P, Hkv, D] or None;
    keep [K], read [N]: row numbers. All on the device and padded, but for the past.
    sites: kept of the rows `keep`, in all layers. n_layers: how many layers are climbed.
    Work is counted for the rows that are asked for, without those that are added.
    """

    kind: ClassVar[str] = "prompts"
    on_device: ClassVar[tuple[str, ...]] = ("tokens", "positions", "table", "angles", "past_k", "past_v", "keep", "read")
    """As in `engine.staircase`: what a replay finds in its buffers. The rest decides what is launched."""
    for_making: ClassVar[tuple[str, ...]] = ("offsets", "n_kept", "n_read")
    """What decides nothing but which part of the results is real."""
    padded: ClassVar[dict[str, tuple[int, int]]] = {"past_k": (1, KEYS), "past_v": (1, KEYS)}

    def __init__(
        self,
        family: Family,
        sequences: Sequence[Tensor],
        past: KeyValues | None,
        after: Sequence[tuple[int, int]],
        *,
        sites: Sequence[str],
        keep: Tensor | None,
        read: Tensor,
        n_layers: int,
    ) -> None:
        lengths, device = [len(s) for s in sequences], family.device
        self.family, self.sites, self.n_layers = family, tuple(dict.fromkeys(sites)), n_layers
        self.offsets = [0, *torch.tensor(lengths).cumsum(0).tolist()]
        keep = torch.arange(self.n_real if self.sites else 0) if keep is None else keep
        self.n_kept, self.n_read = len(keep), len(read)
        R = bucket(self.n_real)
        keys = RowKeys.of(lengths, after).padded(R)
        # One prompt from its first token on: what follows it sees it, and is not seen.
        self.causal = past is None and len(lengths) == 1
        self.tokens = padded(torch.cat([s.to(sequences[0].device) for s in sequences]), R).to(device)
        self.positions = keys.positions.to(device)
        self.table = keys.table(family, R, 0 if past is None else len(past))
        self.angles = family.rotary(self.positions)
        self.past_k, self.past_v = (None, None) if past is None else (past.k, past.v)
        self.keep, self.read = (padded(r, bucket(len(r))).to(device) for r in (keep, read))

    @staticmethod
    def is_for(family: Family, rows: int) -> bool:
        """Whether a pass of so many rows is padded. Experts are called with as many rows as are sent to them: not theirs."""
        return 0 < rows <= min(MOST_ROWS, family.sizes.row_block) and not family.routed and not family.offloaded

    @property
    def n_real(self) -> int:
        """Rows that are asked for."""
        return self.offsets[-1]

    @property
    def n_rows(self) -> int:
        """All rows."""
        return len(self.tokens)

    @property
    def work(self) -> LayerRows:
        """Of the rows that are asked for."""
        n, top, layers = self.n_real, self.n_read, self.n_layers
        if self.sites:
            return LayerRows(*(layers * part for part in LayerRows.whole(n)))
        below = LayerRows(*((layers - 1) * part for part in LayerRows.whole(n)))
        return below.plus(LayerRows(n, n + top, top, top))

    def outputs(self) -> tuple[Tensor, ...]:
        """Room for keys and values [2, L, R, Hkv, D], final rows [N, d] and each site [L, K, ...]."""
        cfg, family = self.family.cfg, self.family
        shapes = [((2, self.n_layers, self.n_rows, cfg.n_key_value_heads, cfg.d_head), family.dtype)]
        shapes += [((len(self.read), cfg.d_model), family.resid_dtype)]
        shapes += [
            ((self.n_layers, len(self.keep), *site_shape(family, site)), site_dtype(family, site)) for site in self.sites
        ]
        return tuple(torch.empty(shape, dtype=dtype, device=family.device) for shape, dtype in shapes)

    def run_into(self, out: Sequence[Tensor]) -> None:
        """Runs the pass; what `outputs` gave is filled. Reports no work."""
        (k, v), final, *kept = out
        past = None if self.past_k is None or self.past_v is None else KeyValues(self.past_k, self.past_v)
        attention = causal_attention(self.family, [self.n_rows] if self.causal else None, self.table, past)
        x = climb(
            self.family, self.tokens, self.positions, attention, KeySlots(k, v),
            kept=KeptRows(dict(zip(self.sites, kept, strict=True)), self.keep), read=None if kept else self.read,
            n_layers=self.n_layers, angles=self.angles, tick=lambda rows: None,
        )  # fmt: skip
        final.copy_(x[self.read] if kept else x)

    def run(self) -> Packed:
        """The pass, kernel by kernel."""
        out = self.outputs()
        self.run_into(out)
        self.replayed()
        return self.result(out)

    def replayed(self, recorded: LayerRows | None = None) -> None:
        """Reports the work of the pass. recorded: what the pass reported that was captured, whose rows may have been others."""
        work.count(self.family, self.work)

    def result(self, out: Sequence[Tensor], *, copied: bool = False) -> Packed:
        """What was asked for, of `outputs`. copied: not as views of them."""
        kv, final, *kept = out
        kv, final = kv[:, :, : self.n_real], final[: self.n_read]
        kept = [x[:, : self.n_kept] for x in kept]
        if copied:
            kv, final, kept = kv.clone(), final.clone(), [x.clone() for x in kept]
        return Packed(self.offsets, kv[0], kv[1], dict(zip(self.sites, kept, strict=True)), final)
