"""Patch the residual stream, or what attention and MLP add to it, one layer and position at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from pycotmech.engine.metrics import Metric
from pycotmech.model.arguments import check_model
from pycotmech.model.model import Tokens
from pycotmech.model.sites import RESIDUAL_SITES
from pycotmech.patching.edits import parse_edit_site
from pycotmech.patching.groups import Groups
from pycotmech.patching.job import patch_pairs
from pycotmech.patching.results import Sweep

if TYPE_CHECKING:
    from pycotmech.model import Model

ResidualSite = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]


def patch_residual(
    model: Model,
    clean: Tokens | Sequence[Tokens],
    corrupted: Tokens | Sequence[Tokens],
    *,
    direction: Literal["denoise", "noise"] = "denoise",
    site: ResidualSite | str = "resid_pre",
    positions: Sequence[int] | None = None,
    by_position: bool | None = None,
    groups: Groups | Sequence[Groups] | None = None,
    metric: Metric = "kl",
    answer: int | str | Sequence[int | str] | None = None,
    wrong: int | str | Sequence[int | str] | None = None,
    normalize: bool = True,
    read: int | Sequence[int] = -1,
    memory_gb: float | None = None,
    return_logits: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Sweep:
    """Replaces rows of the residual stream by those of the other run, layer by layer, and reads a metric.

    site: "resid_pre", "resid_mid", "resid_post" (the stream before the layer, between attention and MLP, after the layer),
        "attn_out", "mlp_out" (what they add); or a TransformerLens hook name, which stands for its layer alone.
    by_position: each position on its own (None: unless there are groups); False: all positions at once. groups: each group
        of positions on its own. Other arguments as in `patch_heads`.

    Returns a `Sweep`: .values [L, T] (0 where nothing can change), [L, G] for groups, or [L] if neither; corrupted 0, clean 1.
    Raises ValueError naming the argument, before anything is run.
    Cost: as `patch_heads` with one head in each layer and position. Exact.
    """
    check_model(model)
    name, layer = parse_edit_site(site)
    if name not in RESIDUAL_SITES:
        raise ValueError(f"site: got {site!r}; expected one of {', '.join(RESIDUAL_SITES)}")
    return patch_pairs(
        model,
        clean,
        corrupted,
        site=name,
        places=[(l, 0) for l in (range(model.cfg.n_layers) if layer is None else [layer])],
        direction=direction,
        positions=positions,
        by_position=groups is None if by_position is None else by_position,
        groups=groups,
        metric=metric,
        answer=answer,
        wrong=wrong,
        normalize=normalize,
        read=read,
        memory_gb=memory_gb,
        return_logits=return_logits,
        seed=seed,
        progress=progress,
    )
