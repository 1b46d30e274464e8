"""The names of the places in a model that can be read and edited, and how other libraries spell them.

Letters: T positions, L layers, H heads, Hkv key-value heads, D head size, d the width of the residual stream.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from pycotmech._choices import did_you_mean
from pycotmech.model.config import ModelConfig

Site = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z"]

RESIDUAL_SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
"""[T, d] per layer: before the block, between attention and MLP, after the block; what attention and MLP add."""

QUERY_SITES = ("q", "z")
"""[T, H, D] per layer: queries before the rotary embedding; weighted values of each head before W_O."""

KEY_VALUE_SITES = ("k", "v")
"""[T, Hkv, D] per layer: keys before the rotary embedding; values."""

SITES = (*RESIDUAL_SITES, *QUERY_SITES, *KEY_VALUE_SITES)

# TransformerLens spells a site as a hook point of one layer.
_HOOK_NAMES = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "attn.hook_q": "q",
    "attn.hook_k": "k",
    "attn.hook_v": "v",
    "attn.hook_z": "z",
}
_HOOK_OF_SITE = {site: hook for hook, site in _HOOK_NAMES.items()}
_HOOK = re.compile(r"blocks\.(\d+)\.(.+)")


def refuse_missing(site: str, cfg: ModelConfig, *, argument: str = "site") -> None:
    """Raises NotImplementedError, naming `argument`, for a site that this model does not have."""
    if site == "resid_mid" and cfg.parallel:
        raise NotImplementedError(
            f"{argument}: resid_mid lies between attention and MLP, which read the same residual stream in a {cfg.family} "
            "model; expected resid_pre, resid_post, attn_out or mlp_out"
        )


def parse_site(name: str, *, argument: str = "site") -> tuple[str, int | None]:
    """A site's name, and its layer if the name gives one.

    "z" -> ("z", None); the TransformerLens form "blocks.3.attn.hook_z" -> ("z", 3).
    Raises ValueError for anything else, naming `argument` and the known sites.
    """
    if name in SITES:
        return name, None
    hook = _HOOK.fullmatch(name) if isinstance(name, str) else None
    if hook and hook[2] in _HOOK_NAMES:
        return _HOOK_NAMES[hook[2]], int(hook[1])
    raise ValueError(unknown_site(argument, name, SITES))


def unknown_site(argument: str, name: object, known: Iterable[str]) -> str:
    """The message for a name that is neither a site nor TransformerLens' name of one."""
    return (
        f"{argument}: unknown site {name!r}; expected one of {', '.join(known)}, or a TransformerLens hook name such as "
        f"'blocks.3.attn.hook_z'{did_you_mean(name, known)}"
    )


def hook_name(site: str, layer: int) -> str:
    """TransformerLens' name of a site in one layer: ("z", 3) -> "blocks.3.attn.hook_z"."""
    return f"blocks.{layer}.{_HOOK_OF_SITE[site]}"
