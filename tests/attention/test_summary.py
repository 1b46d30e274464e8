"""`attention_summary` against the materialised patterns of Hugging Face's eager attention."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.attention import AttentionSummary
from pycotmech.model import sizes
from tests.attention.patterns import entropy, patterns, top
from tests.reference.close import assert_allclose
from tests.reference.small_families import small
from tests.reference.tiny import tiny_llama
from tests.reference.truth import double

T = 29
SEGMENTS = {"question": slice(3, 10), "answer": [12, 14, -1], "odd": range(15, 20, 2)}
GROUPS = {"question": list(range(3, 10)), "answer": [12, 14, 28], "odd": [15, 17, 19], "first": [0]}


def ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(61, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=[4, 2, 1], ids=["MHA", "GQA", "MQA"])
def hf(request):
    return tiny_llama(n_heads=4, n_key_value_heads=request.param, n_layers=3)


def close(got: np.ndarray, want: torch.Tensor, atol: float) -> None:
    assert got.shape == tuple(want.shape)
    assert_allclose(got, want.numpy(), rtol=0, atol=atol)


@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-11), (torch.float32, 5e-5)])
def test_every_statistic_equals_that_of_the_materialised_pattern(hf, dtype, atol):
    tokens = ids(T)
    truth = double(hf)
    model = pcm.Model(truth if dtype == torch.float64 else hf)
    p = patterns(truth, tokens[None])[0]
    s = pcm.attention_summary(model, tokens, segments=SEGMENTS, top_k=5)

    assert s.segment_names == tuple(GROUPS)
    for name, keys in GROUPS.items():
        close(s.segment(name), p[..., keys].sum(-1), atol)
    close(s.entropy, entropy(p), 4 * atol)
    close(s.largest, p.amax(-1), atol)
    close(s.received, p.sum(-2), T * atol)
    weights, keys = top(p, 5)
    close(s.top_weights, weights, atol)
    if dtype == torch.float64:  # in float32 two nearly equal weights may change places
        assert np.array_equal(s.top_keys, keys.numpy())
    assert s.mass.dtype == s.lse.dtype == (np.float64 if dtype == torch.float64 else np.float32)
    assert s.rows.tolist() == list(range(T)) and s.tokens.tolist() == tokens.tolist()


def test_lse_turns_a_score_into_its_weight(hf):
    """p[i, i] of layer 0 out of q, k and lse alone."""
    wide = double(hf)
    tokens = ids(T)
    s = pcm.attention_summary(pcm.Model(wide), tokens)
    p = patterns(wide, tokens[None])[0, 0]
    attn = wide.model.layers[0].self_attn
    with torch.no_grad():
        n = wide.model.layers[0].input_layernorm(wide.model.embed_tokens(tokens))
        q, k = attn.q_proj(n).unflatten(-1, (4, -1)), attn.k_proj(n).unflatten(-1, (-1, 16))
    # The rotary embedding turns query and key at one position by the same angle, so it drops out of a diagonal score,
    # up to the float32 in which transformers computes sines and cosines.
    own = (q * k.repeat_interleave(4 // k.shape[1], 1)).sum(-1).T / 4.0
    close(np.exp(own.numpy() - s.lse[0]), p.diagonal(dim1=-2, dim2=-1), 1e-6)


def test_rows_are_chosen_in_order_and_column_sums_count_them(hf):
    wide = double(hf)
    tokens = ids(T)
    p = patterns(wide, tokens[None])[0]
    rows = [20, -1, 7, 20]
    at = [20, T - 1, 7, 20]
    s = pcm.attention_summary(pcm.Model(wide), tokens, rows=rows, top_k=3, segments=SEGMENTS)
    assert s.rows.tolist() == at
    close(s.entropy, entropy(p)[..., at], 1e-10)
    close(s.segment("question"), p[..., at, 3:10].sum(-1), 1e-11)
    close(s.received, p[..., at, :].sum(-2), 1e-11)
    weights, keys = top(p, 3)
    close(s.top_weights, weights[..., at, :], 1e-11)
    assert np.array_equal(s.top_keys, keys[..., at, :].numpy())
    all_rows = pcm.attention_summary(pcm.Model(wide), tokens)
    assert_allclose(s.lse, all_rows.lse[..., at], rtol=0, atol=1e-11)


@pytest.mark.parametrize("rows", [slice(10, 13), range(10, 13), torch.tensor([10, 11, 12])])
def test_rows_may_be_a_slice_a_range_or_a_tensor(rows):
    s = pcm.attention_summary(pcm.Model(tiny_llama()), ids(T), rows=rows)
    assert s.rows.tolist() == [10, 11, 12] and s.mass.shape == (2, 4, 3, 1)


@pytest.mark.parametrize("rows", [None, [5, 28]])
def test_more_top_keys_than_the_one_pass_keeps(rows):
    wide = double(tiny_llama())
    tokens = ids(T)
    s = pcm.attention_summary(pcm.Model(wide), tokens, top_k=20, rows=rows)
    weights, keys = top(patterns(wide, tokens[None])[0], 20)
    at = slice(None) if rows is None else rows
    close(s.top_weights, weights[..., at, :], 1e-11)
    assert np.array_equal(s.top_keys, keys[..., at, :].numpy())


def test_labels_give_the_masses_of_the_same_slices():
    model = pcm.Model(tiny_llama())
    tokens = ids(T)
    labels = torch.full((T,), -1)
    labels[3:10], labels[[12, 14, 28]] = 1, 0
    s = pcm.attention_summary(model, tokens, segments=labels)
    named = pcm.attention_summary(model, tokens, segments=SEGMENTS)
    assert s.segment_names == ("0", "1", "first")
    assert np.array_equal(s.segment("1"), named.segment("question"))
    assert np.array_equal(s.segment("0"), named.segment("answer"))


def test_a_batch_has_its_own_axis_and_each_example_its_own_values():
    wide = double(tiny_llama(n_key_value_heads=2))
    tokens = ids(3, T)
    labels = torch.randint(-1, 2, (3, T), generator=torch.Generator().manual_seed(1))
    labels[:, 0] = 0
    s = pcm.attention_summary(pcm.Model(wide), tokens, segments=labels, rows=[4, 28])
    p = patterns(wide, tokens)
    assert s.batched and s.segment_names == ("0", "1")
    close(s.received, p[..., [4, 28], :].sum(-2), 1e-11)
    for b in range(3):
        close(s.mass[b, ..., 1], p[b][..., [4, 28], :][..., labels[b] == 1].sum(-1), 1e-11)


def test_a_list_gives_one_summary_for_each_prompt():
    model = pcm.Model(tiny_llama())
    prompts = [ids(T), ids(13, seed=1)]
    steps = []
    found = pcm.attention_summary(
        model,
        prompts,
        segments=[{"a": slice(1, 20)}, {"b": slice(2, 5)}],
        progress=lambda done, total: steps.append((done, total)),
    )
    assert [s.segment_names for s in found] == [("a", "first"), ("b", "first")]
    alone = pcm.attention_summary(model, prompts[1], segments={"b": slice(2, 5)})
    assert np.array_equal(found[1].mass, alone.mass) and found[1].received.shape == (2, 4, 13)
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_readouts():
    wide = double(tiny_llama(n_key_value_heads=2))
    tokens = ids(T)
    p = patterns(wide, tokens[None])[0]
    model = pcm.Model(wide)
    distance = torch.arange(T, dtype=torch.float64)
    s = pcm.attention_summary(model, tokens, readout=torch.stack([distance, distance**2], 1))
    close(s.read[..., 1], p @ distance**2, 1e-8)
    acts = model.run(tokens, capture=("v",))
    norms = acts["v"].norm(dim=-1).mT.repeat_interleave(2, 1)  # [L, H, T]
    s = pcm.attention_summary(model, tokens, readout="value_norm", rows=[28])
    close(s.read[..., 0, 0], (p[..., 28, :] * norms).sum(-1), 1e-10)
    s = pcm.attention_summary(model, tokens, readout=lambda layer, k, v: torch.full((1, 1, T, 1), float(layer)))
    close(s.read[:, 0, 0, 0], torch.arange(2.0, dtype=torch.float64), 1e-11)


def test_row_blocks_change_nothing_beyond_rounding(monkeypatch):
    wide = double(tiny_llama())
    tokens = ids(T)
    whole = pcm.attention_summary(pcm.Model(wide), tokens, segments=SEGMENTS)
    monkeypatch.setattr(sizes, "CPU", replace(sizes.CPU, row_block=5))
    cut = pcm.attention_summary(pcm.Model(wide), tokens, segments=SEGMENTS)
    assert_allclose(whole.mass, cut.mass, rtol=0, atol=1e-12)
    assert_allclose(whole.received, cut.received, rtol=0, atol=1e-12)


def test_what_is_not_asked_for_is_none():
    s = pcm.attention_summary(pcm.Model(tiny_llama()), ids(T), top_k=0, entropy=False, received=False)
    assert s.entropy is None and s.received is None and s.read is None and s.top_keys.shape == (2, 4, T, 0)
    assert "entropy" not in s.to_dataframe() and "top_keys" not in s.to_xarray()


def test_bfloat16_is_as_close_to_the_truth_as_eager():
    half = tiny_llama(dtype=torch.bfloat16)
    tokens = ids(T)
    truth = patterns(double(half), tokens[None])[0]
    theirs = patterns(half, tokens[None])[0].double()
    s = pcm.attention_summary(pcm.Model(half), tokens, segments={"a": slice(5, 15)})
    want = truth[..., 5:15].sum(-1)
    error = np.sqrt(np.mean((s.segment("a") - want.numpy()) ** 2))
    own = (theirs[..., 5:15].sum(-1) - want).pow(2).mean().sqrt().item()
    assert 0 < error <= 1.1 * own


def test_tables_hold_the_arrays_values():
    model = pcm.Model(tiny_llama())
    tokens = ids(2, T)
    s = pcm.attention_summary(model, tokens, segments={"a": slice(5, 15)}, rows=[3, 20])
    table = s.to_dataframe()
    line = table.query("example == 1 and layer == 0 and head == 2 and position == 20").iloc[0]
    assert line["entropy"] == s.entropy[1, 0, 2, 1] and line["mass_a"] == s.segment("a")[1, 0, 2, 1]
    assert line["top_key"] == s.top_keys[1, 0, 2, 1, 0] and len(table) == s.lse.size
    heads = s.per_head(rows=[1])
    assert heads.loc[5, ["layer", "head"]].tolist() == [1, 1]
    assert heads.loc[5, "mass_first"] == pytest.approx(s.segment("first")[:, 1, 1, 1].mean(), abs=1e-7)
    data = s.to_xarray()
    assert data["mass"].sel(segment="a", row=20).values.shape == (2, 2, 4)
    assert np.array_equal(data["received"].values, s.received)


def test_a_summary_comes_back_from_its_dataset_with_its_sinks():
    s = pcm.attention_summary(pcm.Model(small("gpt_oss")), ids(T), segments={"a": slice(5, 15)})
    again = AttentionSummary.from_xarray(s.to_xarray())
    assert s.sink is not None and again.sink is not None and np.array_equal(again.sink, s.sink)
    for name in ("mass", "entropy", "lse", "largest", "top_keys", "top_weights", "received", "rows", "tokens", "labels"):
        assert np.array_equal(getattr(again, name), getattr(s, name)), name


def test_tokens_receive_the_mean_weight_of_the_rows_that_see_them():
    s = pcm.attention_summary(pcm.Model(tiny_llama()), ids(T), segments={"a": slice(5, 15)}, rows=[10, 20])
    table = s.per_token([f"<{i}>" for i in range(T)])
    assert list(table) == ["position", "token", "text", "segment", "received"]
    assert table["segment"].tolist() == ["first", *[""] * 4, *["a"] * 10, *[""] * (T - 15)]
    assert table.loc[3, "received"] == pytest.approx(s.received[..., 3].mean() / 2)
    assert table.loc[15, "received"] == pytest.approx(s.received[..., 15].mean()) and np.isnan(table.loc[21, "received"])
    bare = pcm.attention_summary(pcm.Model(tiny_llama()), ids(T), received=False)
    assert list(bare.per_token()) == ["position", "token", "segment"]
    with pytest.raises(ValueError, match="received: was not requested"):
        bare.received_per_row()
    with pytest.raises(ValueError, match="per_token: got a summary of 2 prompts"):
        pcm.attention_summary(pcm.Model(tiny_llama()), ids(2, T)).per_token()


def test_an_empty_list_of_segments_is_named_and_numbers_of_numpy_are_labels():
    model, prompts = pcm.Model(tiny_llama()), [ids(6), ids(6, seed=1)]
    with pytest.raises(ValueError, match="segments: got 0 for 2 prompts"):
        pcm.attention_summary(model, prompts, segments=[])
    labels = list(np.array([-1, 0, 0, 1, 1, 1]))
    want = pcm.attention_summary(model, prompts, segments=[int(g) for g in labels])
    got = pcm.attention_summary(model, prompts, segments=labels)
    assert all(np.array_equal(a.mass, b.mass) for a, b in zip(got, want, strict=True))


def test_plot_shows_the_mean_masses():
    s = pcm.attention_summary(pcm.Model(tiny_llama(n_layers=3)), ids(T), segments={"a": slice(5, 15), "b": [20]})
    figure = s.plot(rows=slice(20, None))
    images = [axis.images[0] for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in figure.axes[:3]] == ["a", "b", "first"]
    assert_allclose(images[0].get_array(), s.segment("a")[..., 20:].mean(-1), atol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"top_k": 65}, "top_k: got 65"),
        ({"rows": [29]}, "rows: 29 is outside a prompt of 29"),
        ({"rows": []}, "rows: no row"),
        ({"readout": "norm"}, "readout: got 'norm'"),
        ({"readout": torch.ones(3, 2)}, r"readout: got \[3, 2\] for 29 tokens"),
        ({"segments": {"a": slice(5, 30)}}, r"segments\['a'\].*outside the 29 tokens"),
        ({"segments": torch.zeros(3, dtype=torch.long)}, "3 labels for 29 tokens"),
    ],
)
def test_wrong_arguments_are_named_before_anything_runs(options, message, monkeypatch):
    model = pcm.Model(tiny_llama())
    monkeypatch.setattr(type(model.family), "embed", lambda *_: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=message):
        pcm.attention_summary(model, ids(T), **options)


def test_a_wrong_prompt_in_a_list_is_found_before_the_first_one_runs(monkeypatch):
    model = pcm.Model(tiny_llama())
    monkeypatch.setattr(type(model.family), "embed", lambda *_: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match="token id 99"):
        pcm.attention_summary(model, [ids(T), torch.tensor([99])])
    with pytest.raises(ValueError, match="the list of prompts is empty"):
        pcm.attention_summary(model, [])
    with pytest.raises(ValueError, match="segments: got 1 for 2 prompts"):
        pcm.attention_summary(model, [ids(T), ids(T)], segments=[{"a": [3]}])
