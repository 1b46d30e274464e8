"""The references of the attention ops, which define what the kernels compute, against loops over rows in float64."""

import contextlib
import types

import pytest
import torch

from pycotmech.ops import _registry, attn_colsum, attn_entries, attn_extract, attn_rows, attn_topk
from tests.ops.attn_cases import SMALL, Case, error, slow_weights


def _options(x):
    return {n: x[n] for n in ("starts", "window", "softcap") if n in x}


def _expected_topk(p, topk):
    """Descending weights by a stable sort in Python; unused slots 0 and -1."""
    values = torch.zeros(*p.shape[:-1], topk, dtype=p.dtype)
    keys = torch.full((*p.shape[:-1], topk), -1, dtype=torch.int32)
    for at in torch.cartesian_prod(*(torch.arange(n) for n in p.shape[:-1])).tolist():
        row = p[tuple(at)].tolist()
        order = sorted((j for j, w in enumerate(row) if w > 0), key=lambda j: -row[j])[:topk]
        for slot, j in enumerate(order):
            values[(*at, slot)], keys[(*at, slot)] = row[j], j
    return values, keys


@pytest.mark.parametrize("name", SMALL)
def test_extract_equals_the_loops(name):
    case = SMALL[name]
    x = case.inputs(torch.float64)
    p = slow_weights(x)
    out = attn_extract(**x)
    group = case.H // case.Hkv
    assert error(out.z, p @ x["v"].repeat_interleave(group, 1)) < 1e-13
    seen = p.sum(-1) > 0
    if case.sinks is None:
        assert torch.equal(out.lse.isneginf(), ~seen)
    else:  # of a row without a key the sink is all there is
        taken = (x["sinks"][:, None] - out.lse).exp()
        assert torch.allclose(p.sum(-1) + taken, torch.ones_like(taken), rtol=1e-13)
    assert torch.allclose(out.pmax, p.amax(-1), rtol=1e-13, atol=0)
    h = -(p * torch.where(p > 0, p, 1.0).log()).sum(-1)
    assert torch.allclose(out.entropy, h, rtol=1e-12, atol=1e-14)
    if case.G:
        labels = x["segments"].reshape(-1, 1, 1, case.S)
        mass = torch.stack([torch.where(labels == g, p, 0.0).sum(-1) for g in range(case.G)], -1)
        assert torch.allclose(out.mass, mass, rtol=1e-12, atol=1e-15)
    else:
        assert out.mass.shape == (case.B, case.H, case.T, 0)
    if case.C:
        read = torch.einsum("bhij,bhjc->bhic", p, x["readout"].expand(case.B, case.H, -1, -1))
        assert error(out.read, read) < 1e-13
    if case.topk:
        values, keys = _expected_topk(p, case.topk)
        assert torch.equal(out.topk_i, keys)
        assert torch.allclose(out.topk_p, values, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", SMALL)
def test_second_passes_equal_the_loops(name):
    case = SMALL[name]
    x = case.inputs(torch.float64)
    p = slow_weights(x)
    q, k, lse, options = x["q"], x["k"], attn_extract(**x).lse, _options(x)
    g = torch.Generator().manual_seed(1)
    weights = torch.rand(case.B, 1, case.T, generator=g, dtype=torch.float64)
    assert error(attn_colsum(q, k, lse, **options), p.sum(2)) < 1e-13
    assert error(attn_colsum(q, k, lse, weights=weights, **options), (p * weights[..., None]).sum(2)) < 1e-13
    rows = torch.randint(case.T, (5,), generator=g)
    assert error(attn_rows(q, k, lse, rows, **options), p[:, :, rows]) < 1e-13
    qi, ki = torch.randint(case.T, (11,), generator=g), torch.randint(case.S, (11,), generator=g)
    assert error(attn_entries(q, k, lse, qi, ki, **options), p[:, :, qi, ki]) < 1e-13
    for topk in (1, 3, 12, 64):
        values, keys = _expected_topk(p, topk)
        got = attn_topk(q, k, lse, topk=topk, **options)
        assert torch.equal(got[1], keys)
        assert torch.allclose(got[0], values, rtol=1e-12, atol=0)


def test_equal_scores_are_ranked_by_the_lowest_key():
    x = Case(T=1, S=6, D=16).inputs(torch.float64)
    x["k"][0, :, [0, 3, 5]] = x["q"][0, :, 0][:, None]  # the heaviest three
    x["k"][0, :, [1, 2, 4]] = -x["q"][0, :, 0][:, None]
    out = attn_extract(**{**x, "topk": 6})
    assert torch.equal(out.topk_i, torch.tensor([0, 3, 5, 1, 2, 4], dtype=torch.int32).expand(1, 2, 1, 6))
    assert out.topk_p[..., 2].min() > 2 * out.topk_p[..., 3].max()


def test_a_kernel_is_launched_on_the_gpu_that_holds_the_tensors(monkeypatch):
    """Triton launches on the current GPU, whatever its arguments are on."""
    current, launched = [0], []

    class OnGPU(torch.Tensor):
        gpu = 0

        def get_device(self):
            return self.gpu

    @contextlib.contextmanager
    def device(index):
        before, current[0] = current[0], index
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", device)
    kernels = types.SimpleNamespace(run=lambda *args: launched.append(current[0]))
    monkeypatch.setattr(_registry.importlib, "import_module", lambda name: kernels)
    call = _registry._first_cuda_call("any:run", lambda *args: None)
    for gpu in (0, 1, 0):
        x = torch.zeros(2).as_subclass(OnGPU)
        x.gpu = gpu
        call(x, 3)
    assert launched == [0, 1, 0] and current == [0]
