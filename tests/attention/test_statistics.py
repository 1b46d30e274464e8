"""Statistics of a layer leave the device in one copy."""

import torch

import pycotmech as pcm
from pycotmech.attention.statistics import LayerStatistics, in_one_copy
from tests.reference.tiny import tiny_llama


def test_one_copy_brings_all():
    g = torch.Generator().manual_seed(0)
    given = [
        torch.randn(3, 4, 5, generator=g)[:, :, ::2],  # not contiguous
        torch.randint(9, (3, 1), generator=g, dtype=torch.int32),
        torch.empty(2, 0),
        torch.randn(7, generator=g, dtype=torch.float64),
        torch.randn(5, generator=g).bfloat16(),
    ]
    found = in_one_copy(given)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(given, found, strict=True))


def test_a_summary_copies_once_a_layer(monkeypatch):
    """On a GPU each copy waits for the device; here the CPU stands in for one."""
    model, tokens = pcm.Model(tiny_llama(n_layers=3)), torch.arange(3, 33)
    expected = pcm.attention_summary(model, tokens, top_k=4)
    copies, plain = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: (copies.append(self.nbytes), plain(self))[1])

    def as_on_a_gpu(self):
        moved = iter(in_one_copy([x for x in self if x is not None]))
        return LayerStatistics(*(None if x is None else next(moved) for x in self))

    monkeypatch.setattr(LayerStatistics, "on_cpu", as_on_a_gpu)
    found = pcm.attention_summary(model, tokens, top_k=4)
    assert len([n for n in copies if n > tokens.nbytes]) == 3
    for name in ("mass", "entropy", "lse", "largest", "top_keys", "top_weights", "received"):
        assert (getattr(found, name) == getattr(expected, name)).all()
