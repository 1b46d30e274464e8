"""Chain of thought: a task whose steps and counterfactuals are exact, and the analyses of arXiv 2402.18312 on it."""

from pycotmech import _lazy
from pycotmech.cot import analyses
from pycotmech.cot.task.examples import Example, Examples, Step
from pycotmech.cot.task.make import make_examples
from pycotmech.cot.task.pools import TooFewWords
from pycotmech.cot.task.steps import Graded, graded, select

_PLACES = {
    **{name: f".analyses.{name}" for name in analyses.names()},
    "Analysis": ".tools.result",
    "HeadSet": ".tools.head_sets",
    "grade": ".tools.cells",
    "head_means": ".tools.means",
    "induction_score": ".analyses.patch_steps",
    "select_heads": ".tools.select_heads",
    "set_combinations": ".tools.head_sets",
}
"""Public name -> its module. Loaded when first used: some need libraries that take a while."""

__all__ = ["Example", "Examples", "Graded", "Step", "TooFewWords", "graded", "make_examples", "select", *_PLACES]


def __getattr__(name: str):
    return _lazy.attribute(__name__, name, _PLACES)


def __dir__() -> list[str]:
    return sorted(__all__)
