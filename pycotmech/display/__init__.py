"""How results show themselves: as HTML in a notebook, as a figure, as a table, as an xarray Dataset.

A result says in `view` what its main array is (`View`: axes, labels, what the numbers are, the noise floor), and in `to_xarray`
what all of its arrays are (`Arrays`). `Displayed` makes everything else of the two. What holds no array, such as a model or a
plan, lists its facts instead (`Described`). Nothing is imported until it is asked for: pandas, xarray, matplotlib and plotly
belong to the methods that need them.

Tests: `test_every_result.py` for `arrays`, `described`, `displayed`, `interactive`, `static`; the others have tests of their
own names.
"""

from pycotmech.display.arrays import Arrays
from pycotmech.display.described import Described, Facts
from pycotmech.display.displayed import Displayed
from pycotmech.display.view import View

__all__ = ["Arrays", "Described", "Displayed", "Facts", "View"]
