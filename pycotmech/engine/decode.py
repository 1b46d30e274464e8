"""Greedy generation of many runs at once, with z of one run put into another while both continue.

Runs share a computed beginning; each has its own keys and values after it, so a step costs one row per run. What a run
takes from another at earlier positions does not change when text is added (the model is causal), so it is never recomputed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pycotmech.model.climb import KeySlots, climb
from pycotmech.model.families.base import Family
from pycotmech.model.run import KeyValues


class Runs:
    """n runs that continue one past, each with room for `room` tokens of its own.

    depth [n]: how many layers of each run are computed, descending: a run that only gives z of layer l needs l + 1.
    takes: (run, giver, layer): z of this layer in all heads is the giver's. Giver and run get equally many tokens each time,
        and the giver's depth reaches beyond the layer.
    Memory: 2 L n room Hkv D numbers for keys and values.
    """

    def __init__(
        self,
        family: Family,
        past: KeyValues | None,
        depth: Sequence[int],
        room: int,
        takes: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        cfg = family.cfg
        if list(depth) != sorted(depth, reverse=True) or not depth or depth[0] > cfg.n_layers or depth[-1] < 1:
            raise ValueError(f"depth: got {list(depth)}; expected numbers from {cfg.n_layers} down to 1, descending")
        for run, giver, layer in takes:
            if not layer < min(depth[run], depth[giver]):
                raise ValueError(f"takes: layer {layer} is not computed in both runs {run} and {giver}")
        family.refuse_unsupported()
        self.family, self.past, self.depth, self.room = family, past, list(depth), room
        self.takes: dict[int, list[tuple[int, int]]] = {}
        for run, giver, layer in takes:
            self.takes.setdefault(layer, []).append((run, giver))
        n = len(depth)
        self.own = KeySlots.empty(family, n * room, n_layers=cfg.n_layers)
        self.length = [0] * n

    def advance(self, tokens: Sequence[Tensor]) -> Tensor:
        """Adds tokens [S_i] to each run; the residual stream after the last layer at each run's last token, [m, d], of the
        m runs that go through all layers.

        Raises ValueError if a run has no room left, gets fewer or more than the run that it takes from, or becomes longer than
        the model has positions.
        """
        family, cfg, device = self.family, self.family.cfg, self.family.device
        counts = [len(t) for t in tokens]
        for run, (have, more) in enumerate(zip(self.length, counts, strict=True)):
            if have + more > self.room or more < 1:
                raise ValueError(f"tokens: {more} for run {run}, which has {have} of {self.room}; expected 1 or more that fit")
        for run, giver in (pair for pairs in self.takes.values() for pair in pairs):
            if counts[run] != counts[giver]:
                raise ValueError(f"tokens: {counts[run]} for run {run}, {counts[giver]} for run {giver}, from which it takes")
        P = 0 if self.past is None else len(self.past)
        family.check_length(P + max(have + more for have, more in zip(self.length, counts, strict=True)))
        offsets = [0, *torch.tensor(counts).cumsum(0).tolist()]
        run = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        at = torch.cat([torch.arange(have, have + more) for have, more in zip(self.length, counts)])
        table = family.row_table(
            run * self.room, at, torch.zeros_like(at), torch.full_like(at, P), own_keys=len(counts) * self.room, shared_keys=P
        )

        def attend(l: int, q: Tensor, k: Tensor, v: Tensor, _rows: Tensor | None) -> Tensor:
            past_k, past_v = (k[:0], v[:0]) if self.past is None else (self.past.k[l], self.past.v[l])
            return family.attend(l, q, past_k, past_v, k, v, table[: len(q)])

        def take(l: int, z: Tensor, _rows: Tensor | None) -> Tensor:
            for to, giver in self.takes.get(l, ()):
                z[offsets[to] : offsets[to + 1]] = z[offsets[giver] : offsets[giver + 1]]
            return z

        x = climb(
            family,
            torch.cat([t.to(device) for t in tokens]),
            (at + P).to(device),
            attend,
            replace(self.own, at=(run * self.room + at).to(device)),
            edit_z=take,
            n_rows=[offsets[sum(d > l for d in self.depth)] for l in range(cfg.n_layers)],
        )
        self.length = [have + more for have, more in zip(self.length, counts)]
        complete = sum(d == cfg.n_layers for d in self.depth)
        return x[torch.tensor(offsets[1 : complete + 1]) - 1]
