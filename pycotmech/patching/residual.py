"""Patches the residual stream, or what attention and MLP add to it, one layer and position at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Unpack

from pycotmech._choices import unknown_choice
from pycotmech.model.arguments import check_model
from pycotmech.model.prompts import Tokens
from pycotmech.model.sites import RESIDUAL_SITES, refuse_missing
from pycotmech.patching.edits import parse_edit_site
from pycotmech.patching.pair_sweep import prepare_sweep
from pycotmech.patching.position_groups import PositionGroups
from pycotmech.patching.question import PairOptions
from pycotmech.patching.results import Sweep

if TYPE_CHECKING:
    from pycotmech.model import Model

ResidualSite = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]


def patch_residual(
    model: Model,
    clean: Tokens | Sequence[Tokens],
    corrupted: Tokens | Sequence[Tokens],
    *,
    site: ResidualSite | str = "resid_pre",
    positions: Sequence[int] | None = None,
    by_position: bool | None = None,
    groups: PositionGroups | Sequence[PositionGroups] | None = None,
    **options: Unpack[PairOptions],
) -> Sweep:
    """Replaces rows of the residual stream by those of the other run, layer by layer, and reads a metric.

    site: "resid_pre", "resid_mid", "resid_post" (the stream before the layer, between attention and MLP, after the layer),
        "attn_out", "mlp_out" (what they add); or a TransformerLens hook name, which means its layer alone.
    by_position: each position on its own (None: unless there are groups); False: all positions at once. groups: each group
        of positions on its own.
    positions, and the options direction, metric, answer, wrong, normalize, read, memory_gb, return_logits, seed, progress: as
        in `patch_heads`.

    Returns a `Sweep`: .values [L, T] (0 where nothing can change), [L, G] for groups, or [L] if neither; corrupted 0, clean 1.
    Raises ValueError naming the argument, before anything is run.
    Cost: as `patch_heads` with one head in each layer and position. Exact.
    """
    check_model(model)
    name, layer = parse_edit_site(site)
    if name not in RESIDUAL_SITES:
        raise ValueError(unknown_choice("site", site, RESIDUAL_SITES))
    refuse_missing(name, model.cfg)
    places = [(l, 0) for l in (range(model.cfg.n_layers) if layer is None else [layer])]
    separate = groups is None if by_position is None else by_position
    return prepare_sweep(
        model, clean, corrupted, site=name, places=places, positions=positions, by_position=separate, groups=groups, **options
    ).run()
