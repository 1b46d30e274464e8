"""`fuse_weights=True`: one product in place of several, the same parameters, and no weight twice."""

import numpy as np
import pytest
import torch
from torch import nn

import pycotmech as pcm
from pycotmech.model.families.launches import joint_weights
from pycotmech.model.fused import fuse_weights
from tests.reference.small_families import by_family, small
from tests.reference.tiny import same_model, tiny_llama

TOKENS = torch.arange(3, 27)
SHAPE = dict(n_layers=2, n_heads=4, n_key_value_heads=2)


def projections(hf, l=0):
    attention, mlp = hf.model.layers[l].self_attn, hf.model.layers[l].mlp
    return [(attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj)]


def fused(hf):
    return [joint_weights(group) is not None for group in projections(hf)]


def sweep(hf, few=True):
    """Numbers of a sweep by the products of a GPU."""
    model = pcm.Model(hf, check=False)
    model.family.few_launches = few
    corrupted = TOKENS.clone()
    corrupted[13] += 1
    return pcm.patch_heads(model, TOKENS, corrupted, metric="logit_diff", answer=7, wrong=11, normalize=False).raw


@pytest.mark.parametrize("options", [{}, dict(attention_bias=True, mlp_bias=True)], ids=["plain", "biases"])
def test_weights_are_the_same_parameters_in_one_buffer(options):
    plain, hf = tiny_llama(**SHAPE, **options), tiny_llama(**SHAPE, **options)
    before = dict(hf.named_parameters())
    expected = sweep(plain)
    assert fused(hf) == [False, False]
    assert fuse_weights(hf) == 2 * 3
    assert fused(hf) == [True, True] and same_model(hf, plain)
    assert all(p is before[name] for name, p in hf.named_parameters())
    assert torch.equal(hf(TOKENS[None]).logits, plain(TOKENS[None]).logits)
    held = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in hf.parameters()}
    assert sum(held.values()) == sum(p.nbytes for p in hf.parameters())
    np.testing.assert_allclose(sweep(hf), expected, atol=2e-5 * np.abs(expected).max(), rtol=0)
    assert fuse_weights(tiny_llama(**SHAPE)) == 6


@pytest.mark.parametrize("family", by_family())
def test_every_family(family):
    """Whatever its projections are called, numbers are those of separate products."""
    model = pcm.Model(small(family), check=False)
    model.family.few_launches = True
    expected = model.run(TOKENS).logits
    try:
        fuse_weights(model.hf)
    except ValueError as error:
        assert "fuse_weights" in str(error)
    torch.testing.assert_close(model.run(TOKENS).logits, expected, atol=1e-4, rtol=1e-4)


def test_one_product_is_launched(monkeypatch):
    hf = tiny_llama(**SHAPE)
    fuse_weights(hf)
    widths, plain = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda x, w, out=None: widths.append(w.shape[1]) or plain(x, w, out=out))
    model = pcm.Model(hf, check=False)
    model.family.few_launches = True
    model.run(TOKENS)
    joint, both = 8 * 16, 2 * 80  # q, k and v of 4, 2 and 2 heads of 16; gate and up
    assert widths == [joint, both, joint, joint, both]  # in the last layer again, for the rows that are read


def test_saved_and_loaded(tmp_path):
    hf = tiny_llama(**SHAPE)
    hf.save_pretrained(tmp_path / "plain")
    hf.bfloat16().save_pretrained(tmp_path / "narrow")
    model = pcm.Model.from_pretrained(tmp_path / "narrow", dtype="float32", fuse_weights=True)
    plain = pcm.Model.from_pretrained(tmp_path / "narrow", dtype="float32")
    assert fused(model.hf) == [True, True] and fused(plain.hf) == [False, False]
    assert model.weight_files is not None and same_model(model.hf, plain.hf)
    model.hf.save_pretrained(tmp_path / "again")
    files = [sum(f.stat().st_size for f in (tmp_path / name).glob("*.safetensors")) for name in ("plain", "again")]
    assert abs(files[0] - files[1]) < 2000
    assert same_model(pcm.Model.from_pretrained(tmp_path / "again").hf, plain.hf)
    other = tiny_llama(**SHAPE, seed=5)
    other.load_state_dict(model.hf.state_dict())
    assert same_model(other, model.hf)
    model.hf.load_state_dict(tiny_llama(**SHAPE, seed=6).state_dict())  # into the same buffer
    assert fused(model.hf) == [True, True] and same_model(model.hf, tiny_llama(**SHAPE, seed=6))


def test_what_is_put_on_a_projection_afterwards_is_honoured():
    """A hook, an adapter, an edit in place, an assignment: numbers are those of a model that was never fused."""

    def hook(hf):
        hf.model.layers[1].self_attn.k_proj.register_forward_hook(lambda module, args, out: out * 1.5)

    def adapter(hf):
        class Adapted(nn.Module):
            def __init__(self, base):
                super().__init__()
                self.base_layer, self.low = base, nn.Parameter(torch.full((len(base.weight), base.in_features), 0.01))

            def forward(self, x):
                return self.base_layer(x) + nn.functional.linear(x, self.low)

        hf.model.layers[1].mlp.up_proj = Adapted(hf.model.layers[1].mlp.up_proj)

    def edit(hf):
        hf.model.layers[1].self_attn.v_proj.weight.mul_(0.5)

    def assignment(hf):
        hf.model.layers[1].mlp.gate_proj.weight.data = hf.model.layers[1].mlp.gate_proj.weight.data * 1.25

    def cast(hf):
        hf.double()

    for change, still in ((hook, True), (adapter, None), (edit, True), (assignment, False), (cast, False)):
        plain, hf = tiny_llama(**SHAPE), tiny_llama(**SHAPE)
        fuse_weights(hf)
        for model in (plain, hf):
            with torch.no_grad():
                change(model)
        expected = sweep(plain)
        np.testing.assert_allclose(sweep(hf), expected, atol=2e-5 * np.abs(expected).max(), rtol=0)
        if still is not None:
            assert all(joint_weights(group) is not None for group in projections(hf, 1)) == still, change


def test_weights_that_are_parts_of_something_larger_are_refused():
    hf = tiny_llama(**SHAPE)
    weight = hf.model.layers[1].mlp.up_proj.weight
    mapped = torch.empty(weight.numel() + 100)
    weight.data = mapped[100:].view(weight.shape).copy_(weight.data)
    before = {name: p.data_ptr() for name, p in hf.named_parameters()}
    with pytest.raises(ValueError, match="fuse_weights: weights are parts of a larger piece of memory"):
        fuse_weights(hf)
    assert before == {name: p.data_ptr() for name, p in hf.named_parameters()}
    with torch.device("meta"):
        blank = type(hf)(hf.config)
    with pytest.raises(ValueError, match="no values"):
        fuse_weights(blank)
