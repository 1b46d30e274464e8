"""Activation patching: exact sweeps over heads, positions and examples.

The public functions are in `heads`, `residual`, `paths`, `sweep`, `ablate`, `knockout`, `interactions` and
`attribution`. A sweep over pairs takes these steps:
1. `question` checks what is asked.
2. `pair_layout` (`path_layout`) says which variants answer it.
3. `chunks` runs the prompts, as many together as fit; `pair_sweep` (`path_sweep`) evaluates their variants.
4. `scale` turns what was measured into values and effects, `results` (`path_results`) shows them.

Tests: `test_heads.py` for `chunks`, `pair_layout`, `pair_sweep`, `position_groups`, `question`; `test_sites.py` for
`residual`; `test_sweep.py` for `edits`; `test_paths.py` for `path_layout`, `path_results`, `path_sweep`; `test_invariants.py`
for `results`; `test_any_variants.py` for `variant_results`; `test_noise_floor.py` for `rounding`; `test_controls.py` for
`control_results`, `sham`; the others have tests of their own names.
"""

from pycotmech.engine.planner import Plan
from pycotmech.patching.ablate import ablate_heads
from pycotmech.patching.attribution import Agreement, Attribution, attribute_heads
from pycotmech.patching.edits import Edit, Variant
from pycotmech.patching.heads import patch_heads, patch_heads_each, plan_heads
from pycotmech.patching.interactions import HeadInteractions, head_interactions
from pycotmech.patching.knockout import knock_out_edges
from pycotmech.patching.pairs import PairReport, check_pair
from pycotmech.patching.path_results import PathSweep
from pycotmech.patching.paths import path_patch, path_patch_all, plan_paths
from pycotmech.patching.residual import patch_residual
from pycotmech.patching.results import Sweep
from pycotmech.patching.sweep import sweep
from pycotmech.patching.variant_results import Ablation, Knockout, VariantSweep

__all__ = [
    "Ablation",
    "Agreement",
    "Attribution",
    "Edit",
    "HeadInteractions",
    "Knockout",
    "PairReport",
    "PathSweep",
    "Plan",
    "Sweep",
    "Variant",
    "VariantSweep",
    "ablate_heads",
    "attribute_heads",
    "check_pair",
    "head_interactions",
    "knock_out_edges",
    "patch_heads",
    "patch_heads_each",
    "patch_residual",
    "path_patch",
    "path_patch_all",
    "plan_heads",
    "plan_paths",
    "sweep",
]
