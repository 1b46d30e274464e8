"""Activation patching: exact sweeps over heads, positions and examples."""

from pycotmech.patching.heads import patch_heads
from pycotmech.patching.pairs import PairReport, check_pair
from pycotmech.patching.planner import Plan
from pycotmech.patching.residual import patch_residual
from pycotmech.patching.results import Sweep

__all__ = ["PairReport", "Plan", "Sweep", "check_pair", "patch_heads", "patch_residual"]
