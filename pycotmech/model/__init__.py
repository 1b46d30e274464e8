"""Models: load one, run it, keep activations; the family adapters that the patching engine is built on.

Tests: `test_loading_cache.py` for `converted`; `test_loading.py` for `_checkpoint`; `test_loading_alias.py` for `aliases`;
`tests/test_bad_inputs.py` for `arguments`; `test_model.py` for `check`; `test_run.py` for `climb`, `packed`, `sites`;
`test_work.py` for `config`; `test_from_nnsight.py` for `from_nnterp`; `tests/engine/test_prompt_graphs.py` for `prompt_pass`;
the others have tests of their own names.
"""

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
