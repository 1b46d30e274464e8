"""A failed comparison says in one line which entry of what is off, and how far."""

import numpy as np
import pytest
import torch
import xarray as xr

from tests.reference.close import assert_allclose, assert_close


def test_the_line_names_expression_entry_and_ratio():
    values = np.zeros((3, 4))
    values[2, 1] = 0.5
    values[0, 0] = np.nan
    expected = np.zeros((3, 4))
    expected[0, 0] = np.nan
    with pytest.raises(AssertionError) as raised:
        assert_allclose(values, expected, atol=0.1)
    assert str(raised.value) == "values: [2, 1] is 0.5, expected 0: 5 times the tolerance (1 of 12 entries beyond it)"
    with pytest.raises(AssertionError, match=r"^values \* 2: layer 2, head 1 is 1, expected 0: 10 times the tolerance"):
        assert_allclose(values * 2, expected, atol=0.1, axes=("layer", "head"))
    labelled = xr.DataArray(values, dims=("layer", "head"))
    with pytest.raises(AssertionError, match=r"^labelled: layer 2, head 1 is 0.5"):
        assert_allclose(labelled, expected, atol=0.1)
    assert_allclose(values, expected, atol=0.5)


def test_tensors_keep_their_own_rules():
    a = torch.tensor([1.0, 2.0])
    assert_close(a, a.clone())
    with pytest.raises(AssertionError, match=r"^a: \[1\] is 2, expected 2.1: .* times the tolerance \(1 of 2"):
        assert_close(a, torch.tensor([1.0, 2.1]), rtol=1e-3, atol=0.0)
    with pytest.raises(AssertionError, match="dtype"):
        assert_close(a, a.double())
    with pytest.raises(AssertionError, match=r"[Ss]hape"):
        assert_allclose(a.numpy(), np.ones(3))
    with pytest.raises(AssertionError, match=r"^float\(a\[0\]\): is 1, expected 2: "):
        assert_allclose(float(a[0]), 2.0)
