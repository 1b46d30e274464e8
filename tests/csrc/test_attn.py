"""The torch-free attention core and its top-k, as plain C++ programs under sanitizers; see the .cpp files."""

import pytest

from tests.csrc.test_core import levels_here

# Fresh memory is all ones, a NaN: what is used before it is written shows in the results.
POISON = {"ASAN_OPTIONS": "max_malloc_fill_size=1073741824:malloc_fill_byte=255"}


def test_topk_at_every_level(cpp_test):
    assert cpp_test("topk_test") == levels_here()


@pytest.mark.parametrize("level", levels_here())
def test_attention(cpp_test, level):
    assert cpp_test("attn_test", env={**POISON, "PYCOTMECH_ISA": level}) == [level]


def test_cuda_kernel_between_barriers(cpp_test):
    assert cpp_test("topk_cuda_test") == ["ok"]
