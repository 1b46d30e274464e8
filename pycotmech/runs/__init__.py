"""Files of the package's user: prompt pairs that come in, results that stay, whatever happens to the process."""

from pycotmech.runs.pairs import PromptPair, read_pairs
from pycotmech.runs.store import Axes, Results, State, read

__all__ = ["Axes", "PromptPair", "Results", "State", "read", "read_pairs"]
