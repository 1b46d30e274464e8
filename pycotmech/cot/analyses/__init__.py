"""The paper's analyses (arXiv 2402.18312), one file each, with its figure in `<name>_figure.py` where that is large.

Every analysis is a function `name(model, examples, *, steps=None, right=None, ..., seed=0, progress=None)` in a file of the
same name. It returns an `Analysis`, has a `cost(cfg, workload, ...)` in the same file that predicts what the function
needs, and describes itself as ANALYSIS, a `Description`. A new one is registered nowhere else. What analyses share is in
`pycotmech.cot.tools` and `pycotmech.stats`.

Tests: `test_decision_copy.py` for `copy_heads`, `decision_heads`; `test_answer_sources.py` for `context_abidance`;
`test_keep_only.py` for `remove`; the others have tests of their own names.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pycotmech.cot.tools.registry import Description


def names() -> list[str]:
    """The names of all analyses. Imports none of them."""
    return [m.name for m in pkgutil.iter_modules(__path__) if not m.name.endswith("_figure")]


@cache
def described() -> tuple[Description, ...]:
    """The descriptions of all analyses, by experiment: the order in which they run."""
    found = [importlib.import_module(f"{__name__}.{name}").ANALYSIS for name in names()]
    return tuple(sorted(found, key=lambda d: (int(d.source.removeprefix("E")), d.order)))
