"""Where `pycotmech.kernels` lives.

An installed package holds the Triton kernels in `pycotmech/kernels/`. In a source tree or an editable install they are in
the top-level `kernels/`, which must not be importable under that bare name: transformers probes for a PyPI package called
`kernels`. So that folder has no `__init__.py`, and this module gives it its proper name.
"""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

_here = Path(__file__).resolve().parent
_source = _here.parent / "kernels"

if "pycotmech.kernels" not in sys.modules and not (_here / "kernels").is_dir() and _source.is_dir():
    _spec = importlib.machinery.ModuleSpec("pycotmech.kernels", None, is_package=True)
    _spec.submodule_search_locations = [str(_source)]
    _module = importlib.util.module_from_spec(_spec)
    sys.modules["pycotmech.kernels"] = _module
    sys.modules["pycotmech"].kernels = _module  # type: ignore[attr-defined]
