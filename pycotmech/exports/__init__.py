"""Results in the formats of other tools: MIB's circuits, HeadVis, CircuitsVis, TransformerLens' caches (docs/formats.md).

Files are replaced whole and never written through a symbolic link. Token texts have control characters as escapes, and nothing
in them is markup or ends a script.

Tests: `test_headvis.py` for `head_metrics`, `patterns`; the others have tests of their own names. `tests/peers/test_exports.py`
reads each export with the peer's own code.
"""

from pycotmech.exports.circuitsvis import circuitsvis_attention, circuitsvis_values, write_circuitsvis
from pycotmech.exports.headvis import write_headvis
from pycotmech.exports.mib import mib_circuit, write_mib
from pycotmech.exports.transformer_lens import activation_cache

__all__ = [
    "activation_cache",
    "circuitsvis_attention",
    "circuitsvis_values",
    "mib_circuit",
    "write_circuitsvis",
    "write_headvis",
    "write_mib",
]
