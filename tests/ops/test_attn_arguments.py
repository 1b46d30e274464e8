"""The attention ops as PyTorch sees them (opcheck), and the errors of their public functions."""

import pytest
import torch

from pycotmech.ops import attn_colsum, attn_entries, attn_extract, attn_rows, attn_topk
from tests.ops.attn_cases import SMALL, Case

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _extract_args(x, topk=None):
    topk = min(x["topk"], 8) if topk is None else topk
    scale = x["q"].shape[-1] ** -0.5
    labels = (x.get("segments"), x.get("n_segments", 0), x.get("readout"), x.get("starts"))
    return (x["q"], x["k"], x["v"], *labels, scale, x["entropy"], topk, x["window"], x["softcap"], x.get("sinks"))


def _cases():
    for name in ("plain", "grouped", "padded", "readout per head", "sinks"):
        for dtype in DTYPES:
            quick = dtype == torch.float32 or (name == "plain" and dtype == torch.bfloat16)
            yield pytest.param(name, dtype, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("name", "dtype"), _cases())
def test_opcheck(name, dtype):
    x = SMALL[name].inputs(dtype)
    q, k = x["q"], x["k"]
    rest = (x.get("starts"), q.shape[-1] ** -0.5, x["window"], x["softcap"])
    op = torch.ops.pycotmech
    torch.library.opcheck(op.attn_extract, _extract_args(x))
    lse = attn_extract(**x).lse
    qi, ki = torch.tensor([0, 3, 1]), torch.tensor([0, 2, 3])
    torch.library.opcheck(op.attn_colsum, (q, k, lse, None, *rest))
    torch.library.opcheck(op.attn_colsum, (q, k, lse, torch.rand(1, q.shape[1], q.shape[2]), *rest))
    torch.library.opcheck(op.attn_rows, (q, k, lse, qi, *rest))
    torch.library.opcheck(op.attn_entries, (q, k, lse, qi, ki, *rest))
    torch.library.opcheck(op.attn_topk, (q, k, lse, 9, *rest))


BAD = {
    "int8 q": ({"q": torch.zeros(1, 2, 7, 32, dtype=torch.int8)}, TypeError, "q must be float32"),
    "k of another dtype": ({"k": torch.zeros(1, 2, 7, 32, dtype=torch.bfloat16)}, TypeError, "k must be torch.float32"),
    "three dims": ({"q": torch.zeros(2, 7, 32)}, ValueError, r"q must be \[B, heads, tokens, D\], got \[2, 7, 32\]"),
    "transposed v": ({"v": torch.zeros(1, 2, 32, 7).mT}, ValueError, "v must be contiguous in its last dim"),
    "empty": ({"q": torch.zeros(1, 2, 0, 32)}, ValueError, "q is empty"),
    "T > S": ({"q": torch.zeros(1, 2, 8, 32)}, ValueError, "q has 8 rows but k only 7"),
    "D": ({"q": torch.zeros(1, 2, 7, 16)}, ValueError, r"k must be \[1, Hkv, S, 16\]"),
    "v shape": ({"v": torch.zeros(1, 2, 7, 16)}, ValueError, "v must have the shape of k"),
    "heads": ({"q": torch.zeros(1, 3, 7, 32)}, ValueError, "q has 3 heads, which is no multiple of the 2"),
    "label too large": ({"segments": torch.full((7,), 2, dtype=torch.int32)}, ValueError, "segments must be labels"),
    "label below -1": ({"segments": torch.full((7,), -2, dtype=torch.int32)}, ValueError, "segments must be labels"),
    "label dtype": ({"segments": torch.zeros(7, dtype=torch.int64)}, TypeError, "segments must be torch.int32"),
    "label shape": ({"segments": torch.zeros(6, dtype=torch.int32)}, ValueError, r"segments must be \[7\] or \[1, 7\]"),
    "count without labels": ({"segments": None}, ValueError, "n_segments is 2 but segments is None"),
    "count": ({"n_segments": 0}, ValueError, "n_segments must be at least 1"),
    "readout dtype": ({"readout": torch.zeros(1, 1, 7, 2).bfloat16()}, TypeError, "readout must be torch.float32"),
    "readout shape": ({"readout": torch.zeros(1, 1, 6, 2)}, ValueError, r"readout must be \[1 or 1, 2 or 1, 7, C\]"),
    "starts dtype": ({"starts": torch.zeros(1)}, TypeError, "starts must be torch.int32"),
    "starts shape": ({"starts": torch.zeros(2, dtype=torch.int32)}, ValueError, r"starts must be \[1\], got \[2\]"),
    "starts value": ({"starts": torch.tensor([8], dtype=torch.int32)}, ValueError, "starts must be the first valid"),
    "topk": ({"topk": 65}, ValueError, "topk must be 0 to 64, got 65"),
    "sinks dtype": ({"sinks": torch.zeros(2, dtype=torch.int64)}, TypeError, "sinks must be floating-point, got torch.int64"),
    "sinks shape": ({"sinks": torch.zeros(3)}, ValueError, r"sinks must be \[2\], one for each head of q, got \[3\]"),
    "window": ({"window": -1}, ValueError, "window must be 0"),
    "softcap": ({"softcap": -1.0}, ValueError, "softcap must be 0"),
    "scale": ({"scale": float("nan")}, ValueError, "scale must be finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_extract_says_what_is_wrong(name):
    change, kind, text = BAD[name]
    with pytest.raises(kind, match=text):
        attn_extract(**{**Case(G=2, topk=1).inputs(torch.float32), **change})


def test_second_passes_say_what_is_wrong():
    x = Case(G=2).inputs(torch.float32)
    q, k = x["q"], x["k"]
    lse = attn_extract(**x).lse
    index = torch.tensor([0, 7])
    with pytest.raises(ValueError, match=r"lse must be \[1, 2, 7\]"):
        attn_colsum(q, k, lse[:, :1])
    with pytest.raises(TypeError, match=r"lse must be torch\.float32"):
        attn_rows(q, k, lse.double(), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"weights must be \[1 or 1, 2 or 1, 7\], got \[1, 2, 6\]"):
        attn_colsum(q, k, lse, weights=torch.ones(1, 2, 6))
    with pytest.raises(TypeError, match=r"weights must be torch\.float32"):
        attn_colsum(q, k, lse, weights=torch.ones(1, 2, 7, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"rows must be rows of q \(0 to 6\), got values from 0 to 7"):
        attn_rows(q, k, lse, index)
    with pytest.raises(TypeError, match=r"rows must be torch\.int64"):
        attn_rows(q, k, lse, index.int())
    with pytest.raises(ValueError, match="rows must have one dim"):
        attn_rows(q, k, lse, index[None])
    with pytest.raises(ValueError, match="ki must be keys"):
        attn_entries(q, k, lse, torch.zeros(2, dtype=torch.int64), index)
    with pytest.raises(ValueError, match="qi must be rows of q"):
        attn_entries(q, k, lse, -index, index)
    with pytest.raises(ValueError, match=r"ki must be \[2\], got \[1\]"):
        attn_entries(q, k, lse, index, index[:1])
    with pytest.raises(ValueError, match="topk must be 1 to 64, got 0"):
        attn_topk(q, k, lse, topk=0)


def test_the_number_of_segments_follows_the_labels():
    x = Case().inputs(torch.float32)
    out = attn_extract(x["q"], x["k"], x["v"], segments=torch.tensor([0, 0, 1, -1, 4, 4, 4], dtype=torch.int32))
    assert out.mass.shape[-1] == 5
    assert (out.mass[..., 2:4] == 0).all() and (out.mass[0, 0, -1, [0, 1, 4]] > 0).all()


def test_no_rows_and_no_entries_are_allowed():
    x = Case(T=3, S=5).inputs(torch.float32)
    lse, none = attn_extract(**x).lse, torch.zeros(0, dtype=torch.int64)
    assert attn_rows(x["q"], x["k"], lse, none).shape == (1, 2, 0, 5)
    assert attn_entries(x["q"], x["k"], lse, none, none).shape == (1, 2, 0)


def test_it_can_be_traced_without_values():
    x = Case(B=2, H=4, G=3, C=2, starts=(0, 2), topk=12).inputs(torch.bfloat16)
    want = attn_extract(**x)
    got = torch.compile(attn_extract, backend="aot_eager", fullgraph=True)(**x)
    for a, b in zip(got, want):
        assert a.dtype == b.dtype and torch.equal(a, b)


def test_gradients_are_refused_and_not_left_empty():
    x = Case(T=4, S=6, D=8).inputs(torch.float32)
    q = x["q"].requires_grad_()
    out = attn_extract(q, x["k"], x["v"])
    with pytest.raises(NotImplementedError, match="attn_extract has no backward pass"):
        out.z.sum().backward()
    with pytest.raises(NotImplementedError, match="attn_colsum has no backward pass"):
        attn_colsum(q, x["k"], out.lse.detach()).sum().backward()
    # The reference in float64, against finite differences.
    x = Case(T=2, S=3, D=4, G=2).inputs(torch.float64)
    names = ("q", "k", "v")

    def function(q, k, v):
        out = attn_extract(**{**x, "q": q, "k": k, "v": v})
        return out.z, out.lse, out.entropy, out.mass

    assert torch.autograd.gradcheck(function, [x[n].requires_grad_() for n in names])
