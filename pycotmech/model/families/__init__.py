"""Model families, one file each: what a family calls its parts, and how one of its layers is computed.

`base` says what a family gives to the rest of the library, `attention` what a layer makes of its scores, `registry` which
families there are, `placed` what is added where a model lies on several devices.

Tests: `tests/model/families/test_launches.py` for `launches`; `tests/model/families/test_fields.py` and `test_published.py`
for `fields`, `windows`; `tests/model/test_every_family.py` for `base`, `gate_up`, `gemma`, `gemma2`, `gemma3`, `glm4`, `gpt2`,
`gpt_neox`, `gpt_oss`, `granite`, `layer_norm`, `llama`, `ministral3`, `mistral`, `mixtral`, `normed_qk`, `olmo2`, `olmoe`,
`one_module`, `phi`, `phi3`, `post_norm`, `qwen2`, `qwen3`, `qwen3_moe`, `readout`, `rotary_kinds`, `smollm3`;
`test_families.py` for `attention`, `registry`; `test_split.py` and `test_placement.py` for `placed`.
"""

from pycotmech.model.families.attention import LayerAttention
from pycotmech.model.families.base import Family
from pycotmech.model.families.readout import VOCAB_SLICE
from pycotmech.model.families.registry import FAMILIES, family_of

__all__ = ["FAMILIES", "VOCAB_SLICE", "Family", "LayerAttention", "family_of"]
