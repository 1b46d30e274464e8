"""Checks of arguments that many functions share: one error that names the argument, what came and what was expected."""

from __future__ import annotations

import math
from numbers import Integral, Real

from torch import nn

from pycotmech.model.model import Model

SEEDS = 2**32
"""Seeds lie below this: numpy and scikit-learn take no larger ones."""


def check_model(model: object) -> None:
    """Raises TypeError unless `model` is a `pycotmech.Model`, and says how to make one of what was given."""
    if isinstance(model, Model):
        return
    if isinstance(model, nn.Module):
        raise TypeError(
            f"model: got {type(model).__name__}, which is not wrapped; expected a pycotmech.Model: pcm.Model(model, tokenizer)"
        )
    if isinstance(model, str):
        raise TypeError(f"model: got the string {model!r}; expected a pycotmech.Model: pcm.Model.from_pretrained({model!r})")
    raise TypeError(f"model: got {type(model).__name__}; expected a pycotmech.Model")


def check_integer(value: object, argument: str, low: int, high: int | None = None) -> int:
    """The value as an int. Raises TypeError or ValueError, naming `argument`, unless it is an integer in low .. high."""
    expected = f"{low} to {high}" if high is not None else f"{low} or more"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{argument}: got {value!r} of type {type(value).__name__}; expected an integer, {expected}")
    number = int(value)
    if not low <= number or (high is not None and number > high):
        raise ValueError(f"{argument}: got {value}; expected {expected}")
    return number


def check_seed(seed: object, *, argument: str = "seed") -> int:
    """The seed as an int. Raises TypeError or ValueError unless it is an integer in 0 .. 2**32 - 1."""
    return check_integer(seed, argument, 0, SEEDS - 1)


def check_memory(memory_gb: object) -> float | None:
    """The memory budget in GiB. Raises TypeError or ValueError unless it is a positive finite number, or None."""
    if memory_gb is None:
        return None
    if isinstance(memory_gb, bool) or not isinstance(memory_gb, Real):
        raise TypeError(
            f"memory_gb: got {memory_gb!r} of type {type(memory_gb).__name__}; expected a positive number of gigabytes, or None"
        )
    if not 0 < float(memory_gb) < math.inf:
        raise ValueError(f"memory_gb: got {memory_gb}; expected a positive number of gigabytes, or None: half of what is free")
    return float(memory_gb)


def check_progress(progress: object) -> None:
    """Raises TypeError unless `progress` can be called, or is None."""
    if progress is not None and not callable(progress):
        raise TypeError(f"progress: got {progress!r} of type {type(progress).__name__}; expected a callable, or None")


def check_common(model: object, *, seed: object = 0, memory_gb: object = None) -> None:
    """`check_model`, `check_seed` and `check_memory`, before anything is run."""
    check_model(model)
    check_seed(seed)
    check_memory(memory_gb)
