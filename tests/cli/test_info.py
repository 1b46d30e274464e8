"""`pycotmech info` and the version."""

from __future__ import annotations

import pycotmech as pcm


def test_info_and_version(shell):
    code, out, _ = shell("info")
    assert code == 0
    for expected in (
        "pycotmech._C",
        "pycotmech._core",
        "prefix_attn",
        "torch",
        "model cache",
        "free memory",
        "bfloat16 products",
    ):
        assert expected in out
    assert shell("--version") == (0, f"pycotmech {pcm.__version__}\n", "")
