"""Reading the residual stream through the unembedding: direct contributions to logits, and the logit lens.

Tests: `test_head_logits.py` for `attribution`, `heads`, `readout`; `test_logit_lens.py` for `plots`, `request`, `results`;
the others have tests of their own names.
"""

from pycotmech.lens.attribution import head_logits
from pycotmech.lens.heads import HeadLogits
from pycotmech.lens.logit_lens import logit_lens
from pycotmech.lens.results import LogitLens

__all__ = ["HeadLogits", "LogitLens", "head_logits", "logit_lens"]
