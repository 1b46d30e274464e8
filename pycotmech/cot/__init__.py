"""Chain of thought: a task whose steps and counterfactuals are exact, and the analyses of arXiv 2402.18312 on it."""

import importlib

from pycotmech.cot.task.examples import Example, Examples, Step
from pycotmech.cot.task.make import make_examples
from pycotmech.cot.task.pools import TooFewWords
from pycotmech.cot.task.steps import Graded, graded, select

_ANALYSES = {
    "Analysis": "tools.result",
    "HeadSet": "tools.head_sets",
    "answer_sources": "analyses.answer_sources",
    "answer_writers": "analyses.answer_writers",
    "attention_by_source": "analyses.attention_by_source",
    "context_abidance": "analyses.context_abidance",
    "copy_heads": "analyses.copy_heads",
    "decision_heads": "analyses.decision_heads",
    "decision_horizon": "analyses.decision_horizon",
    "functional_rift": "analyses.functional_rift",
    "grade": "tools.cells",
    "head_means": "tools.means",
    "head_overlap": "analyses.head_overlap",
    "induction_heads": "analyses.induction_heads",
    "induction_score": "analyses.patch_steps",
    "information_flow": "analyses.information_flow",
    "keep_only": "analyses.isolation",
    "knock_out_curve": "analyses.knock_out",
    "pair_probes": "analyses.pair_probes",
    "patch_steps": "analyses.patch_steps",
    "relation_heads": "analyses.relation_heads",
    "remove": "analyses.isolation",
    "select_heads": "analyses.select_heads",
    "set_combinations": "analyses.isolation",
}
"""Public name -> module below pycotmech.cot. Loaded when first used: some need libraries that take a while."""

__all__ = ["Example", "Examples", "Graded", "Step", "TooFewWords", "graded", "make_examples", "select", *_ANALYSES]


def __getattr__(name: str):
    if name in _ANALYSES:
        value = getattr(importlib.import_module(f"pycotmech.cot.{_ANALYSES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'pycotmech.cot' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
