"""Edits and variants as a user writes them: checked, placed in a prompt, and laid out for the staircase."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from operator import index

import numpy as np
import torch
from torch import Tensor

from pycotmech._warnings import warn
from pycotmech._words import plural
from pycotmech.engine.bases import Stage
from pycotmech.engine.joins import SELF_PATCH_SITES
from pycotmech.engine.row_edits import PER_QUERY, Entries, adds
from pycotmech.model.config import ModelConfig
from pycotmech.model.prompts import ranges_of, resolve_positions
from pycotmech.model.sites import KEY_VALUE_SITES, RESIDUAL_SITES, SITES, parse_site, refuse_missing, unknown_site
from pycotmech.patching.distinct import distinct

EDIT_SITES = (*SITES, "pattern", "edge")

JOINS_AT = {
    "attn_out": Stage.MID,
    "resid_mid": Stage.MID,
    "mlp_out": Stage.POST,
    "resid_post": Stage.POST,
}
"""The stage after which a site comes; those not named come after PRE."""


@dataclass(frozen=True, eq=False)
class Edit:
    """One replacement in a run.

    site: z, q, k, v (q and k before the rotary embedding), pattern (attention weights after the softmax), edge, resid_pre,
        resid_mid, resid_post, attn_out, mlp_out; or a TransformerLens hook name.
    head: of the n_heads for q, z, pattern, edge; of the n_key_value_heads for k and v, where the edit reaches the head's
        whole group; None: all heads, and for sites without heads.
    positions: where (negative from the end); None: everywhere. For edge and pattern: of the queries.
    value: the replacement, a number or a tensor that broadcasts to [positions, width] ([positions, heads, width]
        with head None): width is D for z, q, k, v, d_model for the residual sites, and T for a pattern, one weight for
        each key, 0 after the query.
    keys: of an edge, the key positions that these queries cannot see; the weights of the others grow to 1. A query that
        sees no key at all gets z = 0.
    per_query_head: for k and v: `head` is a query head, and only what this one reads is replaced.
    """

    site: str
    layer: int
    head: int | None = None
    positions: Sequence[int] | int | None = None
    value: Tensor | float | None = None
    keys: Sequence[int] | int | None = None
    per_query_head: bool = False


@dataclass(frozen=True, eq=False)
class Variant:
    """One run with these edits in it, all at once."""

    edits: tuple[Edit, ...]
    name: str | None = None


@dataclass(frozen=True)
class Placed:
    """An edit that is known to be right, in a prompt of T tokens. positions [P]; heads [-1] where the site has none;
    values [P or 1, heads or 1, width], of an edge the ranges of keys that are cut: [ranges, 1, 2]."""

    site: str  # as `RowEdits` names it
    layer: int
    heads: Tensor
    positions: Tensor
    values: Tensor


def parse_edit_site(name: str, *, argument: str = "site") -> tuple[str, int | None]:
    """`parse_site` for what can be edited: also pattern and edge."""
    if name in EDIT_SITES:
        return name, None
    if isinstance(name, str) and name.startswith("blocks.") and name.endswith(".attn.hook_pattern"):
        return "pattern", parse_site(name.removesuffix("pattern") + "z", argument=argument)[1]
    try:
        return parse_site(name, argument=argument)
    except ValueError:
        raise ValueError(unknown_site(argument, name, EDIT_SITES)) from None


def base_sites(cfg: ModelConfig, stages: Iterable[Stage], edited: Iterable[str]) -> tuple[str, ...]:
    """What base runs keep: where variants and self-patches join, and what an edited part is added to."""
    joins, parts = [stage.site for stage in stages], [adds(stage, cfg) for stage in Stage if stage != Stage.PRE]
    added_to = [place for part, places in parts if part in set(edited) for place in places]
    return tuple(dict.fromkeys((*SELF_PATCH_SITES, *joins, *added_to)))


def heads_of(cfg: ModelConfig, site: str) -> int:
    """How many heads a site has, as `RowEdits` names it; 0 for the residual stream and what is added to it."""
    if site in RESIDUAL_SITES:
        return 0
    return cfg.n_key_value_heads if site in KEY_VALUE_SITES else cfg.n_heads


def check_heads(
    heads: Sequence[tuple[int, int]] | None,
    n_layers: int,
    n_heads: int,
    layer: int | None = None,
    *,
    argument: str = "heads",
) -> list[tuple[int, int]]:
    """(layer, head) to edit, each once; all if None. layer: where the site's name gave one."""
    layers = range(n_layers) if layer is None else [layer]
    if heads is None:
        heads = [(l, h) for l in layers for h in range(n_heads)]
    try:
        out = list(dict.fromkeys((_index(l), _index(h)) for l, h in heads))
    except (TypeError, ValueError):
        raise ValueError(f"{argument}: got {heads!r}; expected (layer, head) pairs of integers") from None
    if not out:
        raise ValueError(f"{argument}: the list is empty; expected (layer, head) pairs, or None for all")
    expected = f"layers 0..{n_layers - 1}" if layer is None else f"layer {layer}, which the site names"
    for l, h in out:
        if not (0 <= l < n_layers and l in layers and 0 <= h < n_heads):
            raise ValueError(f"{argument}: ({l}, {h}) is out of range; expected {expected}, heads 0..{n_heads - 1}")
    return out


def _index(number: object) -> int:
    """The number as an int. Raises TypeError unless it is an integer; True and False are none."""
    if isinstance(number, bool | np.bool_):
        raise TypeError
    return index(number)  # type: ignore[arg-type]


def reaches(site: str, last_layer: bool, positions: Tensor, read: int) -> Tensor:
    """Which positions [P] an edit of this site can change what is read from: bool [P].

    After `read` nothing counts; in the last layer only keys and values (and what they are made of) of other rows do. A row
    that sees only itself has the weight 1, whatever its query and key.
    """
    ok = positions <= read
    if last_layer and site not in ("resid_pre", *KEY_VALUE_SITES, *PER_QUERY.values()):
        ok = ok & (positions == read)
    if site == "q":
        ok = ok & (positions > 0)
    if site in ("k", PER_QUERY["k"]):
        ok = ok & (read > 0)
    return ok


def place(edit: Edit, cfg: ModelConfig, length: int, name: str) -> Placed:
    """Checks one edit against the model and a prompt of `length` tokens; `name` says which one in error messages."""
    if not isinstance(edit, Edit):
        raise TypeError(f"{name}: expected a pycotmech.Edit, got {type(edit).__name__}")
    site, named = parse_edit_site(edit.site, argument=f"{name}.site")
    refuse_missing(site, cfg, argument=f"{name}.site")
    for field, number in (("layer", edit.layer), ("head", edit.head)):
        if isinstance(number, bool) or not (hasattr(number, "__index__") or (number is None and field == "head")):
            raise TypeError(f"{name}.{field}: got {number!r} of type {type(number).__name__}; expected an integer")
    if not 0 <= edit.layer < cfg.n_layers or named not in (None, edit.layer):
        expected = f"0..{cfg.n_layers - 1}" if named is None else f"{named}, as in the site's name"
        raise ValueError(f"{name}.layer: got {edit.layer}; expected {expected}")
    if edit.per_query_head:
        if site not in KEY_VALUE_SITES:
            raise ValueError(f"{name}.per_query_head: got True for site {site!r}; expected it for k and v only")
        site = PER_QUERY[site]
    n_heads = heads_of(cfg, site)
    if edit.head is not None and not 0 <= edit.head < n_heads:
        expected = f"0..{n_heads - 1}, or None for all" if n_heads else "None: this site has no heads"
        raise ValueError(f"{name}.head: got {edit.head} for site {edit.site!r}; expected {expected}")
    if edit.value is not None and not isinstance(edit.value, Tensor | np.ndarray | Real):
        raise TypeError(f"{name}.value: got {type(edit.value).__name__}; expected a number or a tensor")
    everywhere = range(length) if edit.positions is None else edit.positions
    positions = torch.tensor(resolve_positions(everywhere, length, argument=f"{name}.positions"), dtype=torch.long)
    if len(positions) == 0:
        raise ValueError(f"{name}.positions: the list is empty; expected positions, or None for all")
    if len(positions.unique()) < len(positions):
        raise ValueError(f"{name}.positions: {edit.positions} names a position twice; expected each once")
    if (edit.keys is not None) != (site == "edge"):
        raise ValueError(f"{name}.keys: {edit.keys} given for site {edit.site!r}; expected key positions for 'edge' only")
    if site == "edge":
        heads = torch.tensor([-1 if edit.head is None else edit.head])
        return Placed(site, edit.layer, heads, positions, _ranges(edit, length, name))
    if edit.head is not None:
        heads = torch.tensor([edit.head])
    else:
        heads = torch.arange(n_heads) if n_heads else torch.tensor([-1])
    width = {"pattern": length}.get(site, cfg.d_head if n_heads else cfg.d_model)
    wide = torch.float64 if cfg.dtype == torch.float64 else torch.float32
    values = _broadcast(edit, len(positions), len(heads) if edit.head is None and n_heads else None, width, wide, name)
    if site == "pattern" and bool(((torch.arange(length) > positions[:, None])[:, None] & (values != 0)).any()):
        raise ValueError(f"{name}.value: a pattern has weights after its query; expected 0 there, since the model is causal")
    return Placed(site, edit.layer, heads, positions, values)


def _ranges(edit: Edit, length: int, name: str) -> Tensor:
    """Key positions as half-open ranges [n, 1, 2]."""
    if edit.value is not None:
        raise ValueError(f"{name}.value: an edge is cut, nothing is put in its place; expected None")
    keys = resolve_positions(edit.keys, length, argument=f"{name}.keys")  # type: ignore[arg-type]
    if not keys:
        raise ValueError(f"{name}.keys: the list is empty; expected key positions")
    return torch.tensor(ranges_of(keys))[:, None]


def _broadcast(edit: Edit, n_positions: int, n_heads: int | None, width: int, dtype: torch.dtype, name: str) -> Tensor:
    """The value as [positions or 1, heads or 1, width] of `dtype`: rows that repeat are kept once."""
    full = (n_positions, width) if n_heads is None else (n_positions, n_heads, width)
    if edit.value is None:
        raise ValueError(f"{name}.value: None; expected a number or a tensor that broadcasts to {list(full)}")
    # The default dtype, which may be a 16-bit one, has no say in what a number is.
    exact = torch.float64 if isinstance(edit.value, Real) else None
    value = torch.as_tensor(edit.value, dtype=exact).detach().cpu().to(dtype)
    try:
        value.expand(full)
    except RuntimeError:
        raise ValueError(f"{name}.value: shape {list(value.shape)} does not broadcast to {list(full)}") from None
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name}.value: has entries that are not finite; expected numbers")
    value = value.reshape(*[1] * (len(full) - value.ndim), *value.shape)
    return (value[:, None] if n_heads is None else value).expand(-1, -1, width)


@dataclass(frozen=True)
class VariantLayout:
    """N variants laid out: where each joins [N], and what is replaced in which site and layer, with the values."""

    layer: Tensor
    stage: Tensor
    first: Tensor  # [N] first position that differs
    tables: dict[tuple[str, int], Entries]
    values: dict[tuple[str, int], Tensor]  # [rows, width], `Entries.ref` counts the rows


def lay_out(variants: Sequence[Variant], cfg: ModelConfig, length: int, read: int) -> VariantLayout:
    """Checks all edits and lays them out; edits that can change nothing that is read are left out,
    with a warning.

    Raises ValueError naming the variant if none of its edits reaches what is read, or two edits replace the same thing.
    """
    joins: list[tuple[int, int, int]] = []
    parts: dict[tuple[str, int], list[Entries]] = {}
    values: dict[tuple[str, int], list[Tensor]] = {}
    counts: dict[tuple[str, int], int] = {}
    idle: list[str] = []
    for n, variant in enumerate(variants):
        if not isinstance(variant, Variant):
            raise TypeError(f"variants[{n}]: expected a pycotmech.Variant, got {type(variant).__name__}")
        name = f"variants[{n}]" + (f" ({variant.name})" if variant.name else "")
        reached: list[tuple[int, int, int]] = []
        for i, edit in enumerate(variant.edits):
            placed = place(edit, cfg, length, f"{name}.edits[{i}]")
            kept = reaches(placed.site, placed.layer == cfg.n_layers - 1, placed.positions, read)
            if placed.site == "edge":
                kept = kept & (placed.positions >= placed.values[:, 0, 0].min())
            if not bool(kept.any()):
                idle.append(f"{name}.edits[{i}]")
                continue
            key = (placed.site, placed.layer)
            entries, rows = _entries(n, placed, kept, counts.get(key, 0))
            parts.setdefault(key, []).append(entries)
            values.setdefault(key, []).append(rows)
            counts[key] = counts.get(key, 0) + len(rows)
            reached.append((placed.layer, JOINS_AT.get(placed.site, Stage.PRE), int(entries.position.min())))
        if not reached:
            n = len(variant.edits)
            none = "its edit does not reach" if n == 1 else f"none of its {plural(n, 'edit')} reaches"
            raise ValueError(f"{name}: {none} what is read, position {read} after the last layer")
        layer, stage = min(r[:2] for r in reached)
        if cfg.parallel and (layer, Stage.POST) in {r[:2] for r in reached}:
            stage = Stage.PRE  # what joins after MID has the base's MLP output: an edit of it needs rows that go through
        joins.append((layer, stage, min(r[2] for r in reached)))
    if idle:
        which = ", ".join(idle[:4]) + (f" and {len(idle) - 4} more" if len(idle) > 4 else "")
        warn(
            f"{which}: reaches nothing that is read, position {read} after the last layer; left out of a variant whose other "
            "edits do"
        )
    layer, stage, first = torch.tensor(joins).T
    tables = {
        key: Entries(*(torch.cat([getattr(e, field) for e in found]) for field in ("variant", "position", "head", "ref")))
        for key, found in parts.items()
    }
    for (site, l), e in tables.items():
        if site == "edge":
            continue
        places, _, counted = distinct(e.variant, e.position, e.head)
        if len(places) < len(e):
            v, p, h = places[counted.argmax()].tolist()
            where = f"position {p}" + (f", head {h}" if h >= 0 else "")
            raise ValueError(f"variants[{v}]: {site} of layer {l} is replaced twice at {where}; expected one value")
    return VariantLayout(layer, stage, first, tables, {key: torch.cat(rows) for key, rows in values.items()})


def _entries(n: int, placed: Placed, kept: Tensor, offset: int) -> tuple[Entries, Tensor]:
    """The entries of one edit at the positions kept, and its value rows, which are counted from `offset`."""
    values = placed.values
    positions = placed.positions[kept]
    if placed.site == "edge":  # every range at every query
        ranges = len(values)
        position, head = positions.repeat_interleave(ranges), placed.heads.expand(len(positions) * ranges)
        ref = torch.arange(ranges).repeat(len(positions))
    else:
        if len(values) > 1:
            values = values[kept]
        p, h = torch.meshgrid(torch.arange(len(positions)), torch.arange(len(placed.heads)), indexing="ij")
        position, head = positions[p].flatten(), placed.heads[h].flatten()
        ref = (p * values.shape[1] * (len(values) > 1) + h * (values.shape[1] > 1)).flatten()
    return Entries(torch.full_like(position, n), position, head, offset + ref), values.flatten(0, 1)
