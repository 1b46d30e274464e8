"""Model families, one file each: what a family calls its parts, and how one of its layers is computed."""

from pycotmech.model.families.llama import FAMILIES, VOCAB_SLICE, LlamaFamily, ModelConfig, family_of

__all__ = ["FAMILIES", "VOCAB_SLICE", "LlamaFamily", "ModelConfig", "family_of"]
