"""Runs many prompts with a set of heads ablated at every position.

Thousands of single-head variants share most of a run (`sweep`); a set with heads in every layer shares nothing with it. What
can be shared is the prefix: prompts that begin with the same tokens see the same ablated keys and values there. These are
computed once for each set of heads, not once for each prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pycotmech._words import plural
from pycotmech.engine.planner import memory_budget
from pycotmech.model.climb import EditZ
from pycotmech.model.families.base import Family
from pycotmech.model.run import KeyValues, forward_packed


class AblatedRuns:
    """Prompts that are run again and again, each time with another set of heads replaced.

    prompts: token ids [T_i], which all begin with the same `shared` tokens (0: nothing is shared).
    reads: for each prompt the positions whose final residual is wanted, at or after `shared`; what comes after the
        last of them is not computed.
    fill: what z of an ablated head is replaced by, [L, G, H, D], one value for each of G roles; None: zero.
    roles: for each prompt the role of each of its positions, integers [T_i] in 0..G-1; the shared positions must have the
        same roles in all prompts. None only without fill.
    everywhere: whether heads are ablated in the shared prefix too, or only after it.
    memory_gb: what may be used beyond the model, None: half of what is free; prompts are taken in batches that fit.
    upto: how many layers are run, and "the last layer" is the last of these; None: all.

    Raises ValueError naming the argument. Memory: keys and values of the shared prefix and of one batch of prompts.
    """

    def __init__(
        self,
        family: Family,
        prompts: Sequence[Tensor],
        reads: Sequence[Sequence[int]],
        *,
        shared: int = 0,
        fill: Tensor | None = None,
        roles: Sequence[Tensor] | None = None,
        everywhere: bool = True,
        memory_gb: float | None = None,
        upto: int | None = None,
    ) -> None:
        cfg = family.cfg
        self.upto = cfg.n_layers if upto is None else upto
        if not 1 <= self.upto <= cfg.n_layers:
            raise ValueError(f"upto: got {upto}; expected a number of layers in 1..{cfg.n_layers}, or None for all")
        self.family, self.shared, self.everywhere = family, shared, everywhere
        self.prompts = [torch.as_tensor(p)[: max(r, default=-1) + 1] for p, r in zip(prompts, reads, strict=True)]
        self.reads = [list(r) for r in reads]
        self._check(prompts, fill, roles)
        self.fill = None if fill is None else fill.to(family.device, family.dtype)
        self.roles = [r[: len(p)].to(family.device) for r, p in zip(roles or [], self.prompts)]
        self.budget = memory_budget(memory_gb, *family.devices)
        rows = 2 * cfg.n_layers * cfg.n_key_value_heads * cfg.d_head + 4 * cfg.n_heads * cfg.d_head + 6 * cfg.d_model
        self.row_bytes = rows * family.dtype.itemsize + 8 * cfg.d_model
        self.batches = self._batches()
        self._clean: KeyValues | None = None

    def _check(self, prompts: Sequence[Tensor], fill: Tensor | None, roles: Sequence[Tensor] | None) -> None:
        cfg, P = self.family.cfg, self.shared
        if not prompts:
            raise ValueError("prompts: got none; expected at least one")
        for i, (prompt, reads) in enumerate(zip(prompts, self.reads)):
            if not torch.equal(prompt[:P], prompts[0][:P]) or len(prompt) <= P:
                raise ValueError(f"prompts[{i}]: expected more than {P} tokens, the first {P} as in prompts[0] (shared={P})")
            if not reads or not all(P <= r < len(prompt) for r in reads):
                raise ValueError(f"reads[{i}]: got {reads}; expected positions in {P}..{len(prompt) - 1}")
        if fill is None:
            return
        if fill.ndim != 4 or [fill.shape[0], *fill.shape[2:]] != [cfg.n_layers, cfg.n_heads, cfg.d_head]:
            expected = f"[{cfg.n_layers}, roles, {cfg.n_heads}, {cfg.d_head}]"
            raise ValueError(f"fill: got shape {list(fill.shape)}; expected {expected}")
        if roles is None or len(roles) != len(prompts):
            got = "None" if roles is None else f"{len(roles)} of them"
            raise ValueError(f"roles: got {got}; with fill, expected the roles of each of {plural(len(prompts), 'prompt')}")
        for i, (role, prompt) in enumerate(zip(roles, prompts)):
            if role.shape != prompt.shape or int(role.min()) < 0 or int(role.max()) >= fill.shape[1]:
                raise ValueError(f"roles[{i}]: expected {len(prompt)} integers in 0..{fill.shape[1] - 1}, one a position")
            if not torch.equal(role[:P], roles[0][:P]):
                raise ValueError(f"roles[{i}]: the {P} shared positions have other roles than in roles[0]; expected the same")

    def _batches(self) -> list[list[int]]:
        """Prompts, by number, that go through the layers together."""
        batches: list[list[int]] = [[]]
        rows = 0
        for i, prompt in enumerate(self.prompts):
            n = len(prompt) - self.shared
            if batches[-1] and (rows + n) * self.row_bytes > self.budget:
                batches.append([])
                rows = 0
            batches[-1].append(i)
            rows += n
        return batches

    @property
    def rows(self) -> int:
        """Rows through the layers for one set of heads, the shared prefix included."""
        return self.shared + sum(len(p) - self.shared for p in self.prompts)

    def final(self, heads: Tensor) -> Tensor:
        """resid_post of the last layer where it is read, prompt by prompt, [sum of reads, d], with these heads replaced.

        heads: bool [L, H]; all False is the untouched run. Cost: `rows` rows through the layers.
        """
        cfg, P = self.family.cfg, self.shared
        if heads.dtype != torch.bool or list(heads.shape) != [cfg.n_layers, cfg.n_heads]:
            raise ValueError(
                f"heads: got {heads.dtype} {list(heads.shape)}; expected a bool tensor [{cfg.n_layers}, {cfg.n_heads}]"
            )
        past = self._past(heads)
        out = []
        for batch in self.batches:
            suffixes = [self.prompts[i][P:] for i in batch]
            starts = torch.tensor([0, *(len(s) for s in suffixes)]).cumsum(0).tolist()
            read = torch.tensor([at + r - P for at, i in zip(starts, batch) for r in self.reads[i]])
            roles = torch.cat([self.roles[i][P:] for i in batch]) if self.roles else None
            edit = replacing(heads, self.fill, roles)
            out.append(forward_packed(self.family, suffixes, past, read=read, edit_z=edit, upto=self.upto).resid_final)
        return torch.cat(out)

    def final_each(self, sets: Tensor) -> Tensor:
        """`final` of several sets of heads: bool [N, L, H] -> [N, sum of reads, d].

        Where the shared prefix is the same for all sets (`everywhere` is False, or nothing is shared), prompts of several sets
        go through the layers together. Cost: as N calls of `final`.
        """
        if self.everywhere and self.shared:
            return torch.stack([self.final(heads) for heads in sets])
        P, past = self.shared, self._past(torch.zeros_like(sets[0]))
        todo = [(n, i) for n in range(len(sets)) for i in range(len(self.prompts))]
        out, a = [], 0
        while a < len(todo):
            b, rows = a, 0
            while b < len(todo) and (b == a or (rows + len(self.prompts[todo[b][1]]) - P) * self.row_bytes <= self.budget):
                rows += len(self.prompts[todo[b][1]]) - P
                b += 1
            suffixes = [self.prompts[i][P:] for _, i in todo[a:b]]
            lengths = torch.tensor([len(s) for s in suffixes])
            starts = (lengths.cumsum(0) - lengths).tolist()
            read = torch.tensor([at + r - P for at, (_, i) in zip(starts, todo[a:b]) for r in self.reads[i]])
            roles = torch.cat([self.roles[i][P:] for _, i in todo[a:b]]) if self.roles else None
            of_row = torch.repeat_interleave(torch.tensor([n for n, _ in todo[a:b]]), lengths)
            edit = _replacing_by_row(sets, of_row.to(self.family.device), self.fill, roles)
            out.append(forward_packed(self.family, suffixes, past, read=read, edit_z=edit, upto=self.upto).resid_final)
            a = b
        return torch.cat(out).unflatten(0, (len(sets), -1))

    def _past(self, heads: Tensor) -> KeyValues | None:
        if not self.shared:
            return None
        ablated = self.everywhere and bool(heads.any())
        if not ablated and self._clean is not None:
            return self._clean
        roles = self.roles[0][: self.shared] if self.roles else None
        edit = replacing(heads, self.fill, roles) if ablated else None
        found = forward_packed(self.family, [self.prompts[0][: self.shared]], edit_z=edit, upto=self.upto).key_values(0, None)
        if not ablated:
            self._clean = found
        return found


def replacing(heads: Tensor, fill: Tensor | None, roles: Tensor | None) -> EditZ | None:
    """The edit that puts `fill` in the place of z of a set of heads, at every row.

    heads: bool [L, H]. fill: [L, G, H, D], None: zero. roles: of each packed row, integers [R] in 0..G-1.
    Returns None for no heads at all.
    """
    by_layer = [row.nonzero().flatten() for row in heads.cpu()]
    if not any(len(chosen) for chosen in by_layer):
        return None

    def edit(l: int, z: Tensor, rows: Tensor | None) -> Tensor:
        chosen = by_layer[l].to(z.device)
        if len(chosen) == 0:
            return z
        if fill is None:
            z[:, chosen] = 0
        else:
            assert roles is not None
            z[:, chosen] = fill[l][:, chosen][roles if rows is None else roles[rows]]
        return z

    return edit


def _replacing_by_row(sets: Tensor, of_row: Tensor, fill: Tensor | None, roles: Tensor | None) -> EditZ:
    """As `replacing`, with a set of heads for each row: sets bool [N, L, H], of_row integers [R] in 0..N-1."""
    by_layer = sets.transpose(0, 1).to(of_row.device)  # [L, N, H]

    def edit(l: int, z: Tensor, rows: Tensor | None) -> Tensor:
        at = of_row if rows is None else of_row[rows]
        chosen = by_layer[l][at][..., None]  # [R, H, 1]
        if fill is None:
            return z.masked_fill_(chosen, 0)
        assert roles is not None
        return torch.where(chosen, fill[l][roles if rows is None else roles[rows]], z)

    return edit
