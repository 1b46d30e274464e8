import numpy as np
import pytest
import torch
from pycotmech.kernels import colsum, extract, launch, prefix_attn, rows, rows_entries

from tests.kernels import bf16_interpreter, poison

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
    seen = {}
    for item in items:
        if "run" in getattr(getattr(item, "callspec", None), "params", {}):  # tests elsewhere have a fixture of this name too
            case = (item.originalname, item.callspec.params.get("name"))
            place = seen.setdefault(case, len(seen))
            if item.callspec.params["run"] != GPUS[place % len(GPUS)]:
                item.add_marker(pytest.mark.slow)
