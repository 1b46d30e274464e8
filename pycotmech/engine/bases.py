"""Runs the prompts that variants start from: each prompt once, their shared prefix once, keeping what joins need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

import torch
from torch import Tensor

from pycotmech.model.families.base import Family
from pycotmech.model.run import KeyValues, Packed, Replay, forward_packed
from pycotmech.model.sizes import KEYS, ROWS


class Stage(IntEnum):
    """Where in its layer a variant begins to differ: the residual stream before attention, before the MLP, after it."""

    PRE = 0
    MID = 1
    POST = 2

    @property
    def site(self) -> str:
        return ("resid_pre", "resid_mid", "resid_post")[self]


@dataclass(frozen=True)
class Bases:
    """Base runs of B prompts. Their keys and values are packed one after another; so are the rows kept for joins.

    Kept rows of base b are its positions first[b]..read[b]; nothing before first[b] is ever edited, nothing after
    read[b] is ever read. A base may be read at several positions, each variant of it then at all of them.
    """

    first: Tensor  # [B] first position whose activations are kept
    read: Tensor  # [B] the last position that is read
    key_offset: Tensor  # [B] where the base's positions 0.. begin among the shared keys
    row_offset: Tensor  # [B] where its kept rows begin
    k: Tensor  # [L, sum of positions, Hkv, D], after the rotary embedding
    v: Tensor
    sites: dict[str, Tensor]  # site -> [L, sum of rows, ...] of the base runs
    source: dict[str, Tensor]  # the same sites and rows of the runs that patches come from
    angles: Tensor  # of positions 0.., as `Family.rotary` gives them
    reads: tuple[tuple[int, ...], ...]  # for each base the positions that are read, ascending; the last is read[b]

    on_device: ClassVar[tuple[str, ...]] = ("k", "v", "sites", "source", "angles")
    for_making: ClassVar[tuple[str, ...]] = ("first", "read", "key_offset", "row_offset", "reads")
    """What nothing reads while rows go through the layers (`graphs`)."""
    padded: ClassVar[dict[str, tuple[int, int]]] = {
        "k": (1, KEYS), "v": (1, KEYS), "sites": (1, ROWS), "source": (1, ROWS), "angles": (2, KEYS),
    }  # fmt: skip
    """Tensors of which rows are looked up by number: the dimension, and to what its length is rounded up (`graphs`)."""

    @staticmethod
    def single_rows(family: Family, positions: Sequence[int], sites: dict[str, Tensor]) -> Bases:
        """One row of a run at each of these positions [n], each a base of its own: for variants of one row that climb with
        attention frozen. sites: [L, n, ...]. Keys and values are not among them."""
        at, n_layers, cfg = torch.tensor(positions), family.cfg.n_layers, family.cfg
        none = torch.empty(n_layers, 0, cfg.n_key_value_heads, cfg.d_head, dtype=family.dtype, device=family.device)
        rows, angles = torch.arange(len(at)), family.rotary(at[:0].to(family.device))
        reads = tuple((int(p),) for p in positions)
        return Bases(at, at, torch.zeros_like(at), rows, none, none, sites, {}, angles, reads)

    def readings(self, base: Tensor) -> Readings:
        """What is read of variants of these bases [N], variant after variant."""
        counts = torch.tensor([len(r) for r in self.reads])
        flat = torch.tensor([position for r in self.reads for position in r])
        n = counts[base]
        variant = torch.repeat_interleave(torch.arange(len(base)), n)
        within = torch.arange(len(variant)) - (n.cumsum(0) - n)[variant]
        number = (counts.cumsum(0) - counts)[base][variant] + within
        return Readings(variant, number, flat[number], torch.cat((torch.zeros(1, dtype=torch.long), n.cumsum(0))))

    @property
    def nbytes(self) -> int:
        tensors = [self.k, self.v, *self.sites.values(), *self.source.values()]
        return sum(t.numel() * t.element_size() for t in tensors)


@dataclass(frozen=True)
class Readings:
    """The rows that are read of N variants, M in all, variant after variant."""

    variant: Tensor  # [M] whose row it is
    number: Tensor  # [M] which of the positions that are read, those of all bases counted one after another
    position: Tensor  # [M]
    begins: Tensor  # [N + 1] where each variant's begin


@dataclass(frozen=True)
class PairRuns:
    """What running B aligned pairs gives: the bases, and the final residual rows of both runs where they are read, pair after
    pair [sum of reads, d] (none of source runs that were not asked for)."""

    bases: Bases
    base_final: Tensor
    source_final: Tensor


def common_prefix(prompts: Sequence[Tensor]) -> int:
    """Length of the longest common prefix of token sequences."""
    n = min(len(p) for p in prompts)
    same = torch.ones(n, dtype=torch.bool)
    for p in prompts[1:]:
        same &= p[:n] == prompts[0][:n]
    return n if bool(same.all()) else int(same.int().argmin())


def run_pairs(
    family: Family,
    base_prompts: Sequence[Tensor],
    source_prompts: Sequence[Tensor],
    *,
    past: KeyValues | None,
    first: Sequence[int],
    reads: Sequence[Sequence[int]],
    sites: Sequence[str],
    source_sites: Sequence[str],
    replay: Replay | None = None,
) -> PairRuns:
    """Runs aligned pairs from the end of their shared past, and keeps what joins need.

    source_prompts: none at all if the edits bring their own values.
    first, reads: for each pair, the first position whose activations are kept and the positions that are read, ascending.
    replay: as in `forward_packed`.

    A prompt that begins another one is not run on its own, and where it pays a pair is run in two passes: one of its
    prompts, then the other from where it differs, on the first one's keys and values.
    """
    P, B = 0 if past is None else len(past), len(base_prompts)
    ends = [r[-1] + 1 for r in reads]
    bases = [p[:n] for p, n in zip(base_prompts, ends, strict=True)]
    sources = [p[:n] for p, n in zip(source_prompts, ends, strict=True)] if source_prompts else []
    k, v, key_offset = _key_buffers(family, past, ends)
    needed = tuple(dict.fromkeys((*sites, *source_sites)))

    def run(prompts: Sequence[Tensor], starts: Sequence[int], after: Sequence[tuple[int, int]], store: KeyValues) -> list[_Run]:
        """Runs prompts from `starts` on, each continuing these keys of the store, those once that hold others."""
        chosen, of = _distinct(prompts, starts)
        sequences = [prompts[i][starts[i] :] for i in chosen]
        begins = torch.tensor([0, *map(len, sequences)]).cumsum(0)
        at = [int(begins[of[i]]) - starts[i] for i in range(len(prompts))]  # packed row of position 0
        which = [i % B for i in range(len(prompts))]
        ranges = [torch.arange(o + first[i], o + ends[i]) for o, i in zip(at, which, strict=True)]
        keep = torch.cat(ranges).unique()
        packed = forward_packed(
            family,
            sequences,
            store if len(store) else None,
            after=[after[i] for i in chosen],
            sites=needed,
            keep=None if len(keep) == int(begins[-1]) else keep,
            read=torch.tensor([o + position for o, i in zip(at, which, strict=True) for position in reads[i]]),
            replay=replay,
        )
        kept = [torch.searchsorted(keep, r[:1]).item() for r in ranges]
        upto = torch.tensor([len(reads[i]) for i in which]).cumsum(0).tolist()
        final = [packed.resid_final[b - len(reads[i]) : b] for b, i in zip(upto, which, strict=True)]
        return [_Run(packed, f, start, o, int(i)) for f, start, o, i in zip(final, starts, at, kept, strict=True)]

    def fill(b: int, r: _Run, lo: int, hi: int) -> None:
        """Positions lo..hi - 1 of base b get the keys and values of this run."""
        to, rows = slice(key_offset[b] + lo, key_offset[b] + hi), slice(r.at + lo, r.at + hi)
        k[:, to], v[:, to] = r.packed.k[:, rows], r.packed.v[:, rows]

    shared = past if past is not None else KeyValues(k[:, :0], v[:, :0])
    trunk, _ = sequences_run(bases, sources, P, family.sizes.pass_rows)
    if trunk is None:
        prompts = [*bases, *sources]
        runs = run(prompts, [P] * len(prompts), [(0, P)] * len(prompts), shared)
        for b in range(B):
            fill(b, runs[b], P, ends[b])
    else:
        parts = [common_prefix(pair) for pair in zip(bases, sources, strict=True)]
        trunks, branches = (bases, sources) if trunk == "base" else (sources, bases)
        on_trunk = run(trunks, [P] * B, [(0, P)] * B, shared)
        for b in range(B):
            fill(b, on_trunk[b], P, ends[b] if trunk == "base" else parts[b])
        after = [(key_offset[b], key_offset[b] + parts[b]) for b in range(B)]
        on_branch = run(branches, parts, after, KeyValues(k, v))
        if trunk == "source":
            for b in range(B):
                fill(b, on_branch[b], parts[b], ends[b])
        runs = [*on_trunk, *on_branch] if trunk == "base" else [*on_branch, *on_trunk]

    first_kept, last_read = torch.tensor(first), torch.tensor(ends) - 1
    rows = last_read - first_kept + 1
    angles = family.rotary(torch.arange(max(ends), device=family.device))
    out = Bases(
        first=first_kept,
        read=last_read,
        key_offset=torch.tensor(key_offset),
        row_offset=rows.cumsum(0) - rows,
        k=k,
        v=v,
        sites={s: _rows(runs[:B], s, rows) for s in sites},
        source={s: _rows(runs[B:], s, rows) for s in source_sites},
        angles=angles,
        reads=tuple(map(tuple, reads)),
    )
    final = [r.final for r in runs]
    return PairRuns(out, torch.cat(final[:B]), torch.cat(final[B:]) if sources else final[0][:0])


def z_of_prompts(
    family: Family, prompts: Sequence[Tensor | None], rows: Sequence[int], past: KeyValues | None, replay: Replay | None = None
) -> Tensor:
    """z of the last rows of some prompts, prompt after prompt: [L, sum of rows, H, D].

    prompts: each begins with the tokens of the past; None: its rows stay 0. rows: how many of each. replay: as in
        `forward_packed`.
    """
    cfg, P = family.cfg, 0 if past is None else len(past)
    out = torch.zeros(cfg.n_layers, sum(rows), cfg.n_heads, cfg.d_head, dtype=family.dtype, device=family.device)
    sequences, keep, to, ran, begin = [], [], [], 0, 0
    for prompt, n in zip(prompts, rows, strict=True):
        if prompt is not None:
            sequences.append(prompt[P:])
            ran += len(sequences[-1])
            keep.append(torch.arange(ran - n, ran))
            to.append(torch.arange(begin, begin + n))
        begin += n
    if sequences:
        packed = forward_packed(family, sequences, past, sites=("z",), keep=torch.cat(keep), replay=replay)
        out[:, torch.cat(to).to(family.device)] = packed.sites["z"]
    return out


@dataclass(frozen=True)
class _Run:
    """Where one prompt is found in a packed pass."""

    packed: Packed
    final: Tensor  # [reads, d] its rows that are read, after the last layer
    start: int  # the first position that was run
    at: int  # the packed row of position 0 (those before `start` are not its own)
    kept: int  # the first of its rows among those kept


def _key_buffers(family: Family, past: KeyValues | None, ends: Sequence[int]) -> tuple[Tensor, Tensor, list[int]]:
    """Room for the keys and the values of all bases [L, sum of ends, Hkv, D], with the past filled in; their offsets."""
    cfg = family.cfg
    offsets = (torch.tensor(ends).cumsum(0) - torch.tensor(ends)).tolist()
    shape = (cfg.n_layers, sum(ends), cfg.n_key_value_heads, cfg.d_head)
    k, v = (torch.empty(shape, dtype=family.dtype, device=family.device) for _ in range(2))
    if past is not None:
        for o in offsets:
            k[:, o : o + len(past)], v[:, o : o + len(past)] = past.k, past.v
    return k, v, offsets


def _distinct(prompts: Sequence[Tensor], starts: Sequence[int]) -> tuple[list[int], list[int]]:
    """Which prompts to run, so that each is the beginning of one of them that is run from the same position on: their
    numbers, and for each prompt its place among these."""
    ids = [(start, p.numpy().tobytes()) for start, p in zip(starts, prompts, strict=True)]
    chosen: list[int] = []
    place = [0] * len(prompts)
    # In this order a prompt comes right after those that it begins: from the end, only the last one chosen can hold it.
    for i in sorted(range(len(prompts)), key=lambda i: ids[i], reverse=True):
        held = chosen and ids[chosen[-1]][0] == ids[i][0] and ids[chosen[-1]][1].startswith(ids[i][1])
        if not held:
            chosen.append(i)
        place[i] = len(chosen) - 1
    return chosen, place


def sequences_run(
    bases: Sequence[Tensor], sources: Sequence[Tensor], past: int, pass_rows: int
) -> tuple[str | None, list[list[tuple[int, int]]]]:
    """How `run_pairs` runs prompts, each up to where it is read, after `past` tokens that all share. pass_rows: what a second
    pass must save.

    Returns whose prompts are run first ("base", "source"), the others from where they differ, or None for all in one pass;
    and for each pass the first position and the end of each sequence in it.
    """

    def pass_over(prompts: Sequence[Tensor], starts: Sequence[int]) -> list[tuple[int, int]]:
        return [(starts[i], len(prompts[i])) for i in _distinct(prompts, starts)[0]]

    starts, B = [past] * len(bases), len(bases)
    found: dict[str | None, list[list[tuple[int, int]]]] = {None: [pass_over([*bases, *sources], [past] * (B + len(sources)))]}
    if B > 1 and sources:
        parts = [common_prefix(pair) for pair in zip(bases, sources, strict=True)]
        found["base"] = [pass_over(bases, starts), pass_over(sources, parts)]
        found["source"] = [pass_over(sources, starts), pass_over(bases, parts)]
    trunk = min(found, key=lambda t: sum(b - a for passed in found[t] for a, b in passed) + pass_rows * len(found[t]))
    return trunk, found[trunk]


def _rows(runs: Sequence[_Run], site: str, counts: Tensor) -> Tensor:
    """The kept rows of a site [L, sum of rows, ...], run after run."""
    places = [(r.packed.sites[site], r.kept, int(n)) for r, n in zip(runs, counts, strict=True)]
    parts = [kept[:, a : a + n] for kept, a, n in places]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
