"""The exact sweep: all variants of all prompts in one pass upward through the layers.

A variant is one run with edits in it. Below its first edit, and before its first edited position, it is the unedited run
(the base), so only what lies above and after that is computed. Rows of all variants that already differ go through a layer
as one matrix; the variants whose first edit is in this layer join there; earlier positions are shared keys and values of the
base. In the last layer only the rows that are read go on. Nothing is approximate.

In a parallel block the MLP reads what attention reads. A variant whose first edit is in attention then joins with the sum of
both, as there is nothing between them.

Cost, in rows times layers, for N variants of S rows spread evenly over L layers: N S (L - 1) / 2 layers with attention,
and one MLP for each row that joins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from pycotmech.engine.bases import Bases, Stage
from pycotmech.engine.jitter import Jitter
from pycotmech.engine.row_edits import BoundEdits, RowEdits
from pycotmech.engine.rows import Join, PackedRows, ReadRows, Rows, Variants
from pycotmech.engine.travel import Traveller
from pycotmech.model import work
from pycotmech.model.climb import blocks
from pycotmech.model.families.base import Family
from pycotmech.model.work import LayerRows

Watch = Callable[[int, PackedRows, Tensor, int], None]
"""(layer, rows, residual rows x, n): called before each layer; the first n variants have joined, their rows are in x."""


class Staircase:
    """One pass for one set of variants.

    join: gives the rows with which variants join.
    tick: called after each layer with the rows that went through it. None: they are reported as work (`model.work`).
    edits: what is changed in rows that have joined, wherever in a layer it is; a variant that joins with all of its edits
        in its rows needs none. With such edits each base is read at one position.
    frozen: parts that add what they added in the base run ("attn_out", "mlp_out"), of the sites that bases keep; the others
        are computed.
    watch: called before each layer.
    upto: how many layers rows climb; None: all.
    jitter: which variants get rounding-sized noise wherever something is added to their rows; None: none.

    Memory: a residual row of d values for each row of a variant, and the temporaries of `Sizes.row_block` rows.
    """

    kind: ClassVar[str] = "variants"
    on_device: ClassVar[tuple[str, ...]] = ("rows", "join", "edits", "attention", "mlp", "watch", "jitter")
    """Attributes on the device, and objects that hold such attributes, each of which has this list too. All others are on
    the CPU and decide what is launched (`graphs`)."""

    def __init__(
        self,
        family: Family,
        bases: Bases,
        variants: Variants,
        join: Join,
        tick: Callable[[LayerRows], None] | None = None,
        edits: RowEdits | None = None,
        *,
        frozen: Sequence[str] = (),
        watch: Watch | None = None,
        upto: int | None = None,
        jitter: Jitter | None = None,
    ) -> None:
        self.family, self.join, self.watch, self.upto = family, join, watch, upto
        self.tick = tick or partial(work.count, family)
        self.rows = rows = PackedRows(family, bases, variants)
        if edits is not None and edits.tables and len(rows.read_rows) > len(variants):
            raise ValueError("edits: rows that have joined are edited in variants that are read at one position each")
        self.edits = (edits or RowEdits(family, bases)).bound(rows)
        self.attention = (
            _Frozen("attn_out", bases, rows) if "attn_out" in frozen else _Attention(family, bases, rows, self.edits)
        )
        self.mlp = _Frozen("mlp_out", bases, rows) if "mlp_out" in frozen else _Mlp(family, self.edits)
        self.jitter = None if jitter is None else jitter.bound(rows)

    @torch.no_grad()
    def run(self) -> Tensor:
        """Residual rows after the last layer where variants are read, variant after variant in the caller's order: [N, d], or
        as many as `Bases.readings` has. With `upto`: all rows, before that layer, as they are packed."""
        rows, family, traveller = self.rows, self.family, Traveller(self.family.device)
        top = family.cfg.n_layers - 1 if self.upto is None else self.upto
        n = rows.begins[rows.joined(top, Stage.PRE)]
        x = torch.empty(n, family.cfg.d_model, dtype=family.resid_dtype, device=family.device_of(0))
        done = 0  # variants that have joined
        for l in range(top):
            device = family.device_of(l)
            x = x.to(device)
            done = traveller.on(device, self)._layer(l, x, done)
        device = family.device_of(min(top, family.cfg.n_layers - 1))
        x, last = x.to(device), traveller.on(device, self)
        done = last._begin(x, done, top)
        return (x if self.upto is not None else last._last_layer(x, done)).to(family.device)

    # ---- as a pass that is captured (`graphs`) ---------------------------------------------------------------------------

    @property
    def n_rows(self) -> int:
        """Rows of all variants."""
        return len(self.rows)

    def outputs(self) -> tuple[Tensor]:
        """Room for what `run` gives."""
        shape = len(self.rows.read_rows), self.family.cfg.d_model
        return (torch.empty(shape, dtype=self.family.resid_dtype, device=self.family.device),)

    def run_into(self, out: Sequence[Tensor]) -> None:
        """Runs, and copies what it gives to this room."""
        out[0].copy_(self.run())

    def result(self, out: Sequence[Tensor], *, copied: bool = False) -> Tensor:
        """What `run` gives, of this room. copied: not the room itself."""
        return out[0].clone() if copied else out[0]

    def replayed(self, recorded: LayerRows) -> None:
        """Reports a replay: the rows of the pass that was captured."""
        self.tick(recorded)

    # ---- layer by layer ----------------------------------------------------------------------------------------------------

    def _layer(self, l: int, x: Tensor, done: int) -> int:
        """Takes the rows through layer l, all on its device; returns how many variants have joined after it."""
        rows, begins, parallel = self.rows, self.rows.begins, self.family.cfg.parallel
        attended = done = self._begin(x, done, l)
        for span, _ in rows.spans(done):
            beside = self.mlp(l, x[span], span) if parallel else None
            self._add(x[span], self.attention(l, x[span], span, span), l, Stage.PRE, span)
            if beside is not None:
                self._add(x[span], beside, l, Stage.MID, span)
        done = self._admit(x, done, l, Stage.MID)
        passed = attended if parallel else done
        if not parallel:
            for a, b in blocks(self.family, begins[done]):
                self._add(x[a:b], self.mlp(l, x[a:b], slice(a, b)), l, Stage.MID, slice(a, b))
        self._ticked(begins[attended], begins[attended], begins[passed])
        return self._admit(x, done, l, Stage.POST)

    def _add(self, x: Tensor, y: Tensor, l: int, stage: Stage, rows: Rows) -> None:
        """x += y, what the part of layer l after this stage adds to these rows, with its noise where rows are jittered."""
        x += y
        if self.jitter is not None:
            part = self.attention if stage == Stage.PRE else self.mlp
            self.jitter.add(x, y, l, stage, rows, part.computed)

    def _begin(self, x: Tensor, done: int, l: int) -> int:
        done = self._admit(x, done, l, Stage.PRE)
        if self.watch is not None:
            self.watch(l, self.rows, x, done)
        return done

    def _admit(self, x: Tensor, done: int, l: int, stage: Stage) -> int:
        """Writes the rows of the variants that join here after those already in x; returns how many have joined."""
        upto, begins = self.rows.joined(l, stage), self.rows.begins
        if upto > done:
            a, b = begins[done], begins[upto]
            for c, d in blocks(self.family, b - a):
                rows = slice(a + c, a + d)
                x[rows] = self._joined(l, stage, rows)
        self.edits.write(stage.site, l, x, begins[upto])
        return upto

    def _joined(self, l: int, stage: Stage, rows: Rows) -> Tensor:
        """The residual rows with which variants join here."""
        joining = self.rows.joining(l, stage, rows)
        x = self.join(joining)
        if self.jitter is not None:
            self.jitter.add(x, x, l, Stage.POST, rows)
        return self.edits.join(stage, l, rows, joining.index, x)

    def _ticked(self, projected: int, attended: int, passed: int) -> None:
        """Rows have gone through a layer: so many through the projections and the output of attention, and through the MLP."""
        attention, mlp = self.attention.computed, self.mlp.computed
        self.tick(LayerRows(passed, projected * attention, attended * attention, passed * mlp))

    def _last_layer(self, x: Tensor, done: int) -> Tensor:
        rows, family, edits, l = self.rows, self.family, self.edits, self.family.cfg.n_layers - 1
        begins = rows.read_begins
        out = torch.empty(len(rows.read_rows), family.cfg.d_model, dtype=family.resid_dtype, device=x.device)
        for span, read in rows.spans(done):
            added = self.attention(l, x[span], span, read)
            here = out[read.first : read.end]
            here[:] = x[rows.at(read)]
            beside = self.mlp(l, here, read) if family.cfg.parallel else None
            self._add(here, added, l, Stage.PRE, read)
            if beside is not None:
                self._add(here, beside, l, Stage.MID, read)
        pre, mid = begins[done], begins[rows.joined(l, Stage.MID)]
        for a, b in blocks(self.family, mid - pre):
            out[pre + a : pre + b] = self._joined(l, Stage.MID, ReadRows(pre + a, pre + b))
        out[:mid] = edits.edit("resid_mid", l, ReadRows(0, mid), out[:mid])
        if not family.cfg.parallel:
            for a, b in blocks(self.family, mid):
                self._add(out[a:b], self.mlp(l, out[a:b], ReadRows(a, b)), l, Stage.MID, ReadRows(a, b))
        for a, b in blocks(self.family, len(out) - mid):
            out[mid + a : mid + b] = self._joined(l, Stage.POST, ReadRows(mid + a, mid + b))
        out = edits.edit("resid_post", l, ReadRows(0, len(out)), out)
        self._ticked(rows.begins[done] + pre, pre, pre if family.cfg.parallel else mid)
        result = torch.empty_like(out)
        result[rows.to_caller] = out
        return result


# ---- what a part of a layer adds to rows -------------------------------------------------------------------------------


class _Attention:
    """Attention, computed: the variant's own keys, after those that it shares with its base."""

    computed: ClassVar[bool] = True
    on_device: ClassVar[tuple[str, ...]] = ("bases", "rows", "edits", "angles")

    def __init__(self, family: Family, bases: Bases, rows: PackedRows, edits: BoundEdits) -> None:
        self.family, self.bases, self.rows, self.edits = family, bases, rows, edits
        # [kinds of layers, 2, R, D] of all rows, looked up once and not in each layer. On a CPU a look-up costs less than that.
        self.angles = bases.angles[:, :, rows.position] if family.few_launches else None

    def __call__(self, l: int, x: Tensor, span: slice, rows: Rows) -> Tensor:
        """x [n, d]: the residual rows `span`, of whole variants. Returns what is added to `rows` of these, all or those that
        are read: [m, d]."""
        family, edits, at = self.family, self.edits, self.rows.at(rows)
        q, k, v = family.qkv(l, x)  # [n, H, D], [n, Hkv, D]
        if isinstance(rows, ReadRows):
            q, _, _ = family.qkv(l, x[at - span.start])
        q = edits.edit("q", l, rows, q)
        k, v = edits.keys(l, span, k, v)
        self._rotate(l, span, at, q, k)
        table = self.rows.table[at]  # [m, 4]
        return edits.edit("attn_out", l, rows, family.attn_out(l, edits.attend(l, rows, q, k, v, table)))

    def _rotate(self, l: int, span: slice, at: slice | Tensor, q: Tensor, k: Tensor) -> None:
        """Rotates queries of the packed rows `at` and keys of the rows `span`, in place."""
        angles, position = (self.bases.angles, self.rows.position) if self.angles is None else (self.angles, None)

        def rotate(rows: slice | Tensor, *queries: Tensor, keys: Sequence[Tensor] = ()) -> None:
            self.family.rotate(l, angles, rows if position is None else position[rows], *queries, keys=keys)

        if isinstance(at, slice):  # it is `span`
            rotate(span, q, keys=(k,))
        else:
            rotate(at, q)
            rotate(span, keys=(k,))


class _Mlp:
    """The MLP, computed."""

    computed: ClassVar[bool] = True
    on_device: ClassVar[tuple[str, ...]] = ("edits",)

    def __init__(self, family: Family, edits: BoundEdits) -> None:
        self.family, self.edits = family, edits

    def __call__(self, l: int, x: Tensor, rows: Rows) -> Tensor:
        """x [n, d]: residual rows. Returns what is added to them [n, d]."""
        return self.edits.edit("mlp_out", l, rows, self.family.mlp_out(l, x))


class _Frozen:
    """A part that adds what it added in the base run, whatever its input is."""

    computed: ClassVar[bool] = False
    on_device: ClassVar[tuple[str, ...]] = ("bases", "rows")

    def __init__(self, site: str, bases: Bases, rows: PackedRows) -> None:
        self.site, self.bases, self.rows = site, bases, rows

    def __call__(self, l: int, x: Tensor, *ranges: Rows) -> Tensor:
        """As of the part that it replaces: what is added to the last of these ranges, [n, d]."""
        return self.bases.sites[self.site][l][self.rows.index[self.rows.at(ranges[-1])]]
