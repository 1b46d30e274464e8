"""pycotmech: exact, fast analysis of how language models reason step by step.

    import pycotmech as pcm

    model = pcm.Model.from_pretrained("smollm2-135m")
    sweep = pcm.patch_heads(model, clean, corrupted)      # every head of every layer, exactly
    sweep.values                                          # [layers, heads]; corrupted 0, clean 1

Importing the package is quick: it loads nothing but names. PyTorch, the compiled kernels and transformers are loaded with
the first name that needs them.

Tests: `tests/test_packaging.py` for `_layout`, `_lazy`; `tests/test_absent_packages.py` for `_optional`;
`tests/cli/test_app.py` for `__main__`;
`tests/patching/test_warnings.py` for `_warnings`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pycotmech import _layout as _layout  # gives pycotmech.kernels its place
from pycotmech import _lazy

__version__ = "0.2.0"

_EXPORTS = {
    "Ablation": "pycotmech.patching",
    "Activations": "pycotmech.model",
    "Agreement": "pycotmech.patching",
    "AttentionCapture": "pycotmech.attention",
    "AttentionSummary": "pycotmech.attention",
    "Attribution": "pycotmech.patching",
    "Edit": "pycotmech.patching",
    "HeadInteractions": "pycotmech.patching",
    "HeadLogits": "pycotmech.lens",
    "HeadScores": "pycotmech.attention",
    "LogitLens": "pycotmech.lens",
    "Knockout": "pycotmech.patching",
    "Model": "pycotmech.model",
    "PairReport": "pycotmech.patching",
    "PathSweep": "pycotmech.patching",
    "Plan": "pycotmech.patching",
    "Sweep": "pycotmech.patching",
    "Variant": "pycotmech.patching",
    "VariantSweep": "pycotmech.patching",
    "ablate_heads": "pycotmech.patching",
    "attention_summary": "pycotmech.attention",
    "attribute_heads": "pycotmech.patching",
    "capture_attention": "pycotmech.attention",
    "check_pair": "pycotmech.patching",
    "head_interactions": "pycotmech.patching",
    "head_logits": "pycotmech.lens",
    "head_scores": "pycotmech.attention",
    "knock_out_edges": "pycotmech.patching",
    "logit_lens": "pycotmech.lens",
    "open_results": "pycotmech.runs.results",
    "patch_heads": "pycotmech.patching",
    "patch_heads_each": "pycotmech.patching",
    "patch_residual": "pycotmech.patching",
    "path_patch": "pycotmech.patching",
    "path_patch_all": "pycotmech.patching",
    "plan_paths": "pycotmech.patching",
    "plan_heads": "pycotmech.patching",
    "read_pairs": "pycotmech.runs",
    "register_attention": "pycotmech.attention",
    "repeated_tokens": "pycotmech.attention",
    "sweep": "pycotmech.patching",
    "write_report": "pycotmech.report",
}
_SUBPACKAGES = (
    "attention",
    "cost",
    "cot",
    "engine",
    "exports",
    "figures",
    "lens",
    "model",
    "ops",
    "paper",
    "patching",
    "report",
    "runs",
    "stats",
    "traces",
)

__all__ = ["__version__", *_EXPORTS, *_SUBPACKAGES]

if TYPE_CHECKING:
    from pycotmech import attention as attention
    from pycotmech import cost as cost
    from pycotmech import cot as cot
    from pycotmech import engine as engine
    from pycotmech import exports as exports
    from pycotmech import figures as figures
    from pycotmech import lens as lens
    from pycotmech import model as model
    from pycotmech import ops as ops
    from pycotmech import paper as paper
    from pycotmech import patching as patching
    from pycotmech import report as report
    from pycotmech import runs as runs
    from pycotmech import stats as stats
    from pycotmech import traces as traces
    from pycotmech.attention import AttentionCapture as AttentionCapture
    from pycotmech.attention import AttentionSummary as AttentionSummary
    from pycotmech.attention import HeadScores as HeadScores
    from pycotmech.attention import attention_summary as attention_summary
    from pycotmech.attention import capture_attention as capture_attention
    from pycotmech.attention import head_scores as head_scores
    from pycotmech.attention import register_attention as register_attention
    from pycotmech.attention import repeated_tokens as repeated_tokens
    from pycotmech.lens import HeadLogits as HeadLogits
    from pycotmech.lens import LogitLens as LogitLens
    from pycotmech.lens import head_logits as head_logits
    from pycotmech.lens import logit_lens as logit_lens
    from pycotmech.model import Activations as Activations
    from pycotmech.model import Model as Model
    from pycotmech.patching import Ablation as Ablation
    from pycotmech.patching import Agreement as Agreement
    from pycotmech.patching import Attribution as Attribution
    from pycotmech.patching import Edit as Edit
    from pycotmech.patching import HeadInteractions as HeadInteractions
    from pycotmech.patching import Knockout as Knockout
    from pycotmech.patching import PairReport as PairReport
    from pycotmech.patching import PathSweep as PathSweep
    from pycotmech.patching import Plan as Plan
    from pycotmech.patching import Sweep as Sweep
    from pycotmech.patching import Variant as Variant
    from pycotmech.patching import VariantSweep as VariantSweep
    from pycotmech.patching import ablate_heads as ablate_heads
    from pycotmech.patching import attribute_heads as attribute_heads
    from pycotmech.patching import check_pair as check_pair
    from pycotmech.patching import head_interactions as head_interactions
    from pycotmech.patching import knock_out_edges as knock_out_edges
    from pycotmech.patching import patch_heads as patch_heads
    from pycotmech.patching import patch_heads_each as patch_heads_each
    from pycotmech.patching import patch_residual as patch_residual
    from pycotmech.patching import path_patch as path_patch
    from pycotmech.patching import path_patch_all as path_patch_all
    from pycotmech.patching import plan_heads as plan_heads
    from pycotmech.patching import plan_paths as plan_paths
    from pycotmech.patching import sweep as sweep
    from pycotmech.report import write_report as write_report
    from pycotmech.runs import read_pairs as read_pairs
    from pycotmech.runs.results import open_results as open_results


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"pycotmech.{name}")
    return _lazy.attribute(__name__, name, _EXPORTS)


def __dir__() -> list[str]:
    return sorted(__all__)
