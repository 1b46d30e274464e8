"""attn_implementation="pycotmech" inside Hugging Face models: same logits, same generations, padding, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    DynamicCache,
    GPT2Config,
    GPTNeoXConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Qwen3Config,
    StaticCache,
)

import pycotmech as pcm
from pycotmech.attention import hf as interface
from tests.attention.patterns import entropy, patterns, top
from tests.reference.close import assert_allclose, assert_close
from tests.reference.tiny import tiny_llama
from tests.reference.truth import double

T = 17


@pytest.fixture(autouse=True)
def registered():
    pcm.register_attention()


@pytest.fixture(params=[4, 2], ids=["MHA", "GQA"])
def hf(request):
    return tiny_llama(n_heads=4, n_key_value_heads=request.param)


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(3, 61, shape, generator=torch.Generator().manual_seed(5))


def masks() -> dict[str, torch.Tensor]:
    left, right, holes, mixed, nothing = (torch.ones(3, T, dtype=torch.long) for _ in range(5))
    left[1, :4] = left[2, : T - 1] = 0
    right[0, 12:] = right[2, 1:] = 0
    holes[0, 5:8] = holes[1, [2, 9]] = holes[2, 0] = 0
    mixed[0, :3] = mixed[1, 14:] = mixed[2, 6] = 0
    nothing[1] = 0
    return {"left": left, "right": right, "holes": holes, "mixed": mixed, "an example of padding only": nothing}


def set_to(model: torch.nn.Module, name: str) -> torch.nn.Module:
    model.set_attn_implementation(name)
    return model


@torch.no_grad()
def logits(model: torch.nn.Module, *args, **options) -> torch.Tensor:
    return model(*args, **options).logits


@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-5), (torch.float32, 2e-4)])
def test_logits_equal_those_of_eager(hf, dtype, atol):
    hf, tokens = hf.to(dtype), ids(2, T)
    want = logits(hf, tokens)
    assert_close(logits(set_to(hf, "pycotmech"), tokens), want, rtol=0, atol=atol)


@pytest.mark.parametrize("name", masks())
def test_padding_is_honoured_wherever_it_stands(hf, name):
    hf, tokens, mask = hf.double(), ids(3, T), masks()[name]
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    want = logits(set_to(hf, "sdpa"), tokens, attention_mask=mask, position_ids=positions)
    got = logits(set_to(hf, "pycotmech"), tokens, attention_mask=mask, position_ids=positions)
    real = mask.bool()
    assert_close(got[real], want[real], rtol=0, atol=1e-5)
    assert torch.isfinite(got).all()
    unmasked = logits(hf, tokens, position_ids=positions)
    without_effect = ("right", "an example of padding only")  # causality hides it, or nothing real is left
    assert name in without_effect or (unmasked[real] - want[real]).abs().max() > 0.01, "the mask makes no difference here"


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "left padded"])
def test_generate_gives_the_tokens_of_sdpa(hf, padded, cache):
    tokens, mask = ids(3, T), torch.ones(3, T, dtype=torch.long)
    if padded:
        mask = masks()["left"]
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    options |= {} if cache is None else {"cache_implementation": cache, "disable_compile": True}
    want = set_to(hf, "sdpa").generate(tokens, **options)
    got = set_to(hf, "pycotmech").generate(tokens, **options)
    assert torch.equal(got, want) and got.shape == (3, T + 6)


def test_beam_search_gives_the_tokens_of_sdpa():
    hf = tiny_llama(n_key_value_heads=2)
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": 3, "eos_token_id": None}
    want = set_to(hf, "sdpa").generate(ids(2, T), **options)
    assert torch.equal(set_to(hf, "pycotmech").generate(ids(2, T), **options), want)


def test_a_cache_is_continued_with_several_tokens_and_holes(hf):
    hf, tokens, mask = hf.double(), ids(3, T), masks()["mixed"]
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    want = logits(set_to(hf, "sdpa"), tokens, attention_mask=mask, position_ids=positions)
    set_to(hf, "pycotmech")
    for cache in (DynamicCache(), StaticCache(config=hf.config, max_cache_len=T + 9)):
        parts = [
            logits(hf, tokens[:, a:b], attention_mask=mask[:, :b], position_ids=positions[:, a:b], past_key_values=cache)
            for a, b in ((0, 9), (9, 10), (10, T))
        ]
        assert_close(torch.cat(parts, 1)[mask.bool()], want[mask.bool()], rtol=0, atol=1e-5)


def test_the_name_is_known_to_a_configuration():
    config = tiny_llama().config
    config._attn_implementation = "pycotmech"
    assert LlamaForCausalLM(config).config._attn_implementation == "pycotmech"


def test_softcap_and_scale_reach_the_op():
    model = tiny_llama()
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 4, 6, 16, generator=g, dtype=torch.float64) for _ in range(3))
    z, none = interface.attention_forward(model.model.layers[0].self_attn, q, k, v, None, scaling=0.5, softcap=2.0)
    s = 2.0 * torch.tanh(q @ k.mT * 0.5 / 2.0)
    want = s.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf).softmax(-1) @ v
    assert_close(z, want.transpose(1, 2), rtol=0, atol=1e-12)
    assert none is None


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"attention_mask": torch.zeros(1, 1, T, T)}, ValueError, "prepared mask"),
        ({"position_ids": torch.tensor([[*range(9), *range(T - 9)]]), "use_cache": False}, NotImplementedError, "packed"),
        ({"output_attentions": True}, ValueError, "capture_attention"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(options, error, message):
    hf = set_to(tiny_llama(), "pycotmech")
    with pytest.raises(error, match=message), torch.no_grad():
        hf(ids(1, T), **options)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"dropout": 0.1}, ValueError, "dropout 0.1"),
        ({"is_causal": False}, NotImplementedError, "not causal"),
        ({"sliding_window": 3}, NotImplementedError, "window of 3"),
    ],
)
def test_options_of_other_families_are_refused(options, error, message):
    q = torch.ones(1, 4, 6, 16)
    with pytest.raises(error, match=message):
        interface.attention_forward(tiny_llama().model.layers[0].self_attn, q, q, q, None, **options)


def test_sinks_are_honoured():
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 4, 6, 16, generator=g) for _ in range(3))
    sinks = torch.randn(4, generator=g)
    z, _ = interface.attention_forward(tiny_llama().model.layers[0].self_attn, q, k, v, None, s_aux=sinks)
    scores = (q @ k.mT / 4).masked_fill(~torch.ones(6, 6, dtype=torch.bool).tril(), -torch.inf)
    p = torch.cat((scores, sinks[None, :, None, None].expand(1, 4, 6, 1)), -1).softmax(-1)[..., :-1]
    assert torch.allclose(z, (p @ v).transpose(1, 2), atol=1e-5)


def test_masks_beyond_padding_are_refused():
    with pytest.raises(NotImplementedError, match="more than a causal mask"):
        interface.key_mask(1, 5, 5, mask_function=lambda b, h, q, k: k <= q)
    with pytest.raises(NotImplementedError, match="drops keys"):
        interface.key_mask(1, 1, 4, q_offset=9, kv_offset=6)
    with pytest.raises(ValueError, match=r"got \[1, 2\]; expected \[1, 5\]"):
        interface.key_mask(1, 5, 5, attention_mask=torch.ones(1, 2, dtype=torch.bool))


def test_a_backward_pass_says_that_there_is_none():
    hf = set_to(tiny_llama().requires_grad_(True), "pycotmech")
    out = hf(ids(1, T)).logits
    assert_close(out.detach(), logits(set_to(hf, "eager"), ids(1, T)), rtol=0, atol=2e-4)
    with pytest.raises(NotImplementedError, match="no backward pass"):
        out.sum().backward()


# ---- capture ---------------------------------------------------------------------------------------------------------


def close(got: np.ndarray, want: torch.Tensor, atol: float = 1e-11) -> None:
    assert_allclose(got, want.numpy(), rtol=0, atol=atol)


def test_a_captured_forward_equals_the_patterns_and_the_summary(hf):
    wide, tokens = double(hf), ids(2, T)
    before = wide.config._attn_implementation
    p = patterns(wide, tokens)
    with pcm.capture_attention(wide, segments={"a": slice(3, 8)}, top_k=4) as summary, torch.no_grad():
        wide(tokens)
    assert wide.config._attn_implementation == before, "left as found"
    assert len(summary) == 1 and summary.segment_names == ("a", "first") and summary.rows.tolist() == list(range(T))
    close(summary.segment("a"), p[..., 3:8].sum(-1))
    close(summary.entropy, entropy(p), 1e-10)
    close(summary.received, p.sum(-2))
    weights, keys = top(p, 4)
    close(summary.top_weights, weights)
    assert np.array_equal(summary.top_keys, keys.numpy())
    ours = pcm.attention_summary(pcm.Model(wide), tokens, segments={"a": slice(3, 8)}, top_k=4)
    assert_allclose(summary.lse, ours.lse, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["left", "right", "holes", "mixed"])
def test_padding_is_left_out_of_the_statistics(hf, name):
    wide, tokens, mask = double(hf), ids(3, T), masks()[name]
    p = patterns(wide, tokens, mask) * mask[:, None, None, :, None]  # rows of padding see nothing here
    with pcm.capture_attention(wide, segments={"a": slice(3, 8)}, top_k=3) as summary, torch.no_grad():
        wide(tokens, attention_mask=mask)
    close(summary.segment("a"), p[..., 3:8].sum(-1))
    close(summary.received, p.sum(-2))
    close(summary.entropy, entropy(p), 1e-10)
    first = mask.argmax(1)
    alone = torch.stack([p[b, ..., first[b]] * (not 3 <= first[b] < 8) for b in range(3)])
    close(summary.segment("first"), alone)
    real = mask.bool()
    for b in range(3):
        keys = summary.top_keys[b][:, :, real[b].numpy()]
        chosen = torch.as_tensor(keys).clamp_min(0).long()
        weights = p[b][:, :, real[b]].gather(-1, chosen)
        close(summary.top_weights[b][:, :, real[b].numpy()], torch.where(torch.as_tensor(keys) >= 0, weights, 0.0))
        assert set(np.unique(keys)) - {-1} <= set(real[b].nonzero()[:, 0].tolist()), "no padding among the top keys"
    empty = ~real.numpy()
    assert (summary.lse.transpose(0, 3, 1, 2)[empty] == -np.inf).all()
    assert (summary.top_keys.transpose(0, 3, 1, 2, 4)[empty] == -1).all()


def test_generate_is_captured_row_by_row(hf):
    wide, tokens = double(hf), ids(2, T)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    rule = {"question": slice(2, 6), "generated": slice(T, None)}
    with pcm.capture_attention(wide, segments=rule) as summary:
        out = wide.generate(tokens, **options)
    assert torch.equal(out, wide.generate(tokens, **options)), "generation is that of the model's own attention"
    p = patterns(wide, out[:, :-1])  # the last token was never read
    assert len(summary) == 4 and summary.forwards[1].mass.shape == (2, 2, 4, 1, 3)
    close(summary.segment("question"), p[..., 2:6].sum(-1), 1e-10)
    close(summary.segment("generated"), p[..., T:].sum(-1), 1e-10)
    close(summary.received, p.sum(-2), 1e-10)
    assert summary.per_head()["mass_generated"].iloc[5] == pytest.approx(p[:, 1, 1, :, T:].sum(-1).mean().item())


TURNED = 2e-6
"""Weights of a prompt whose positions count from its first real token: rotary angles are float32 in transformers."""


@pytest.mark.parametrize("cache", [None, "static"])
def test_left_padding_is_left_out_while_generating(hf, cache):
    """Generated rows too see no padding, and rows of padding see nothing."""
    wide, tokens, mask = double(hf), ids(3, T), masks()["left"]
    options = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    options |= {} if cache is None else {"cache_implementation": cache, "disable_compile": True}
    with pcm.capture_attention(wide, segments={"question": slice(2, 6), "generated": slice(T, None)}, top_k=3) as summary:
        out = wide.generate(tokens, **options)
    assert torch.equal(out, wide.generate(tokens, **options))
    longer = torch.cat([mask, torch.ones(3, 3, dtype=torch.long)], 1)
    p = patterns(wide, out[:, :-1], longer) * longer[:, None, None, :, None]
    close(summary.segment("question"), p[..., 2:6].sum(-1), TURNED)
    close(summary.segment("generated"), p[..., T:].sum(-1), TURNED)
    close(summary.received, p.sum(-2), TURNED)
    close(summary.entropy, entropy(p), TURNED)
    first = longer.argmax(1)
    alone = torch.stack([p[b, ..., first[b]] * (not 2 <= first[b] < 6) for b in range(3)])
    close(summary.segment("first"), alone, TURNED)
    assert (summary.top_keys[1, :, :, T:] >= int(first[1])).all(), "padding among the top keys of a generated row"


SIZES = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
FAMILIES = {
    "Qwen3": (Qwen3Config, SIZES | {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 16}),
    "Olmo2": (Olmo2Config, SIZES | {"intermediate_size": 48, "num_key_value_heads": 1}),
    "GPT-NeoX": (GPTNeoXConfig, SIZES | {"intermediate_size": 48}),
    "GPT-2": (GPT2Config, {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_other_families_with_left_padding(name):
    kind, options = FAMILIES[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(kind(**options)).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.mul_(5)  # peaked attention: at the usual scale every pattern is flat
    tokens, mask = ids(3, T), masks()["left"]
    p = torch.stack(eager_patterns(model, tokens, mask), 1).double()
    options = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    want = set_to(model, "sdpa").generate(tokens, **options)
    with pcm.capture_attention(model, segments={"a": slice(3, 8)}) as summary:
        got = model.generate(tokens, **options)
    assert torch.equal(got, want) and model.config._attn_implementation == "sdpa"
    real = mask.bool()
    mass = torch.as_tensor(summary.forwards[0].segment("a")).movedim(3, 1)[real]
    assert_close(mass.double(), p[..., 3:8].sum(-1).movedim(3, 1)[real], rtol=0, atol=1e-5)


@torch.no_grad()
def eager_patterns(model, tokens, mask):
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    return set_to(model, "eager")(tokens, attention_mask=mask, position_ids=positions, output_attentions=True).attentions


def test_a_model_whose_attention_cannot_be_chosen_is_refused(hf):
    bloom = BloomForCausalLM(BloomConfig(vocab_size=61, hidden_size=32, n_layer=2, n_head=4))
    with pytest.raises(ValueError, match="attention of BloomForCausalLM"), pcm.capture_attention(bloom):
        pytest.fail("the block ran")
    with pytest.raises(TypeError, match="model: got Linear"), pcm.capture_attention(torch.nn.Linear(2, 2)):
        pytest.fail("the block ran")


def test_only_the_block_is_recorded(hf):
    set_to(hf, "pycotmech")
    with torch.no_grad():
        with pcm.capture_attention() as outer:
            hf(ids(1, T))
            with pcm.capture_attention(top_k=2) as inner:
                hf(ids(1, 5))
        hf(ids(1, T))
    assert len(outer) == 1 and len(inner) == 1
    assert outer.top_keys.shape[-2:] == (T, 8) and inner.top_keys.shape[-2:] == (5, 2)
    assert interface.active_capture.get() is None and hf.config._attn_implementation == "pycotmech"


def test_a_forward_that_breaks_off_is_dropped(hf):
    set_to(hf, "pycotmech")
    handle = hf.model.layers[1].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
    with pcm.capture_attention() as capture, torch.no_grad():
        with pytest.raises(RuntimeError, match="stop"):
            hf(ids(1, T))
        handle.remove()
        hf(ids(1, 6))
    assert len(capture) == 1 and capture.rows.tolist() == list(range(6))


def test_the_model_is_set_back_after_an_error(hf):
    with pytest.raises(RuntimeError, match="mine"), pcm.capture_attention(hf):
        raise RuntimeError("mine")
    assert hf.config._attn_implementation == "eager" and interface.active_capture.get() is None


def test_forwards_that_do_not_continue_each_other_have_no_common_rows(hf):
    with pcm.capture_attention(pcm.Model(hf)) as capture, torch.no_grad():
        hf(ids(1, T))
        hf(ids(1, T))
    assert [f.mass.shape[3] for f in capture.forwards] == [T, T]
    with pytest.raises(ValueError, match="do not continue each other"):
        _ = capture.mass
    with pytest.raises(AttributeError, match="no attribute 'masses'"):
        _ = capture.masses


def test_nothing_captured_is_said(hf):
    with pcm.capture_attention() as capture, torch.no_grad():
        hf(ids(1, T))  # runs on eager
    with pytest.raises(ValueError, match="no forward pass was captured"):
        _ = capture.entropy


def test_wrong_options_are_named_at_once(hf):
    for options, message in (
        ({"top_k": -1}, "top_k"),
        ({"readout": torch.ones(3, 1)}, "readout"),
        ({"segments": {"a": [-1]}}, "a"),
    ):
        with pytest.raises(ValueError, match=message), pcm.capture_attention(hf, **options):
            pytest.fail("the block ran")
    assert hf.config._attn_implementation == "eager"
