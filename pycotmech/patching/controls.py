"""Which controls a sweep over pairs runs: from which prompt a random control takes its activations, and for which heads."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from pycotmech._warnings import warn
from pycotmech.model.prompts import Tokens, listed
from pycotmech.patching.pairs import Pair

if TYPE_CHECKING:
    from pycotmech.model import Model

Control = Literal["self", "random", "sham"]
ControlChoice = Literal["all"] | Sequence[Control] | None
ControlSource = Tokens | Sequence[Tokens | None] | None

CONTROL_SHARE = 0.06
"""Share of the heads whose random control is measured in runs over many examples. With the prompt that they take activations
from and the sham position they cost at most a tenth of the sweep, and ten examples of 270 heads give 170 controls."""

_NO_OTHER = "none: no other pair of equal length"
_NO_SHAM = "no sham position: the prompts differ at position 0"


@dataclass(frozen=True)
class ControlRequest:
    """The controls of B pairs.

    others [B]: of each pair the prompt, up to where the metric is read, from which its random control takes activations; None
        where there is none. share: of the heads, of each pair. sham [B]: whether there is a sham position.
    missing: by number of the pair, which controls cannot be measured, and why.
    """

    others: list[Tensor | None]
    sham: list[bool]
    share: float
    missing: dict[int, str]
    seed: int

    def drawn(self, places: Tensor, i: int) -> Tensor:
        """Of places (layer, head) [n, 2] those whose random control is measured of pair i: bool [n].

        All have the same chance, and they are spread evenly over the layers. The draw depends on the seed and the other prompt,
        so that pairs have different ones, the same in whatever order or parts they are run.
        """
        other, n = self.others[i], len(places)
        if other is None:
            return torch.zeros(n, dtype=torch.bool)
        k = max(1, math.ceil(round(self.share * n, 9)))
        digest = zlib.crc32(other.long().cpu().numpy().tobytes())
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + digest)
        at_random = torch.randperm(n, generator=generator)
        by_layer = at_random[torch.argsort(places[at_random, 0], stable=True)]
        start = torch.rand((), generator=generator, dtype=torch.float64)
        chosen = by_layer[((start + torch.arange(k)) * (n / k)).long().clamp(max=n - 1)]
        return torch.zeros(n, dtype=torch.bool).index_fill(0, chosen, True)


def ask_controls(
    model: Model,
    pairs: Sequence[Pair],
    single: bool,
    direction: str,
    site: str,
    seed: int,
    *,
    controls: ControlChoice,
    source: ControlSource,
    share: float,
) -> ControlRequest | None:
    """The controls that these arguments of `patch_heads` ask for; None for none.

    Raises ValueError or TypeError naming the argument that is wrong. Warns if the random control of no pair can be measured.
    """
    kinds = _kinds(controls)
    if isinstance(share, bool) or not isinstance(share, Real) or not 0 < share <= 1:
        raise ValueError(f"control_share: got {share!r}; expected a share of the heads above 0, at most 1")
    if source is not None and "random" not in kinds:
        raise ValueError(f"control_source: given, but controls={controls!r} has no random control; expected None")
    if not kinds:
        return None
    if site != "z":
        raise ValueError(f"controls: got {controls!r} for site {site!r}; expected None, or site 'z'")
    missing: dict[int, str] = {}
    others: list[Tensor | None] = [None] * len(pairs)
    if "random" in kinds:
        others = next_pairs(pairs, direction) if source is None else _given(model, source, pairs, single)
        others = [None if x is None else x[: pair.read + 1] for x, pair in zip(others, pairs, strict=True)]
        missing |= {i: f"random control: {_NO_OTHER}" for i, other in enumerate(others) if other is None}
        if len(missing) == len(pairs):
            warn(
                "controls: the random control cannot be measured, since there is no other pair of equal length to take "
                "activations from; expected control_source=, or several pairs of equal length"
            )
    sham = ["sham" in kinds and pair.first > 0 for pair in pairs]
    for i, pair in enumerate(pairs):
        if "sham" in kinds and pair.first == 0:
            missing[i] = f"{missing[i]}; {_NO_SHAM}" if i in missing else _NO_SHAM
    return ControlRequest(others, sham, float(share), missing, seed)


def _kinds(controls: ControlChoice) -> frozenset[str]:
    allowed = get_args(Control)
    if controls is None or controls == "all":
        return frozenset(() if controls is None else allowed)
    if isinstance(controls, str) or not isinstance(controls, Sequence) or any(kind not in allowed for kind in controls):
        names = ", ".join(map(repr, allowed))
        raise ValueError(f"controls: got {controls!r}; expected None, 'all', or a sequence of {names}")
    return frozenset(controls)


def next_pairs(pairs: Sequence[Pair], direction: str) -> list[Tensor | None]:
    """Of each pair the source prompt of the pair at its `next_places`; None where there is none."""
    sources = _sources(pairs, direction)
    return [None if place is None else sources[place] for place in next_places(pairs, direction)]


def next_places(pairs: Sequence[Pair], direction: str) -> list[int | None]:
    """Of each pair the place of the next one, the first ones following the last, whose source prompt has the same length and
    differs from both of its prompts up to where they are read; None where there is none."""
    n, sources = len(pairs), _sources(pairs, direction)
    same_length: dict[int, list[int]] = {}
    place = [0] * n
    for i, prompt in enumerate(sources):
        numbers = same_length.setdefault(len(prompt), [])
        place[i] = len(numbers)
        numbers.append(i)

    def other(i: int) -> int | None:
        end, numbers, at = pairs[i].read + 1, same_length[len(sources[i])], place[i]
        following = (numbers[(at + k) % len(numbers)] for k in range(1, len(numbers)))
        own = (pairs[i].clean[:end], pairs[i].corrupted[:end])
        return next((j for j in following if not any(torch.equal(sources[j][:end], prompt) for prompt in own)), None)

    return [other(i) for i in range(n)]


def _sources(pairs: Sequence[Pair], direction: str) -> list[Tensor]:
    return [pair.clean if direction == "denoise" else pair.corrupted for pair in pairs]


def control_arguments(others: Sequence[Tensor | None]) -> dict[str, Any]:
    """The arguments of `patch_heads_each` for the controls of runs over many examples. others: of each pair the prompt from
    which its random control takes activations."""
    if all(other is None for other in others):
        return {"controls": ("sham",)}
    return {"controls": ("random", "sham"), "control_source": list(others), "control_share": CONTROL_SHARE}


def _given(model: Model, source: ControlSource, pairs: Sequence[Pair], single: bool) -> list[Tensor | None]:
    """The prompts of `control_source` as token ids."""
    prompts: list[Any]
    if not single and isinstance(source, (list, tuple)) and any(prompt is None for prompt in source):
        prompts, one = list(source), False
    else:
        prompts, one = listed(source, argument="control_source")
    if one != single or len(prompts) != len(pairs):
        got = "one prompt" if one else f"a list of {len(prompts)}"
        asked = ("one pair", "one prompt") if single else (f"{len(pairs)} pairs", "a list of one for each")
        raise ValueError(f"control_source: got {got} for {asked[0]}; expected {asked[1]}")
    out: list[Tensor | None] = []
    for i, (prompt, pair) in enumerate(zip(prompts, pairs, strict=True)):
        name = f"control_source[{i}]"
        tokens = None if prompt is None else model.to_tokens(prompt, argument=name)
        if tokens is not None and len(tokens) != len(pair.clean):
            raise ValueError(f"{name} has {len(tokens)} tokens, its pair {len(pair.clean)}; expected equal lengths")
        out.append(tokens)
    return out
