"""What training mode leaves to chance: dropouts, and noise before a router. No two passes of such a model are alike."""

from __future__ import annotations

from torch import nn

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_NUMBERS = {"attention_dropout": "drops {:g} of its weights", "jitter_noise": "multiplies its input by noise of up to {:g}"}
"""Attributes of modules in transformers that take effect in training mode -> what they do, for messages."""


def refuse_chance(model: nn.Module) -> None:
    """Raises ValueError, naming the module, if some part of a model is in training mode and draws at random there.

    Every part is asked, because an adapter may be in training mode in a model that is not. Asked in each pass, so without the
    generators of `named_modules`: 0.1 ms for 400 modules.
    """
    left = [model]
    while left:
        module = left.pop()
        if module.training and (what := _drawn(module)):
            name = next(name for name, part in model.named_modules() if part is module)
            raise ValueError(
                f"model: {name or 'it'} is in training mode, where it {what}, so no two passes are alike; call .eval() on the "
                "model first"
            )
        left += [part for part in reversed(module._modules.values()) if part is not None]


def _drawn(module: nn.Module) -> str:
    """What a module draws at random in training mode, as the rest of a sentence; empty if nothing."""
    if isinstance(module, _DROPOUTS):
        return f"drops {module.p:g} of its input" if module.p > 0 else ""
    attributes = vars(module)
    return next((text.format(attributes[name]) for name, text in _NUMBERS.items() if attributes.get(name)), "")
