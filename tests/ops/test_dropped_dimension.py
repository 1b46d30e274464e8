"""Every head dimension counts, and the tolerances of the op tests see one that is left out.

A column-sum kernel that used half of the head's dimensions has passed a check before, because the tolerance was larger than the
signal. Here a kernel that loses one dimension, or one key, is imitated by zeros in its input.
"""

import pytest
import torch

from pycotmech.ops import attn_colsum, attn_entries, attn_extract, attn_rows, attn_topk, prefix_attn
from tests.ops.attn_cases import Case, error

TOLERANCE = 5e-6  # what the tests of these ops allow in float32
SIGNAL = 100  # times that


def inputs(D):
    x = Case(H=4, Hkv=2, T=65, S=81, D=D).inputs(torch.float32)
    return x["q"], x["k"], x["v"]


def statistics(q, k, v, lse):
    g = torch.Generator().manual_seed(0)
    rows, (qi, ki) = torch.arange(0, 65, 8), (torch.randint(65, (50,), generator=g) for _ in range(2))
    extract, lse = attn_extract(q=q, k=k, v=v, topk=4, entropy=True), lse.to(q.dtype)
    return {
        "attn_colsum": attn_colsum(q=q, k=k, lse=lse),
        "attn_rows": attn_rows(q=q, k=k, lse=lse, rows=rows),
        "attn_entries": attn_entries(q=q, k=k, lse=lse, qi=qi, ki=ki),
        "attn_topk": attn_topk(q=q, k=k, lse=lse, topk=4)[0],
        "attn_extract lse": extract.lse,
        "attn_extract entropy": extract.entropy,
        "attn_extract pmax": extract.pmax,
        "attn_extract z": extract.z,
        "prefix_attn z": prefix(q, k, v)[0],
        "prefix_attn lse": prefix(q, k, v)[1],
    }


def prefix(q, k, v):
    """The same attention with the first 16 keys shared and the others the rows' own."""
    q, k, v = (t[0].transpose(0, 1).contiguous() for t in (q, k, v))
    r = torch.arange(len(q))
    table = torch.stack((torch.zeros_like(r), r + 1, torch.zeros_like(r), torch.full_like(r, 16)), 1).int()
    return prefix_attn(q, k[:16].contiguous(), v[:16].contiguous(), k[16:].contiguous(), v[16:].contiguous(), table)


@pytest.mark.parametrize("D", [64, 80, 96, 128, 256])
def test_a_lost_dimension_is_seen(D):
    """Of each dimension on its own, at the edges and in the middle of every vector width."""
    q, k, v = inputs(D)
    lse = attn_extract(q=q.double(), k=k.double(), v=v.double()).lse.float()
    exact = {name: value.double() for name, value in statistics(q.double(), k.double(), v.double(), lse).items()}
    whole = statistics(q, k, v, lse)
    for name, value in whole.items():
        assert error(value, exact[name]) < TOLERANCE, name
    for d in sorted({0, 1, 7, 8, 15, 16, 31, 32, 47, 63, D // 2, D - 17, D - 16, D - 8, D - 1}):
        lost = k.clone()
        lost[..., d] = 0
        for name, value in statistics(q, lost, v, lse).items():
            assert error(value, exact[name]) > SIGNAL * TOLERANCE, (name, d)
        values = v.clone()
        values[..., d] = 0
        for name, z in (("attn_extract", attn_extract(q=q, k=k, v=values).z), ("prefix_attn", prefix(q, k, values)[0])):
            assert error(z, exact[f"{name} z"]) > SIGNAL * TOLERANCE, (name, d)


def test_a_lost_key_is_seen():
    """A key that is left out of the column sums, at either end of a tile of keys."""
    q, k, v = inputs(64)
    lse = attn_extract(q=q, k=k, v=v).lse
    whole = attn_colsum(q=q, k=k, lse=lse)
    for j in (0, 15, 16, 31, 32, 63, 64, 80):
        lost = whole.clone()
        lost[..., j] = 0
        assert error(lost, whole.double()) > SIGNAL * TOLERANCE, j
