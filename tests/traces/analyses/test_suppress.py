"""Suppression against one masked forward of eager attention for each sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pycotmech as pcm
from tests.reference.close import assert_allclose
from tests.reference.eager import kl_rows, suppressed_logits
from tests.reference.small_families import small
from tests.reference.truth import double, logits_of
from tests.traces.cases import random_trace, tiny


def reference(model, trace, *, heads=None, published=False, temperature=1.0, only=None):
    """kl, log_kl [S, S] and answer_change [S], one float64 forward for each sentence (or those of `only`)."""
    hf, tokens, S = double(model.hf), trace.tokens, trace.n_sentences
    where = [(l, None) for l in range(model.cfg.n_layers)] if heads is None else heads
    base = logits_of(hf, tokens)
    kl, log_kl, change = np.full((S, S), np.nan), np.full((S, S), np.nan), np.full(S, np.nan)
    for j, (a, b) in enumerate(trace.spans().tolist()):
        if only is not None and j not in only:
            continue
        cut = suppressed_logits(hf, tokens, (a, b), a if published else b, where)
        rows = kl_rows(base, cut, temperature)
        for i in range(j + 1, S):
            c, d = trace.spans()[i]
            kl[i, j], log_kl[i, j] = rows[c:d].mean(), np.log(rows[c:d] + 1e-9).mean()
        answer = range(trace.answer.start, trace.answer.stop)
        lost = [torch.log_softmax(x[[p - 1 for p in answer]], -1)[range(len(answer)), trace.answer_tokens] for x in (base, cut)]
        change[j] = float((lost[0] - lost[1]).sum())
    return kl, log_kl, change


def agree(found, want):
    kl, log_kl, change = want
    largest = np.nanmax(kl)
    assert_allclose(found.values, kl, rtol=1e-4, atol=1e-4 * largest)
    assert_allclose(found.data["log_kl"].values, log_kl, rtol=0, atol=2e-3)
    assert_allclose(found.data["answer_change"].values, change, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("definition", ["rows_after", "published"])
def test_it_agrees_with_one_masked_forward_for_each_sentence(definition):
    model = tiny(n_layers=3, n_key_value_heads=2)
    trace = random_trace(model)
    found = pcm.traces.suppress(model, trace, definition=definition)
    published = definition == "published"
    agree(found, reference(model, trace, published=published, temperature=0.6 if published else 1.0))
    assert found.about["settings"]["temperature"] == (0.6 if published else 1.0)


@pytest.mark.parametrize("where", [{"layers": [1, 2]}, {"heads": [(1, 0), (1, 3), (2, 2)]}, {"layers": [0]}])
def test_chosen_layers_and_heads(where):
    model = tiny(n_layers=3)
    trace = random_trace(model, (3, 5, 2, 4))
    heads = where.get("heads") or [(l, None) for l in where["layers"]]
    agree(pcm.traces.suppress(model, trace, **where, controls=0), reference(model, trace, heads=heads))


@pytest.mark.parametrize("family", ["gemma2", "qwen2", "gpt2", "gpt_neox", "phi3", "mixtral", "gpt_oss"])
def test_families_with_windows_soft_caps_and_parallel_blocks(family):
    model = pcm.Model(small(family), None, name=family)
    trace = random_trace(model, (3, 5, 2, 4))
    agree(pcm.traces.suppress(model, trace, controls=0), reference(model, trace))


@pytest.mark.parametrize("family", ["gemma2", "qwen2", "gpt2", "gpt_neox", "mixtral"])
@pytest.mark.parametrize("first", [0, 7])
def test_the_untouched_run_is_the_same_whichever_layer_is_kept(family, first):
    from pycotmech.model.run import forward_packed
    from pycotmech.traces import cut_runs

    model = pcm.Model(small(family), None, name=family)
    tokens, last = random_trace(model).tokens, model.cfg.n_layers - 1

    def run(layer):
        return cut_runs.untouched(model.family, model.prefixes, tokens, first, layer, 2**30)

    whole, kept = run(0), run(last)
    past = model.prefixes.key_values(tokens[:first], 2**30)
    stream = forward_packed(model.family, [tokens[first:]], past, sites=("resid_pre",)).sites["resid_pre"]
    assert whole.entry is None and torch.equal(kept.entry, stream[last])
    assert torch.equal(kept.final, whole.final)
    assert torch.equal(kept.keys.k, whole.keys.k) and torch.equal(kept.keys.v, whole.keys.v)


def test_a_small_budget_takes_cuts_one_after_another_and_gives_the_same(monkeypatch):
    from pycotmech.traces import cut_runs

    model = tiny(n_layers=3)
    trace = random_trace(model)
    whole = pcm.traces.suppress(model, trace)
    row = cut_runs._row_bytes(model.family, cut_runs.every_layer(3))
    seen = []
    small = pcm.traces.suppress(
        model, trace, memory_gb=2 * 45 * row / 2**30, progress=lambda done, total: seen.append((done, total))
    )
    assert len(seen) > 3 and seen[-1][0] == seen[-1][1]
    for name in ("kl", "control_kl", "answer_change"):
        assert_allclose(small.data[name].values, whole.data[name].values, rtol=1e-5, atol=1e-9)
    with pytest.raises(ValueError, match=r"memory_gb: .* one cut of"):
        pcm.traces.suppress(model, trace, memory_gb=1e-6)


def test_controls_are_as_long_and_as_far_as_their_sentence():
    from pycotmech.traces.analyses.suppress import REACH, _job

    trace = random_trace(tiny(), prompt=40)
    for definition in ("rows_after", "published"):
        job = _job(trace, definition, 20, 0)
        assert job.shift[:9] == [0] * 9 and len(job.cuts) == 9 + 9 * 20
        for control, j, s in zip(job.cuts[9:], job.of[9:], job.shift[9:]):
            own, (a, b) = job.cuts[j], trace.spans()[j]
            assert control == type(own)(own.first + s, own.stop + s, a + s, b + s)
            assert control.lo >= 1 and control.hi <= a and -s <= REACH * (b - a)
            assert b + s >= trace.reasoning.start  # what is measured first stays in the reasoning
        assert len({s for j, s in zip(job.of[9:], job.shift[9:]) if j == 5}) > 3


def test_a_control_is_the_shifted_cut_measured_on_shifted_tokens():
    """The cut of a made-up trace whose sentences stand where the shift takes them, one masked forward each."""
    from pycotmech.traces.analyses.suppress import _job

    model = tiny(n_layers=3)
    trace = random_trace(model, prompt=30)
    found = pcm.traces.suppress(model, trace)
    job = _job(trace, "rows_after", 1, 0)
    assert len(job.cuts) == 18
    for n in range(9, 18):
        j, s = job.of[n], job.shift[n]
        moved = pcm.traces.Trace.from_tokens(
            model, trace.tokens, sentences=(trace.spans() + s).tolist(),
            answer=(trace.answer.start + s, trace.answer.stop + s),
        )  # fmt: skip
        kl, _, change = reference(model, moved, only=[j])
        assert_allclose(found.data["control_kl"].values[:, j], kl[:, j], rtol=1e-4, atol=1e-6)
        assert_allclose(found.data["control_answer_change"].values[j], change[j], rtol=1e-4, atol=1e-4)


def test_a_sentence_without_room_before_it_has_no_control():
    model = tiny()
    found = pcm.traces.suppress(model, random_trace(model, (6, 3, 4, 2), prompt=5))
    control = found.data["control_kl"].values
    assert np.isnan(control[:, 0]).all() and np.isfinite(control[2:, 1]).all()
    assert np.isnan(found.data["control_answer_change"].values[0])
    found.data["control_answer_change"][:] = np.nan
    assert "without a control" in found.findings()[-1] and "nan" not in found.findings()[-1]


def test_the_future_and_the_last_sentence_without_an_answer_have_no_effect():
    model = tiny()
    found = pcm.traces.suppress(model, random_trace(model, answer=False))
    assert np.isnan(found.values[np.triu_indices(9)]).all()
    assert np.isfinite(found.values[np.tril_indices(9, -1)]).all()
    assert np.isnan(found.data["answer_change"].values).all()


def test_normalisations():
    model = tiny()
    found = pcm.traces.suppress(model, random_trace(model))
    by_distance, by_later = found.normalised("distance"), found.normalised("later")
    for d in range(1, 9):
        i = np.arange(d, 9)
        assert abs(np.mean(by_distance[i, i - d])) < 1e-9
    assert abs(np.nanmean(by_later[5])) < 1e-9
    assert_allclose(found.normalised("control", log=False), found.values - found.data["control_kl"].values)
    with pytest.raises(ValueError, match="by: got 'rows'"):
        found.normalised("rows")


def test_it_is_kept_drawn_and_told(tmp_path):
    model = tiny()
    found = pcm.traces.suppress(model, random_trace(model))
    found.save(tmp_path)
    again = pcm.traces.Suppression.load(tmp_path)
    assert again.findings() == found.findings() and len(again.table()) == 9
    again.plot(path=tmp_path / "m.png")
    edges = again.graph(top=2)
    assert (edges["later"] > edges["earlier"]).all() and (edges["effect"] > 0).all()
    assert edges.groupby("later").size().max() == 2
    for name, draw in again.figures().items():
        draw(path=tmp_path / f"{name}.png")
    assert (tmp_path / "graph.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("lengths", "first"), [((6,), "1 sentence: there is no later one"), ((6, 5), "1 pair of 2 sentences; ")]
)
def test_one_sentence_or_two_have_no_effect_beyond_distance(lengths, first):
    model = tiny(n_layers=1)
    found = pcm.traces.suppress(model, random_trace(model, lengths))
    lines = found.findings()
    assert lines[0].startswith(first) and not any("largest effect" in line or "nan" in line for line in lines)
    assert lines[-1].startswith("the answer's log probability falls most without: ") and "without a control)" in lines[-1]


def test_wrong_arguments_are_named():
    model = tiny()
    trace = random_trace(model)
    for options, why in [
        ({"definition": "mask"}, "definition: got 'mask'"), ({"temperature": 0}, "temperature: got 0"),
        ({"heads": [(0, 0)], "layers": [0]}, "heads, layers: got both"), ({"layers": [9]}, "layers: got 9"),
        ({"heads": [(0, 9)]}, "heads"), ({"layers": []}, "layers: got none"), ({"controls": -1}, "controls: got -1"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=why):
            pcm.traces.suppress(model, trace, **options)
