"""Chain of thought: a task whose steps and counterfactuals are exact, and the analyses of arXiv 2402.18312 on it."""

from typing import TYPE_CHECKING, Any

from pycotmech import _lazy
from pycotmech.cot import analyses
from pycotmech.cot.task.examples import Example, Examples, Step
from pycotmech.cot.task.make import make_examples
from pycotmech.cot.task.pools import TooFewWords
from pycotmech.cot.task.steps import Graded, graded, select

if TYPE_CHECKING:  # what a type checker knows beforehand; analyses are found by their files
    from pycotmech.cot.analyses.patch_steps import induction_score as induction_score
    from pycotmech.cot.tools.cells import grade as grade
    from pycotmech.cot.tools.head_sets import HeadSet as HeadSet
    from pycotmech.cot.tools.head_sets import set_combinations as set_combinations
    from pycotmech.cot.tools.means import head_means as head_means
    from pycotmech.cot.tools.result import Analysis as Analysis
    from pycotmech.cot.tools.select_heads import select_heads as select_heads

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


def __getattr__(name: str) -> Any:
    return _lazy.attribute(__name__, name, _PLACES)


def __dir__() -> list[str]:
    return sorted(__all__)
