"""The interpreter must be chosen before triton is imported, and a process that interprets cannot compile: so
tests/kernels/interp runs in a child process (test_interpreted.py) and everything else here."""

import os
from pathlib import Path

os.environ.setdefault("TRITON_CACHE_DIR", str(Path(__file__).resolve().parents[2] / ".triton"))
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

_interpreting = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore = ["aot", "gpu", "test_table.py"] if _interpreting else ["interp"]
