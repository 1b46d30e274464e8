"""Models: load one, run it, keep activations; the family adapters that the patching engine is built on."""

from pycotmech.model.families.llama import LlamaFamily, ModelConfig
from pycotmech.model.model import Model, resolve_positions
from pycotmech.model.prefixes import Prefixes
from pycotmech.model.run import Activations, KeyValues, Packed, forward_packed

__all__ = [
    "Activations",
    "KeyValues",
    "LlamaFamily",
    "Model",
    "ModelConfig",
    "Packed",
    "Prefixes",
    "forward_packed",
    "resolve_positions",
]
