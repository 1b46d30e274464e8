"""At load: does this library compute what the Hugging Face model computes?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pycotmech.model.families.base import Family
from pycotmech.model.placement import is_placed
from pycotmech.model.run import forward_packed
from pycotmech.model.twin import twin_of

PROMPT_LENGTH = 32
LOGITS = "the logits"
_EXACT_TOLERANCE = 1e-4  # of the largest value: two orders of summation in float32, far below any real difference
_TOLERANCE_16_BIT = 0.05  # root-mean-square, relative: where there is no pass in float32 to compare with
_TOLERANCE_INNER = 0.01  # the same, where a library computes in 16 bits inside a model in float32
_SLACK = 1.25  # on the error of 16-bit logits: over so few positions it scatters a little
_ROUTED_SLACK = 3.0  # where rounding decides a tie between experts, one row is far off


def check_against_hf(family: Family) -> None:
    """Runs a short prompt on both sides and compares the logits; if they differ, finds the first layer that does.

    float32 and float64: each value equal to 1e-4 of the largest. bfloat16 and float16: the root-mean-square error against
    a pass in float32 (the same weights, widened one layer at a time) no larger than the Hugging Face model's own, within
    25 %. Quantised weights in 16 bits, and plain ones that accelerate has placed: within 5 % of the Hugging Face model's
    values; quantised weights in float32, whose library may compute in 16 bits: within 1 %.
    If some module is called as it is, it must also treat each row by itself, wherever it stands among others.
    Raises ValueError naming the first place that differs, or the first that is not finite.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(family.cfg.d_vocab, (PROMPT_LENGTH,), generator=generator)
    theirs = _theirs(family, tokens)
    for name, value in theirs.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"model: its own forward pass is not finite at {name}; are the weights intact?")
    ours = _ours(family, tokens)
    tolerance = _compare(family, tokens, ours, theirs)
    if not family.is_plain():
        _check_rows(family, tokens, ours[LOGITS], tolerance)


def _compare(family: Family, tokens: Tensor, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The tolerance within which ours agree with theirs. Raises ValueError naming the first place that differs."""
    if family.dtype in (torch.float32, torch.float64):
        for name, got in ours.items():
            worst, scale = (got - theirs[name]).abs().max().item(), theirs[name].abs().max().item()
            if not worst <= _EXACT_TOLERANCE * scale:
                if family.is_quantised() and _rms(ours[LOGITS] - theirs[LOGITS]) <= _TOLERANCE_INNER * _rms(theirs[LOGITS]):
                    return _TOLERANCE_INNER
                raise ValueError(_message(family, name, f"largest difference {worst:.3g} where values reach {scale:.3g}"))
        return _EXACT_TOLERANCE
    got, expected = ours[LOGITS].double(), theirs[LOGITS].double()
    if family.is_quantised() or is_placed(family.hf):
        error, scale = _rms(got - expected), _rms(expected)
        if not error <= _TOLERANCE_16_BIT * scale:
            raise ValueError(_message(family, LOGITS, f"root-mean-square difference {error:.3g} of {scale:.3g}"))
        return _TOLERANCE_16_BIT
    names = {**_places(family), "logits": LOGITS}
    truth = {names[place]: value for place, value in family.widened(tokens).items()}
    error, own = _rms(got - truth[LOGITS]), _rms(expected - truth[LOGITS])
    if not error <= (_ROUTED_SLACK if family.routed else _SLACK) * own + 1e-12:
        raise ValueError(
            _message(
                family,
                _first_worse(ours, theirs, truth),
                f"error of the logits {error:.3g} against float32, the Hugging Face model's own {own:.3g}",
            )
        )
    return _TOLERANCE_16_BIT


def _check_rows(family: Family, tokens: Tensor, logits: Tensor, tolerance: float) -> None:
    """Raises ValueError if logits [T, V] of tokens [T] change by more than `tolerance` when the rows of another prompt are
    computed before theirs."""
    other = (tokens + family.cfg.d_vocab // 2) % family.cfg.d_vocab
    packed = forward_packed(family, [other, tokens], read=torch.arange(len(other), 2 * len(tokens)))
    with torch.no_grad():
        found = family.logits(packed.resid_final).cpu()
    exact = tolerance == _EXACT_TOLERANCE
    error = (found - logits).abs().max().item() if exact else _rms(found - logits)
    scale = logits.abs().max().item() if exact else _rms(logits)
    if not error <= tolerance * scale:
        raise ValueError(
            f"model: what it computes for a token changes by {error:.3g}, where logits reach {scale:.3g}, with the rows that "
            "are computed beside it. A hook that edits by position does that, and quantisation that looks at all rows at once "
            "(one scale for all; outlier columns of bitsandbytes' int8, which llm_int8_threshold=0 turns off). Prompts and "
            "variants are computed together, so their values would depend on one another; remove what does it"
        )


def _first_worse(ours: dict[str, Tensor], theirs: dict[str, Tensor], truth: dict[str, Tensor]) -> str:
    """The first place whose typical error is clearly larger. The median, since a few huge activations rule the mean."""
    for name, best in truth.items():
        error, own = (ours[name] - best).abs().median(), (theirs[name] - best).abs().median()
        if not error <= 2 * own + 1e-12:
            return name
    return LOGITS


def _message(family: Family, name: str, figures: str) -> str:
    cause = "Something on the model changes its forward in a way this library does not reproduce"
    if family.is_quantised():
        cause = (
            "Its weights are quantised; where inputs are rounded to integers too (dynamic quantisation of activations), a "
            "difference in the last bit becomes a whole step, and no two ways of computing agree. Quantise weights alone"
        )
    return (
        "model: computed stage by stage it differs from the Hugging Face model's own forward pass, "
        f"first at {name} ({figures}). "
        f"{cause}; check=False skips this check."
    )


def _rms(x: Tensor) -> float:
    return x.pow(2).mean().sqrt().item()


def _places(family: Family) -> dict[str, str]:
    """The modules whose outputs (times `Family.sublayer_scale`) are compared, by name, and what they are called in messages."""
    places = {}
    for l in range(family.cfg.n_layers):
        attention, mlp = family.sublayers(l)
        places |= {attention: f"layer {l}, attention", mlp: f"layer {l}, MLP"}
    return places


def _ours(family: Family, tokens: Tensor) -> dict[str, Tensor]:
    packed = forward_packed(family, [tokens], sites=("attn_out", "mlp_out"), read=torch.arange(len(tokens)))
    by_place = (packed.sites[site][l] for l in range(family.cfg.n_layers) for site in ("attn_out", "mlp_out"))
    out = dict(zip(_places(family).values(), by_place, strict=True))
    with torch.no_grad():
        out[LOGITS] = family.logits(packed.resid_final)
    return {name: value.cpu() for name, value in out.items()}


@torch.no_grad()
def _theirs(family: Family, tokens: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def recorder(name: str, scale: float):
        def hook(_module: nn.Module, _args, output) -> None:
            found[name] = (output[0] if isinstance(output, tuple) else output)[0].detach().cpu() * scale

        return hook

    # Hooks on the model itself would be seen by other threads, and be refused or honoured there.
    places = _places(family)
    hf = twin_of(family.hf, places)
    for i, (place, name) in enumerate(places.items()):
        hf.get_submodule(place).register_forward_hook(recorder(name, family.sublayer_scale(i // 2)))
    logits = hf(tokens[None].to(family.device), use_cache=False).logits[0]
    return {**found, LOGITS: logits.cpu()}
