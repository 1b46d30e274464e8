"""E11: what was memorised against what stands in the prompt, layer by layer."""

import itertools

import numpy as np
import pytest
import torch
import xarray as xr

import pycotmech as pcm
from pycotmech.cot.analyses import functional_rift as rift
from pycotmech.cot.tools.cells import choose
from pycotmech.cot.tools.cost import workload
from pycotmech.paper import CLAIMS
from pycotmech.stats import change
from tests.reference.close import assert_allclose
from tests.reference.planted import examples as examples_of
from tests.reference.planted import models as planted
from tests.reference.planted.words import BOS

BY_NAME = {claim.name: claim for claim in CLAIMS}


@pytest.fixture(scope="module")
def result(model, examples, every):
    return pcm.cot.functional_rift(model, examples, steps=[1, 5, 9], right=every)


@torch.no_grad()
def test_curves_are_their_definition_at_every_position(model, examples, result):
    """Written out with loops on a plain forward pass."""
    hf, example = model.hf, examples[1]
    end = example.steps[5].answer_span.start
    ids = example.full_ids[:end].tolist()
    first = len(examples.shared_ids)
    states = []
    hooks = [
        layer.register_forward_hook(lambda m, a, out: states.append(out[0] if out.ndim == 3 else out))
        for layer in hf.model.layers
    ]
    hf(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    streams = [hf.model.embed_tokens(torch.tensor(ids)), *states]
    memorised = {t: int(hf(torch.tensor([[model.tokenizer.bos_token_id, t]])).logits[0, -1].argmax()) for t in set(ids)}
    want = {name: [] for name in rift.CURVES if name != "other"}
    for stream in streams:
        p = torch.softmax(hf.lm_head(hf.model.norm(stream)).double(), -1)
        rows = {name: [] for name in want}
        for i in range(first, len(ids)):
            best = int(p[i].argmax())
            rows["contextual"].append(best in ids[: i + 1])
            context = {ids[m + 1] for m in range(i) if ids[m] == ids[i]}
            prior = memorised[ids[i]]
            if context and prior not in context:
                rows["prior"].append(float(p[i, prior]))
                rows["context"].append(max(float(p[i, v]) for v in context))
                rows["prior_top1"].append(best == prior)
                rows["context_top1"].append(best in context)
        for name, values in rows.items():
            want[name].append(np.mean(values))
    here = result.data.sel(example=example.index, step=5)
    for name in want:
        assert_allclose(here[name].values, want[name], atol=2e-6, err_msg=name)
    assert int(here["positions"]) == len(rows["prior"]) > 5


def test_the_last_depth_is_the_model(model, examples, result):
    step = examples[0].steps[9]
    ids = step.clean.tolist()
    p = torch.softmax(model.run(step.clean).logits.double(), -1)
    first = len(examples.shared_ids)
    share = np.mean([int(p[i].argmax()) in ids[: i + 1] for i in range(first, len(ids))])
    assert float(result.data["contextual"].sel(step=9)[0, -1]) == pytest.approx(share)


@torch.no_grad()
def test_other_words_of_the_prompt_are_as_many_and_never_followed(model, examples, monkeypatch):
    """The likeliest of the drawn words, written out; no drawn word followed the word or is the memorised one."""
    tokens, drawn, original = examples[1].full_ids, [], rift.drawn_others

    def noted(seen, without, n, rng):
        drawn.append((list(seen), set(without), n, original(seen, without, n, rng)))
        return drawn[-1][-1]

    monkeypatch.setattr(rift, "drawn_others", noted)
    known = rift.memorised_next(model, tokens.unique(), model.tokenizer.bos_token_id)
    at = rift.position_curves(model, tokens, None, known)
    p = torch.softmax(model.hf(tokens[None]).logits[0].double(), -1)
    assert len(drawn) == at.used.sum() > 20
    for seen, without, n, words in drawn:
        i, ids = len(seen) - 1, tokens.tolist()
        follow = {b for a, b in itertools.pairwise(seen) if a == seen[-1]}
        assert seen == ids[: i + 1] and without == follow | {known[ids[i]]} and n == len(follow)
        assert len(set(words)) == len(words) == min(n, len(set(seen) - without))
        assert set(words) <= set(seen) - without
        if words:
            assert at.values["other"][i, -1] == pytest.approx(float(p[i, words].max()), rel=1e-3, abs=1e-9)
        else:
            assert np.isnan(at.values["other"][i]).all()


def test_other_words_run_out_before_there_are_none():
    rng = np.random.default_rng(0)
    assert rift.drawn_others([4, 4, 7], {4, 7}, 2, rng) == []
    assert sorted(rift.drawn_others([4, 5, 7], {4}, 9, rng)) == [5, 7] and len(rift.drawn_others([4, 5, 7], {4}, 1, rng)) == 1


def test_other_words_are_drawn_by_their_frequency_in_the_prompt():
    """A word that stands three times as often is drawn three times as often; uniform draws would give a half."""
    rng = np.random.default_rng(0)
    drawn = [rift.drawn_others([4, 4, 4, 5, 9], {9}, 1, rng)[0] for _ in range(4000)]
    assert np.mean(np.array(drawn) == 4) == pytest.approx(0.75, abs=0.03)


def test_a_model_that_favours_all_words_of_its_prompt_has_no_rift():
    """The prompt overtakes what was memorised, abruptly and in the middle, whichever word of it is looked at."""
    found = made_up([0.5, 0.52] * 4)
    found.data["other"] = found.data["context"] + 0.001 * (-1.0) ** xr.DataArray(np.arange(8), dims="example")
    verdict = BY_NAME["rift"].verdict({"functional_rift": found})
    assert verdict.word != "borne out" and "beyond other words of the prompt" in verdict.evidence
    assert "at the last layer; the prompt's next word " in verdict.null
    found.data["other"] = 0.0 * found.data["context"]
    assert BY_NAME["rift"].verdict({"functional_rift": found}).word == "borne out"


def test_depth_0_depends_on_the_word_alone(model, examples):
    at = rift.position_curves(model, examples[0].full_ids, None, {int(t): 3 for t in examples[0].full_ids.unique()})
    ids = examples[0].full_ids.tolist()
    used = [i for i in range(len(ids)) if at.used[i]]
    twice = [(i, j) for i in used for j in used if i < j and ids[i] == ids[j]]
    assert len(twice) > 5
    for i, j in twice:
        assert at.values["prior"][i, 0] == pytest.approx(at.values["prior"][j, 0], rel=1e-5)


def planted_curves(circuit, n=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(n):
        tokens = circuit.make(g).tokens
        known = rift.memorised_next(circuit.model, tokens.unique(), BOS)
        at = rift.position_curves(circuit.model, tokens, None, known)
        out.append(at.upto(len(tokens)))
    return {name: np.stack([o[name] for o in out]) for name in rift.CURVES}, known


@pytest.mark.parametrize(("table", "writer"), [(1, (4, 1)), (0, (2, 3))])
def test_planted_rift_is_found_at_its_layer(table, writer):
    circuit = planted.bigram(table=table, writer=writer)
    curves, known = planted_curves(circuit)
    assert all(circuit.table[w] == b for w, b in known.items() if w in circuit.table)
    difference = (curves["context"] - curves["prior"]).mean(0)
    depth = circuit.layers["rift"] + 1
    assert change.change_point(difference[table + 1 :]) + table + 1 == depth
    assert change.crossing(difference) == depth
    assert curves["prior_top1"][:, table + 1 : depth].min() == 1 and curves["context_top1"][:, depth:].min() == 1
    assert change.abruptness(difference, depth) > 0.9


def test_nothing_is_found_where_nothing_was_planted():
    curves, _ = planted_curves(planted.nothing())
    difference = np.nanmean(curves["context"] - curves["prior"], 0)
    assert np.isnan(change.crossing(difference)) or np.nanmax(np.abs(difference)) < 0.1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("silent", [False, True])
def test_no_layer_is_named_where_nothing_was_planted(silent, seed):
    """Of noise too some split of the layers fits best."""
    made = planted.nothing(silent=silent, n_layers=6, seed=seed)
    cases = examples_of(made, 8, seed=seed)
    found = pcm.cot.functional_rift(made.model, cases, right=torch.ones(8, 1, dtype=torch.bool))
    r = found.rift()
    assert r.n > 0 and np.isnan([r.change, r.low, r.high, r.abruptness, *r.abrupt]).all()
    assert found.findings()[0].startswith("no change found: ")
    verdict = BY_NAME["rift"].verdict({"functional_rift": found})
    assert verdict.word != "borne out" and "no change found" in verdict.evidence and "nan" not in verdict.evidence
    assert np.isnan(found.table()["change"]).all() and found.plot() is not None


@pytest.mark.parametrize(("table", "writer"), [(1, (4, 1)), (0, (2, 3)), (1, (5, 0))])
def test_the_planted_rift_is_found_through_examples(table, writer):
    made = planted.bigram(table=table, writer=writer)
    found = pcm.cot.functional_rift(made.model, examples_of(made, 8))
    r, depth = found.rift(), made.layers["rift"] + 1
    assert r.change == r.low == r.high == depth and r.crossing == (depth, depth, depth)
    assert r.rise[1] > 0.5 and r.rise[1] <= r.rise[0] <= r.rise[2] and r.ahead
    assert f"changes most at depth {depth} [{depth}, {depth}] of 6 (n = 8)" in found.findings()[0]


def made_up(end):
    """Context - prior is about -0.2 up to depth 3 and `end` [example] from there on."""
    n = len(end)
    difference = np.tile(-0.2 + 0.001 * (-1.0) ** np.arange(n)[:, None, None], (1, 1, 6))
    difference[:, 0, 3:] = np.asarray(end)[:, None]
    dims = ("example", "step", "depth")
    data = {name: (dims, np.zeros_like(difference)) for name in rift.CURVES} | {"context": (dims, difference)}
    coords = {"step": [5], "kind": ("step", ["induction"]), "depth": np.arange(6)}
    return rift.FunctionalRift(xr.Dataset(data, coords=coords), {})


def test_what_lies_within_the_interval_is_left_open():
    clear = made_up([0.1, 0.2] * 4)
    r = clear.rift()
    assert (r.behind, r.ahead, r.turned) == (True, True, True) and r.crossing[0] == r.change == 3
    assert r.abrupt[0] <= r.abruptness <= r.abrupt[1] and "from depth 3 [3, 3] on" in clear.findings()[1]
    open_ = made_up([0.5, -0.1, -0.1, -0.1] * 2)  # ahead in the mean, and not in most examples
    r = open_.rift()
    assert r.ahead is None and r.turned is None and "is open" in open_.findings()[1]
    r = made_up([-0.1, -0.12] * 4).rift()
    assert r.ahead is False and r.turned is False and r.crossing is None
    row = clear.table().iloc[0]
    assert [row.crossing, row.crossing_low, row.crossing_high] == [3, 3, 3]
    few = made_up([0.1] * 5).rift()  # five that agree say nothing of others
    assert few.ahead is None and few.turned is None and made_up([0.09, 0.11] * 3).rift().turned
    alone = made_up([0.1])
    lines = alone.findings()
    assert lines[1] == "it is open which of the two next words is ahead at the end" and "nan" not in str(lines)


def test_intervals_of_layers_and_shares_stay_among_them():
    rng = np.random.default_rng(1)
    found = made_up([0.1] * 4)
    found.data["context"][:, 0] = np.sort(rng.normal(size=(4, 6)), 1)  # each rises somewhere else
    r, row = found.rift(), found.table().iloc[0]
    assert 1 <= r.low < r.high <= 5 and 0 <= r.abrupt[0] <= r.abrupt[1] <= 1
    assert [row.abruptness, row.abruptness_low, row.abruptness_high] == [r.abruptness, *r.abrupt]


def test_it_shows_itself(model, examples, every, result, tmp_path):
    table = result.table()
    assert table["step"].tolist() == ["all", 1, 5, 9] and table["n"].tolist() == [3] * 4
    r = result.rift()
    assert r.low <= r.change <= r.high and r.n == 3
    assert any("next word" in line for line in result.findings())
    result.plot(path=tmp_path / "rift.png")
    assert (tmp_path / "rift.png").stat().st_size > 10_000
    predicted = rift.cost(model.cfg, workload(choose(model, examples, steps=[1, 5, 9], right=every)))
    assert predicted.flop == pytest.approx(result.about["cost"]["flop"], rel=0.5)
    with pytest.raises(ValueError, match="start: got 999"):
        pcm.cot.functional_rift(model, examples, right=every, start=999)
