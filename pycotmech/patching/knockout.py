"""Cuts attention between positions, and measures what is lost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, Unpack

import torch

from pycotmech._choices import check_choice, did_you_mean
from pycotmech._words import plural
from pycotmech.model.arguments import check_integer, check_model
from pycotmech.model.prompts import Tokens, resolve_positions
from pycotmech.patching.edits import Edit, Variant, check_heads
from pycotmech.patching.position_groups import PositionGroups, Positions, labels_of, positions_of
from pycotmech.patching.sweep import SweepOptions, sweep
from pycotmech.patching.variant_results import Knockout

if TYPE_CHECKING:
    from pycotmech.model import Model

Where = str | Sequence[str] | Positions
"""Names of segments, or positions."""


def knock_out_edges(
    model: Model,
    tokens: Tokens,
    *,
    from_: Where,
    to: Where,
    segments: PositionGroups | None = None,
    heads: Sequence[tuple[int, int]] | None = None,
    layers: Sequence[int] | None = None,
    each: Literal["layer", "head"] | None = None,
    **options: Unpack[SweepOptions],
) -> Knockout:
    """Blocks attention from some positions to others and reads a metric: queries at `to` cannot attend to keys at `from_`.

    Scores are set to -inf before the softmax, so the weights of the remaining keys are renormalised; a query without keys
    has z = 0. Keys after a query are never attended to, so nothing changes there.

    from_, to: positions (a slice, one or several, negative from the end), or the name of a segment, or several names.
    segments: {"question": slice(575, 610), ...}: the positions of the names; they do not overlap.
    heads: (layer, head) in which edges are cut; or layers, in all heads of which they are. None, None: in all layers where
        a cut reaches what is read: in the last one only the query at `read` does.
    each: None, all at once, one result; "layer": one result for each layer; "head": one for each head.
    options: metric, answer, wrong, clean, read, memory_gb, return_logits, seed, progress, as in `sweep`; "kl" is taken from
        the untouched run.

    Returns a `Knockout`: .effect [1], [layers] or [heads], and .places.
    Raises ValueError naming the argument, before anything is run.
    Cost: as `sweep`: one variant for each result.
    """
    check_model(model)
    cfg, ids = model.cfg, model.to_tokens(tokens)
    where = resolve_positions(options.get("read", -1), len(ids), argument="read")[0]
    if segments is not None:
        labels_of(segments, len(ids), argument="segments")
    keys = _positions(from_, segments, len(ids), "from_")
    queries = _positions(to, segments, len(ids), "to")
    if min(keys) > max(queries):
        raise ValueError(
            f"from_, to: the queries end at position {max(queries)}, before the first key {min(keys)}; nothing to cut"
        )
    check_choice("each", each, (None, "layer", "head"))
    if heads is not None and layers is not None:
        raise ValueError("heads, layers: got both; expected one of them, or none for all layers")
    if heads is not None:
        chosen: list[tuple[int, int | None]] = [*check_heads(list(heads), cfg.n_layers, cfg.n_heads)]
    else:
        reached = range(cfg.n_layers if where in queries and min(keys) <= where else cfg.n_layers - 1)
        if layers is not None and (isinstance(layers, str) or not isinstance(layers, Iterable)):
            raise TypeError(f"layers: got {layers!r}; expected a list of layers, or None for all in which a cut does something")
        named = (
            reached if layers is None else list(dict.fromkeys(check_integer(l, "layers", 0, cfg.n_layers - 1) for l in layers))
        )
        if not named:
            raise ValueError("layers: the cut reaches what is read in none of them; expected at least one in which it does")
        chosen = [(l, h) for l in named for h in (range(cfg.n_heads) if each == "head" else [None])]
    if each is None:
        places = [chosen]
    elif each == "head":
        places = [[place] for place in chosen]
    else:
        places = [[p for p in chosen if p[0] == l] for l in dict.fromkeys(l for l, _ in chosen)]
    variants = [
        Variant(tuple(Edit("edge", l, h, queries, keys=keys) for l, h in place), name=_name(place, each)) for place in places
    ]
    return sweep(model, tokens, variants, **options).extended(
        Knockout, places=tuple(map(tuple, places)), from_=tuple(keys), to=tuple(queries)
    )


def _name(place: list[tuple[int, int | None]], each: str | None) -> str:
    (l, h), n = place[0], len(place)
    if each is None:
        return plural(n, "layer" if h is None else "head")
    return f"L{l}" if each == "layer" else f"L{l}H{h}"


def _positions(where: Where, segments: PositionGroups | None, length: int, argument: str) -> list[int]:
    """Positions, ascending, of what was named."""
    names = [where] if isinstance(where, str) else where
    if not isinstance(names, (slice, int, torch.Tensor)) and any(isinstance(n, str) for n in names):
        out: set[int] = set()
        for name in map(str, names):
            if segments is None or name not in segments:
                known = "no segments were given" if segments is None else f"the segments are {', '.join(map(repr, segments))}"
                raise ValueError(f"{argument}: got the name {name!r}; {known}{did_you_mean(name, segments or ())}")
            out |= set(positions_of(segments[name], length, argument=f"segments[{name!r}]"))
        return sorted(out)
    return positions_of(where, length, argument=argument)  # type: ignore[arg-type]
