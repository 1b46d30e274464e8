"""The CUDA kernel of attn_topk: what can be said of it without a GPU."""

import ctypes
import re
from pathlib import Path

import pytest
import torch

from tests.kernels import nvcc_report

pytest.importorskip("triton", reason="the package of the kernels needs triton")
from pycotmech.kernels import topk

ROOT = Path(__file__).resolve().parents[2]
needs_nvcc = pytest.mark.skipif(nvcc_report.find_nvcc() is None, reason="nvcc is not installed")


@needs_nvcc
def test_nothing_is_spilled_and_it_fits():
    rows = nvcc_report.rows()
    assert {(r.arch, r.dtype) for r in rows} == {(a, d) for a in nvcc_report.ARCHS for d in ("float32", "bfloat16", "float16")}
    for row in rows:
        assert (row.stack, row.spill_stores, row.spill_loads) == (0, 0, 0), row
        # Four blocks of 128 threads share a multiprocessor's 65,536 registers.
        assert 0 < row.registers <= 128, row
        assert row.shared <= nvcc_report.SHARED_LIMIT[row.arch], row


@needs_nvcc
def test_the_document_shows_the_report():
    from tests.kernels import kernel_table

    assert kernel_table.documented_cuda_rows() == kernel_table.cuda_rows(), "run `python -m tests.kernels.kernel_table`"


@needs_nvcc
def test_it_compiles_without_a_warning():
    assert "warning" not in nvcc_report.compile_for(nvcc_report.find_nvcc(), "sm_90a")


def test_the_figure_of_shared_memory_follows_the_source():
    source = (ROOT / "csrc/cuda/topk_kernel.h").read_text()
    constants = dict(re.findall(r"\b(k\w+) = (\d+)[,;]", source))
    assert constants["kWarps"] == "4" and constants["kRowsPerWarp"] == "8"
    assert constants["kKeys"] == "32" and constants["kStep"] == "64" and "kStride = kStep + 4" in source
    assert nvcc_report.shared_bytes(128) == 32 * 1024 + 32 * 128 * 4 + 32 * 68 * 4 + 32 * 8


def test_a_launch_that_cuda_refuses_is_an_error():
    """Through the real library, with host memory: no GPU is there to take it, and that must be said."""
    if topk._find() is None:
        pytest.skip("the CUDA library was not built here")
    if torch.cuda.is_available():
        pytest.skip("a GPU is there: tests/kernels/gpu runs the kernel")
    lib = topk.library()
    assert lib is not None
    q, k, lse = torch.randn(1, 2, 5, 32), torch.randn(1, 1, 9, 32), torch.zeros(1, 2, 5)
    p, i = torch.empty(1, 2, 5, 9), torch.empty(1, 2, 5, 9, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"attn_topk: the kernel could not be launched: .*(driver|device|GPU)"):
        topk.call(lib, q, k, lse, None, p, i, 0.1, 0, 0.0, 0)


def test_the_interface_has_one_form_on_both_sides():
    """The parameter list in C against the types that ctypes passes."""
    source = (ROOT / "csrc/cuda/topk.cu").read_text()
    parameters = re.search(r"int pcm_cuda_topk\((.*?)\)", source, re.S).group(1).split(",")
    kinds = {"int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "double": ctypes.c_double}
    want = [ctypes.c_void_p if "*" in p else kinds[p.split()[0]] for p in parameters]
    lib = topk.library() if topk._find() else None
    if lib is None:
        pytest.skip("the CUDA library was not built here")
    assert lib.pcm_cuda_topk.argtypes == want


def test_without_the_library_the_reference_runs(monkeypatch):
    monkeypatch.setattr(topk, "_find", lambda: None)
    topk.library.cache_clear()
    q, k = torch.randn(1, 2, 5, 32, dtype=torch.float64), torch.randn(1, 1, 9, 32, dtype=torch.float64)
    lse = torch.zeros(1, 2, 5, dtype=torch.float64)
    try:
        with pytest.warns(UserWarning, match="no CUDA kernel for attn_topk"):
            p, i = topk.attn_topk(q, k, lse, 3, None, 0.2, 0, 0.0)
    finally:
        topk.library.cache_clear()
    s = (q @ k.repeat_interleave(2, 1).mT * 0.2).masked_fill(torch.ones(5, 9).triu(5).bool(), -torch.inf)
    want = s.topk(3)
    assert torch.equal(i.long(), want.indices) and torch.allclose(p, want.values.exp())
