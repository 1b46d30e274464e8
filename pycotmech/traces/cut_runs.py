"""Runs of a trace in which later tokens do not see a range of earlier ones, many such cuts at once.

A cut changes nothing before the first row that it reaches, and nothing below the first layer that it is made in: these are the
untouched run's, computed once, and their keys and values are shared by all cuts. The rows of all cuts from there on go through
the layers as one matrix. What comes out is compared with the untouched run position by position, and no logits are kept.

Cost for N cuts of n_1 ... n_N rows, of T tokens: T + sum of n_i rows through the layers, and one row of the unembedding for
each row that is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycotmech._words import plural
from pycotmech.engine import planner
from pycotmech.engine.budget import LOGIT_ROWS
from pycotmech.engine.memory import hint_at_budget
from pycotmech.engine.metrics import kl_from
from pycotmech.model.climb import KeySlots, climb
from pycotmech.model.families.base import Family
from pycotmech.model.prefixes import Prefixes
from pycotmech.model.run import KeyValues, packed_attention

BATCH_ROWS = 2**16
"""Rows of cuts that go through the layers at once, at most: more are no faster, and a batch should not take hours."""

Where = Mapping[int, Sequence[int] | None]
"""Layer -> the heads in which edges are cut there; None: all of them. Layers that are not named are untouched."""


@dataclass(frozen=True)
class Cut:
    """Rows first .. stop - 1 do not see the keys lo .. hi - 1; rows from `stop` on are not computed."""

    first: int
    stop: int
    lo: int
    hi: int

    def __len__(self) -> int:
        return self.stop - self.first


@dataclass(frozen=True)
class Untouched:
    """The run without cuts. Rows from `first` on are kept.

    keys: of all positions. final [T - first, d]: the residual stream after the last layer. entry [T - first, d]: before
    the layer `layer`, in which the first edge is cut; None: it is the embedding.
    """

    tokens: Tensor  # [T]
    first: int
    keys: KeyValues
    final: Tensor
    layer: int
    entry: Tensor | None


@torch.no_grad()
def untouched(family: Family, prefixes: Prefixes, tokens: Tensor, first: int, layer: int, room: int) -> Untouched:
    """Runs tokens [T] once. The beginning comes from kept prefixes."""
    family.refuse_unsupported()
    past, rest = prefixes.key_values(tokens[:first], room), tokens[first:]
    positions = torch.arange(first, len(tokens), device=family.device)
    attention = packed_attention(family, [len(rest)], past, [(0, first)])
    own = KeySlots.empty(family, len(rest), n_layers=family.cfg.n_layers)

    def run(n_layers: int | None = None, begin: tuple[int, Tensor] | None = None) -> Tensor:
        return climb(family, rest.to(family.device), positions, attention, own, n_layers=n_layers, begin=begin)

    entry = run(n_layers=layer) if layer > 0 else None
    final = run(begin=None if entry is None else (layer, entry.clone()))
    k, v = (own.k, own.v) if past is None else (torch.cat((past.k, own.k), 1), torch.cat((past.v, own.v), 1))
    return Untouched(tokens, first, KeyValues(k, v), final, layer, entry)


def every_layer(n_layers: int) -> dict[int, None]:
    """All heads of all layers."""
    return dict.fromkeys(range(n_layers))


def run_cuts(
    family: Family, base: Untouched, cuts: Sequence[Cut], where: Where, room: int
) -> Iterator[tuple[range, list[int], Tensor]]:
    """Takes the rows of cuts through the layers, as many cuts at once as fit, of `BATCH_ROWS` rows at most.

    Yields the numbers of the cuts, where the rows of each begin (and end), and their residual rows after the last layer [R, d].
    room: bytes. Raises ValueError naming memory_gb if one cut does not fit.
    """
    lengths = list(map(len, cuts))
    row = _row_bytes(family, where)
    if max(lengths, default=0) * row > room:
        raise ValueError(
            f"memory_gb: {room / 2**30:.3g} GiB may be used, and one cut of {max(lengths)} rows needs "
            f"{max(lengths) * row / 2**30:.3g}; expected that much or more"
        )
    for a, b in planner.cut([n * row for n in lengths], min(room, max(BATCH_ROWS, *lengths) * row)):
        with hint_at_budget(f"{plural(b - a, 'cut')} went through the layers"):
            x = _climb(family, base, cuts[a:b], where)
        yield range(a, b), [0, *np.cumsum(lengths[a:b]).tolist()], x


def _row_bytes(family: Family, where: Where) -> int:
    """Of a row: residual stream, queries, attention's output, its keys and values of one layer, tables and cuts."""
    cfg, wide = family.cfg, family.resid_dtype.itemsize
    heads = (3 * cfg.n_heads + 2 * cfg.n_key_value_heads) * cfg.d_head * family.dtype.itemsize
    edges = max((1 if h is None else len(h) for h in where.values()), default=1)
    return 3 * cfg.d_model * wide + heads + 16 * (edges + 1) + 40


@torch.no_grad()
def _climb(family: Family, base: Untouched, cuts: Sequence[Cut], where: Where) -> Tensor:
    device = family.device
    firsts, lengths = torch.tensor([(cut.first, len(cut)) for cut in cuts]).T
    owner = torch.repeat_interleave(torch.arange(len(cuts)), lengths)
    own = (lengths.cumsum(0) - lengths)[owner]
    within = torch.arange(len(owner)) - own
    positions = firsts[owner] + within
    table = family.row_table(own, within, torch.zeros_like(own), firsts[owner], own_keys=len(own), shared_keys=len(base.keys))
    ranges = torch.tensor([(cut.lo, cut.hi) for cut in cuts])[owner]  # [R, 2]
    rows = torch.arange(len(owner))
    tables: dict[tuple[int, ...] | None, Tensor] = {}

    def edges(heads: Sequence[int] | None) -> Tensor:
        """[E, 4]: row, head or -1, and the range of keys. The same for every layer that cuts these heads."""
        key = None if heads is None else tuple(heads)
        if key not in tables:
            chosen = torch.tensor([-1] if heads is None else list(heads))
            columns = (rows.repeat_interleave(len(chosen)), chosen.repeat(len(rows)))
            found = torch.cat((torch.stack(columns, 1), ranges.repeat_interleave(len(chosen), 0)), 1)
            tables[key] = found.to(torch.int32).to(device)
        return tables[key]

    def attend(l: int, q: Tensor, k: Tensor, v: Tensor, _rows: Tensor | None) -> Tensor:
        cut = edges(where[l]) if l in where else None
        return family.attend(l, q, base.keys.k[l], base.keys.v[l], k, v, table, cut)

    here = positions.to(device)
    begin = None if base.entry is None else (base.layer, base.entry[here - base.first])
    tokens = base.tokens[positions].to(device)
    return climb(family, tokens, here, attend, KeySlots.empty(family, len(owner)), begin=begin)


Measure = Callable[[int, Tensor, Tensor, NDArray[np.int64]], None]
"""(position, logits of the untouched run [V], logits of the cuts' rows there [n, V], which rows these are [n])."""


@torch.no_grad()
def by_position(
    family: Family, base: Untouched, x: Tensor, positions: NDArray[np.int64], wanted: NDArray[np.bool_], measure: Measure
) -> None:
    """Compares rows x [R, d] at `positions` [R] with the untouched run's: calls `measure` for each position.

    wanted: bool [R], the rows that are measured. Logits exist for about 256 rows at a time, and the untouched
    run's at a position once for all cuts.
    """
    chosen = np.flatnonzero(wanted)
    order = chosen[np.argsort(positions[chosen], kind="stable")]
    at, begins = np.unique(positions[order], return_index=True)
    ends = [*begins[1:].tolist(), len(order)]
    sizes = [end - begin + 1 for begin, end in zip(begins.tolist(), ends, strict=True)]
    for a, b in planner.cut(sizes, LOGIT_ROWS):
        rows = order[begins[a] : ends[b - 1]]
        where = torch.from_numpy(at[a:b] - base.first).to(x.device)
        together = torch.cat((base.final[where], x[torch.from_numpy(rows).to(x.device)]))
        logits = family.logits(together)
        theirs, done = logits[: b - a], b - a
        for i in range(a, b):
            n = ends[i] - int(begins[i])
            measure(int(at[i]), theirs[i - a], logits[done : done + n], order[begins[i] : ends[i]])
            done += n


def divergence(base: Tensor, logits: Tensor, temperature: float) -> NDArray[np.float64]:
    """KL(P_base || P) of rows, in nats: base [V], logits [n, V] -> [n]."""
    if temperature != 1:
        base, logits = base / temperature, logits / temperature
    return kl_from(base, logits).cpu().numpy()
