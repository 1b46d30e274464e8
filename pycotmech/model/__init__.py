"""Models: load one, run it, keep activations; the family adapters that the patching engine is built on."""

from pycotmech.model.config import ModelConfig
from pycotmech.model.families.base import Family
from pycotmech.model.model import Model
from pycotmech.model.prefixes import Prefixes
from pycotmech.model.prompts import resolve_positions
from pycotmech.model.run import Activations, KeyValues, Packed, forward_packed

__all__ = [
    "Activations",
    "Family",
    "KeyValues",
    "Model",
    "ModelConfig",
    "Packed",
    "Prefixes",
    "forward_packed",
    "resolve_positions",
]
