"""Model families, one file each: what a family calls its parts, and how one of its layers is computed.

`base` says what a family gives to the rest of the library, `attention` what a layer makes of its scores, `registry` which
families there are.
"""

from pycotmech.model.families.attention import LayerAttention
from pycotmech.model.families.base import VOCAB_SLICE, Family
from pycotmech.model.families.registry import FAMILIES, family_of

__all__ = ["FAMILIES", "VOCAB_SLICE", "Family", "LayerAttention", "family_of"]
