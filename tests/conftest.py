"""Fixtures shared by all tests. No test may reach the network or the user's own cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def tiny_cot_path() -> Path:
    """The shipped folder of the tiny-cot model (4 layers, 8 heads, 248 words)."""
    import pycotmech

    return Path(pycotmech.__file__).parent / "data" / "tiny-cot"
