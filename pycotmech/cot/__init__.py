"""Chain of thought: a task whose steps and counterfactuals are exact, and the analyses of arXiv 2402.18312 on it."""

import importlib

from pycotmech.cot.examples import Example, Examples, Step
from pycotmech.cot.make import make_examples
from pycotmech.cot.pools import TooFewWords
from pycotmech.cot.steps import Graded, graded, select

_ANALYSES = {
    "Analysis": "result",
    "HeadSet": "head_sets",
    "answer_sources": "answer_sources",
    "answer_writers": "answer_writers",
    "attention_by_source": "attention_by_source",
    "context_abidance": "context_abidance",
    "copy_heads": "copy_heads",
    "decision_heads": "decision_heads",
    "decision_horizon": "decision_horizon",
    "functional_rift": "functional_rift",
    "grade": "cells",
    "head_means": "means",
    "head_overlap": "head_overlap",
    "induction_heads": "induction_heads",
    "induction_score": "patch_steps",
    "information_flow": "information_flow",
    "keep_only": "isolation",
    "knock_out_curve": "knock_out",
    "pair_probes": "pair_probes",
    "patch_steps": "patch_steps",
    "relation_heads": "relation_heads",
    "remove": "isolation",
    "select_heads": "select_heads",
    "set_combinations": "isolation",
}
"""Public name -> file below pycotmech.cot.analyses. Loaded when first used: some need libraries that take a while."""

__all__ = ["Example", "Examples", "Graded", "Step", "TooFewWords", "graded", "make_examples", "select", *_ANALYSES]


def __getattr__(name: str):
    if name in _ANALYSES:
        value = getattr(importlib.import_module(f"pycotmech.cot.analyses.{_ANALYSES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'pycotmech.cot' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
