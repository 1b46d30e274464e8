"""Kernels in Triton's interpreter. `test_interpreted.py` runs this folder in a process of its own; each file here also runs
alone, by its path."""

import os
import sys
from pathlib import Path

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":  # pytest reads this file without it only if its folder, or a file in it, is named
    if "triton" in sys.modules:
        raise pytest.UsageError("tests/kernels/interp needs TRITON_INTERPRET=1 before triton is imported: run it alone")
    os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
from pycotmech.kernels import colsum, extract, launch, prefix_attn, rows, rows_entries

from tests.kernels import bf16_interpreter, poison

HERE = Path(__file__).resolve().parent

bf16_interpreter.install()
torch.set_num_threads(1)
np.seterr(all="ignore")  # 1 / 0 in rows that see no key: selected away, as on a GPU

WRAPPERS = {
    "attn_extract": extract.attn_extract,
    "attn_colsum": colsum.attn_colsum,
    "attn_rows": rows_entries.attn_rows,
    "attn_entries": rows_entries.attn_entries,
    "prefix_attn": prefix_attn.prefix_attn,
    "add_rms_norm": rows.add_rms_norm,
    "rope": rows.rope,
    "rope_keys": rows.rope_keys,
    "swiglu": rows.swiglu,
}


def _run_as(arch):
    def run(op, *args):
        with launch.as_if_on(arch), poison.guarded_outputs():
            return WRAPPERS[op](*args)

    return run


GPUS = ("sm_86", "sm_90")


@pytest.fixture(params=GPUS)
def run(request):
    """The wrapper of an op with the tiles of a small GPU (pointers), and of one with tensor descriptors."""
    return _run_as(request.param)


@pytest.fixture
def run_once():
    return _run_as("sm_80")


def pytest_collection_modifyitems(items):
    """Each case runs with the tiles of one of the GPUs, in turn; with the other one it is slow."""
    beside = {item.path.name for item in items if HERE not in item.path.parents}
    if beside:
        raise pytest.UsageError(f"tests/kernels/interp interprets every kernel of its process: run it without {sorted(beside)}")
    seen = {}
    for item in items:
        if "run" in getattr(getattr(item, "callspec", None), "params", {}):  # tests elsewhere have a fixture of this name too
            case = (item.originalname, item.callspec.params.get("name"))
            place = seen.setdefault(case, len(seen))
            if item.callspec.params["run"] != GPUS[place % len(GPUS)]:
                item.add_marker(pytest.mark.slow)
