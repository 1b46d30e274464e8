"""Model.run against the Hugging Face model's own hooked activations."""

import pytest
import torch

import pycotmech as pcm
from pycotmech.model import forward_packed
from tests.reference.tiny import tiny_llama
from tests.reference.truth import double, hooked, logits_of

SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z")

SHAPES = {
    "mha": dict(n_heads=4, n_layers=3),
    "gqa": dict(n_heads=6, n_key_value_heads=2, n_layers=3),
    "mqa, biases, tied": dict(n_heads=4, n_key_value_heads=1, attention_bias=True, mlp_bias=True, tied=True),
    "llama3 rope": dict(
        n_heads=4,
        n_key_value_heads=2,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
}


@torch.no_grad()
def hf_activations(hf, tokens):
    """Every site of one sequence, from hooks on the Hugging Face modules: {site: [L, T, ...]}."""
    found = {site: [] for site in SITES}
    D = hf.model.layers[0].self_attn.head_dim
    heads = lambda x: x[0].unflatten(-1, (-1, D)).clone()  # noqa: E731
    handles = []
    for layer in hf.model.layers:
        attn = layer.self_attn
        handles += [
            layer.register_forward_pre_hook(lambda m, a: found["resid_pre"].append(a[0][0].clone())),
            layer.register_forward_hook(
                lambda m, a, o: found["resid_post"].append((o[0] if isinstance(o, tuple) else o)[0].clone())
            ),
            layer.post_attention_layernorm.register_forward_pre_hook(lambda m, a: found["resid_mid"].append(a[0][0].clone())),
            attn.register_forward_hook(lambda m, a, o: found["attn_out"].append(o[0][0].clone())),
            layer.mlp.register_forward_hook(lambda m, a, o: found["mlp_out"].append(o[0].clone())),
            attn.q_proj.register_forward_hook(lambda m, a, o: found["q"].append(heads(o))),
            attn.k_proj.register_forward_hook(lambda m, a, o: found["k"].append(heads(o))),
            attn.v_proj.register_forward_hook(lambda m, a, o: found["v"].append(heads(o))),
            attn.o_proj.register_forward_pre_hook(lambda m, a: found["z"].append(heads(a[0]))),
        ]
    with hooked(*handles):
        logits = logits_of(hf, tokens)
    return {site: torch.stack(values) for site, values in found.items()}, logits


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_equals_hooked_activations(shape):
    hf = tiny_llama(**SHAPES[shape])
    tokens = torch.randint(61, (37,), generator=torch.Generator().manual_seed(1))
    acts = pcm.Model(hf).run(tokens, capture=SITES)
    theirs, logits = hf_activations(hf, tokens)
    for site in SITES:
        assert acts[site].shape == theirs[site].shape, site
        assert (acts[site] - theirs[site]).abs().max() < 1e-5 * theirs[site].abs().max(), site
    assert (acts.logits - logits).abs().max() < 1e-5 * logits.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", ["mha", "gqa"])
def test_16_bit_is_no_further_from_float64_than_hugging_face(dtype, shape):
    """Over 8 prompts, so that neither side wins by the luck of a few roundings."""
    hf = tiny_llama(**SHAPES[shape], dtype=dtype)
    truth, model = double(hf), pcm.Model(hf)
    ours, own = dict.fromkeys(SITES, 0.0), dict.fromkeys(SITES, 0.0)
    for seed in range(8):
        tokens = torch.randint(61, (40,), generator=torch.Generator().manual_seed(seed))
        acts = model.run(tokens, capture=SITES)
        (theirs, their_logits), (exact, exact_logits) = hf_activations(hf, tokens), hf_activations(truth, tokens)
        for site in SITES:
            ours[site] += (acts[site].double() - exact[site]).pow(2).sum().item()
            own[site] += (theirs[site].double() - exact[site]).pow(2).sum().item()
        ours["logits"] = ours.get("logits", 0.0) + (acts.logits.double() - exact_logits).pow(2).sum().item()
        own["logits"] = own.get("logits", 0.0) + (their_logits.double() - exact_logits).pow(2).sum().item()
    for site in ours:
        assert own[site] > 0 and ours[site] <= own[site], (site, (ours[site] / own[site]) ** 0.5)


def test_a_batch_is_its_sequences():
    hf = tiny_llama(n_heads=4, n_key_value_heads=2)
    model = pcm.Model(hf)
    tokens = torch.randint(61, (3, 20), generator=torch.Generator().manual_seed(2))
    batch = model.run(tokens, capture=("z", "resid_post"), positions=[-1, 4])
    assert batch["z"].shape == (3, 2, 20, 4, 16) and batch.logits.shape == (3, 2, 61)
    for b in range(3):
        one = model.run(tokens[b], capture=("z", "resid_post"))
        assert torch.allclose(batch["z"][b], one["z"], atol=2e-6)
        assert torch.allclose(batch["resid_post"][b], one["resid_post"], atol=5e-6)
        assert torch.allclose(batch.logits[b], one.logits[[19, 4]], atol=5e-6)


def test_ragged_prompts_come_back_as_a_list():
    model = pcm.Model(tiny_llama())
    a, b = torch.arange(1, 9), torch.arange(5, 17)
    both = model.run([a, b], capture="z")
    assert [x["z"].shape[1] for x in both] == [8, 12]
    assert torch.equal(both[1]["z"], model.run(b, capture="z")["z"])


def test_transformer_lens_hook_names():
    model = pcm.Model(tiny_llama(n_layers=2))
    tokens = torch.randint(61, (2, 7), generator=torch.Generator().manual_seed(3))
    one = model.run(tokens[0], capture=("blocks.1.attn.hook_z",))
    assert torch.equal(one["blocks.1.attn.hook_z"], one["z"][1])
    two = model.run(tokens, capture=("blocks.0.hook_resid_mid",))
    assert torch.equal(two["blocks.0.hook_resid_mid"], two["resid_mid"][:, 0])
    with pytest.raises(KeyError, match="not captured"):
        one["q"]


def test_suffixes_of_a_shared_prefix_are_the_whole_runs():
    """The engine's own way to run: prefix once, several continuations of different lengths as packed rows."""
    hf = tiny_llama(n_heads=6, n_key_value_heads=2, n_layers=3)
    family = pcm.Model(hf).family
    prefix = torch.randint(61, (33,), generator=torch.Generator().manual_seed(4))
    ends = [torch.tensor([7, 8, 9, 10, 11]), torch.tensor([3, 1])]
    past = forward_packed(family, [prefix]).key_values(0, None)
    with_sites = forward_packed(family, ends, past, sites=("z",), read=torch.tensor([4, 6]))
    read_only = forward_packed(family, ends, past, read=torch.tensor([4, 6]))
    for i, end in enumerate(ends):
        whole = torch.cat((prefix, end))
        theirs, logits = hf_activations(hf, whole)
        a, b = with_sites.offsets[i], with_sites.offsets[i + 1]
        assert (with_sites.sites["z"][:, a:b] - theirs["z"][:, 33:]).abs().max() < 4e-5
        for packed in (with_sites, read_only):
            assert (family.logits(packed.resid_final[i : i + 1])[0] - logits[-1]).abs().max() < 4e-5
        k = with_sites.key_values(i, past).k
        assert k.shape == (3, len(whole), 2, 16)


def test_invariants_of_the_residual_stream():
    """docs/protocol.md, Checks: sum over heads of z W_O is attn_out; the stream adds up."""
    hf = tiny_llama(n_heads=4, n_layers=3)
    acts = pcm.Model(hf).run(torch.arange(1, 30), capture=SITES)
    for l, layer in enumerate(hf.model.layers):
        w_o = layer.self_attn.o_proj.weight.T.unflatten(0, (4, 16))
        by_head = torch.einsum("thd,hde->te", acts["z"][l], w_o)
        assert torch.allclose(by_head, acts["attn_out"][l], atol=1e-5)
    assert torch.allclose(acts["resid_mid"], acts["resid_pre"] + acts["attn_out"], atol=1e-6)
    assert torch.allclose(acts["resid_post"], acts["resid_mid"] + acts["mlp_out"], atol=1e-6)
    assert torch.equal(acts["resid_pre"][1:], acts["resid_post"][:-1])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "empty"),
        (torch.empty(0, dtype=torch.long), "empty"),
        (torch.tensor([1, 61]), "token id 61 is outside the vocabulary of 61"),
        (torch.tensor([1, -1]), "token id -1 is outside"),
        (torch.tensor([1.0, 2.0]), "expected integer token ids"),
        ("text", "no tokenizer"),
        (torch.zeros(0, 4, dtype=torch.long), "empty"),
    ],
)
def test_bad_tokens(tokens, message):
    with pytest.raises(ValueError, match=message):
        pcm.Model(tiny_llama()).run(tokens)


def test_bad_capture_and_positions():
    model = pcm.Model(tiny_llama())
    with pytest.raises(ValueError, match="capture: unknown site 'zz'"):
        model.run([1, 2, 3], capture=("zz",))
    with pytest.raises(ValueError, match="positions: 3 is outside a prompt of 3 tokens"):
        model.run([1, 2, 3], positions=[3])


def test_the_mlp_in_pieces_is_the_mlp():
    family = pcm.Model(tiny_llama(**SHAPES["gqa"], dtype=torch.float64)).family
    x = torch.randn(23, family.cfg.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = family.mlp_out(1, x)
        for rows in (1, 5, 22, 23):
            family.mlp_rows = rows
            assert torch.allclose(family.mlp_out(1, x), whole, rtol=1e-12, atol=1e-14)
