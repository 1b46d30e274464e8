"""Chain-of-thought tasks: examples whose steps and counterfactuals are exact, and which of them a model gets right."""

from pycotmech.cot.examples import Example, Examples, Step
from pycotmech.cot.make import make_examples
from pycotmech.cot.pools import TooFewWords
from pycotmech.cot.steps import Graded, graded, select

__all__ = ["Example", "Examples", "Graded", "Step", "TooFewWords", "graded", "make_examples", "select"]
