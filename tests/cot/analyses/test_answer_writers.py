"""E8, stage I: projection and direct attribution against the model's own logits, planted writers, and nothing."""

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.cot.analyses import answer_writers as module
from pycotmech.cot.tools import cells as cells_module
from pycotmech.cot.tools import written as writing
from pycotmech.cot.tools.activations import Prompt, direct_directions, final_size, head_outputs, projected
from pycotmech.cot.tools.cost import Cost, workload
from pycotmech.stats.significance import means_above_zero
from tests.cot.analyses.flow_cases import activations_of, planted_activations, random_tokens
from tests.cot.analyses.interval_cases import keeps_its_ranges, tells
from tests.reference import planted
from tests.reference.close import assert_allclose, assert_close
from tests.reference.tiny import tiny_llama
from tests.reference.truth import double


@pytest.fixture(scope="module")
def wide():
    return pcm.Model(double(tiny_llama(n_layers=3, n_key_value_heads=2)), check=False)


@pytest.fixture(scope="module")
def result(model, examples, every):
    model.prefixes.clear()  # the cost is that of a cold call
    return pcm.cot.answer_writers(model, examples, steps=[0, 5, 9], right=every)


def asked(tokens, answer=7, wrong=11, spans=()):
    return Prompt(tokens, answer, wrong, occurrences=tuple(spans))


def test_direct_attribution_adds_up_to_the_models_logits(wide):
    tokens = random_tokens(20)
    (kept,) = activations_of(wide, [tokens])
    found = writing.written(wide.family, kept, asked(tokens))
    acts = wide.run(tokens, capture=("resid_pre", "mlp_out"), positions=-1)
    rest = acts["resid_pre"][0, -1] + acts["mlp_out"][:, -1].sum(0)  # embedding and MLPs
    answer, wrong, mean = direct_directions(wide.family, [7, 11])
    size = final_size(wide.family, kept.final([19]))[0]
    logits = acts.logits[0]
    for name, direction, whole in (
        ("direct", answer - mean, logits[7] - logits.mean()),
        ("contrast", answer - wrong, logits[7] - logits[11]),
    ):
        total = getattr(found, name).sum() + rest @ direction / size
        assert_close(total, whole, rtol=1e-10, atol=1e-11)
    assert_close(found.logits, torch.stack((logits[7] - logits.mean(), logits[7] - logits[11])), rtol=1e-10, atol=1e-11)


def test_direct_attribution_is_that_of_head_logits(wide):
    tokens = random_tokens(20)
    (kept,) = activations_of(wide, [tokens])
    found = writing.written(wide.family, kept, asked(tokens))
    theirs = pcm.head_logits(wide, tokens, answer=7, wrong=11)
    assert_allclose(found.contrast.numpy(), theirs.heads[..., 0] - theirs.heads[..., 1], rtol=1e-10, atol=1e-12)


def test_projection_is_the_lens_of_a_heads_output(wide):
    tokens = random_tokens(20)
    (kept,) = activations_of(wide, [tokens])
    found = writing.written(wide.family, kept, asked(tokens))
    z = wide.run(tokens, capture=("z",))["z"][:, -1]
    norm, head = wide.hf.model.norm, wide.hf.lm_head
    for l in range(3):
        W = wide.hf.model.layers[l].self_attn.o_proj.weight.T.view(4, 16, -1)
        for h in range(4):
            p = head(norm(z[l, h] @ W[h])).softmax(-1)
            assert float(p.sum()) == pytest.approx(1, abs=1e-12)
            assert_close(torch.stack((found.projection[l, h], found.control[l, h])), p[[7, 11]], rtol=1e-10, atol=1e-13)
            assert int(found.top[l, h]) == int(p.argmax()) and float(found.peak[l, h]) == pytest.approx(
                float(p.max()), rel=1e-10
            )


def test_lens_of_the_last_layer_is_the_model_and_the_projection_knows_no_size(wide):
    """The last documents a flaw: what a head says by projection does not depend on how loud it is (F13)."""
    tokens = random_tokens(20)
    (kept,) = activations_of(wide, [tokens])
    everything = list(range(61))
    p, top, peak = projected(wide.family, kept.final([19]), everything)
    truth = wide.hf(tokens[None]).logits[0, -1].softmax(-1)
    assert_close(p[0], truth, rtol=1e-9, atol=1e-12)
    assert int(top) == int(truth.argmax()) and float(peak) == pytest.approx(float(truth.max()))
    out = head_outputs(wide.family, 1, kept.at("z", 1, [19]))[0]
    loud = projected(wide.family, 1000 * out, [7])[0]
    assert_close(loud, projected(wide.family, out, [7])[0], rtol=1e-3, atol=0)  # but for the norm's epsilon
    direction = direct_directions(wide.family, [7])[0]
    assert_close((1000 * out) @ direction, 1000 * (out @ direction))


def test_a_head_whose_output_is_the_answers_unembedding_ranks_first():
    hf = double(tiny_llama(n_layers=3))
    W = hf.model.layers[1].self_attn.o_proj.weight
    W[:, 2 * 16 : 3 * 16] = 0.0
    W[:, 2 * 16] = 4 * hf.lm_head.weight[7] / hf.model.norm.weight
    model = pcm.Model(hf, check=False)
    tokens = random_tokens(20)
    (kept,) = activations_of(model, [tokens])
    found = writing.written(model.family, kept, asked(tokens))
    z = float(kept.at("z", 1, [19])[0, 2, 0])
    scores = found.projection if z > 0 else -found.direct.abs()
    assert divmod(int(scores.argmax() if z > 0 else found.direct.abs().argmax()), 4) == (1, 2)


def test_two_planted_writers_are_two_pathways_with_two_sources():
    p = planted.parallel()
    writers = {p.heads["question"], p.heads["generated"]}
    contrasts = []
    for prompt, kept, _ in planted_activations(p, 6):
        found = writing.written(p.model.family, kept, prompt)
        at = {tuple(i) for i in ((found.projection >= 0.5) & (found.direct >= 0.25)).nonzero().tolist()}
        assert at == writers
        counts = writing.count_writers(found, prompt, (0.5,))
        assert counts["writers"] == 2 and np.isnan(counts["competitor_writers"])
        assert counts["sources"] == 2 and counts["segments"] == 2 and counts["late"] == 0.5
        contrasts.append(found.contrast.numpy())
    assert {tuple(i) for i in np.argwhere(means_above_zero(np.stack(contrasts), alpha=0.001))} == writers


def test_counts_are_worked_out_by_hand():
    """A writer says its word and brings some of its logit; competing words are counted by the same rule, and averaged."""
    grid = lambda *rows: torch.tensor(rows, dtype=torch.float64)  # noqa: E731
    direct = grid([1.0, 0.1], [0.5, 1.0])
    found = writing.Written(
        projection=grid([0.6, 0.9], [0.2, 0.05]),
        control=grid([0.6, 0.6], [0.6, 0.05]),
        top=torch.zeros(2, 2),
        peak=torch.zeros(2, 2),
        direct=direct,
        contrast=direct,
        competitors=torch.stack((grid([0.6, 0.6], [0.6, 0.05]), grid([0.1, 0.0], [0.0, 0.0])), -1),
        competing=torch.stack((grid([0.0, 0.4], [0.1, 0.9]), grid([0.3, 0.0], [0.0, 0.0])), -1),
        mass=torch.tensor([[[0.5, 0.0], [0.0, 0.9]], [[0.05, 0.2], [0.0, 0.0]]]),
        logits=torch.zeros(2),
    )
    prompt = Prompt(
        torch.arange(8), 1, 2, None, {"question": slice(1, 4), "generated": slice(4, 8)}, (slice(2, 3), slice(5, 6))
    )
    counts = writing.count_writers(found, prompt, (0.1, 0.5, 0.95))
    expected = {
        "projecting": [3, 2, 0],
        "writers": [2, 1, 0],
        "competitor_writers": [1.0, 0.5, 0.0],
        "late": [0.5, 0.0, np.nan],
        "sources": [2, 1, 0],
        "segments": [2, 1, 0],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(counts[name], values, err_msg=name)


def test_in_a_model_with_nothing_planted_no_head_writes():
    """By projection alone some do: noise that is made as loud as everything else says something, sometimes the answer."""
    p = planted.nothing()
    contrasts = []
    for prompt, kept, _ in planted_activations(p, 12):
        found = writing.written(p.model.family, kept, prompt)
        counts = writing.count_writers(found, prompt, (0.1, 0.5))
        assert counts["writers"].tolist() == [0, 0] and np.isnan(counts["late"]).all() and counts["sources"].tolist() == [0, 0]
        contrasts.append(found.contrast.numpy())
    assert means_above_zero(np.stack(contrasts), alpha=0.01).sum() == 0
    assert np.abs(contrasts).max() < 0.25  # the planted writers bring about 12


def test_heads_are_chosen_on_one_half_and_judged_on_the_other():
    rng = np.random.default_rng(1)
    contrast = rng.normal(size=(8, 1, 10, 6)) * 0.01
    contrast[:, 0, 4, 3] = 2.0
    share = module.held_out(contrast, np.full((8, 1), 4.0), 1, seed=0)
    assert_allclose(share[:, 0], 0.5)
    noise = rng.normal(size=(200, 1, 10, 6))
    inside = np.sort(noise.mean(0).ravel())[-5:].sum()
    assert abs(np.nanmean(module.held_out(noise, np.ones((200, 1)), 5, seed=0))) < 0.5 * inside


def test_result(model, examples, result, tmp_path):
    data = result.data
    assert data["projection"].dims == ("example", "step", "layer", "head") and bool((data["projection"] <= 1).all())
    count = (data["projection"] >= 0.1).sum(("layer", "head"))
    np.testing.assert_array_equal(count, data["projecting"].sel(threshold=0.1))
    loud = ((data["projection"] >= 0.1) & (data["direct"] >= 0.25)).sum(("layer", "head"))
    np.testing.assert_array_equal(loud, data["writers"].sel(threshold=0.1))
    assert bool((data["writers"].sel(threshold=0.01) >= data["writers"].sel(threshold=0.5)).all())
    for e, example in enumerate(examples):
        logits = model.run(example.steps[5].clean, positions=-1).logits[0]
        whole = float(logits[example.steps[5].answer] - logits[example.steps[5].wrong])
        assert float(data["logit_difference"][e].sel(step=5)) == pytest.approx(whole, rel=1e-4)
    assert len(result.table(3)) == 9 and len(result.pathways()) == 9
    assert result.top(5)[0][2] == result.table(1).set_index("step").loc[5, "contrast"]
    keeps_its_ranges(result)
    row = result.table(1).set_index("step").loc[5]
    for name in ("projection", "control", "answer_mass"):
        tells(row, name, data[name].sel(step=5, layer=row["layer"], head=row["head"]).values, (0, 1))
    assert result.pathways()["writers_low"].min() >= 0
    assert not result.table(3)["held_out"].any() and result.table(3)["n"].eq(3).all()
    assert all("n = 3" in line for line in result.findings()[:3])
    result.save(tmp_path)
    again = module.AnswerWriters.load(tmp_path)
    np.testing.assert_array_equal(again.data["significant"], data["significant"])
    again.plot(path=tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_the_strongest_writers_are_told_on_the_other_half(result):
    rng = np.random.default_rng(0)
    data = result.data.isel(example=np.arange(8) % 3).assign_coords(example=np.arange(8))
    for name in ("contrast", "direct", "projection"):
        data[name] = data[name] + rng.normal(scale=2, size=data[name].shape)
    many = module.AnswerWriters(data, result.about)
    table = many.table(4)
    assert table["held_out"].all() and table["n"].eq(4).all()
    parts = many.at_step("contrast", 5)
    chosen, told = (p.data.sel(step=5).mean("example") for p in (parts.choosing, parts.reporting))
    H = chosen.sizes["head"]
    order = [divmod(int(i), H) for i in np.argsort(-chosen["contrast"].values.ravel())[:4]]
    first = table[table["step"] == 5]
    assert list(zip(first["layer"], first["head"])) == order
    for name in ("contrast", "projection", "control", "answer_mass"):
        assert_allclose(first[name], [float(told[name].sel(layer=l, head=h)) for l, h in order])
    for by in ("contrast", "direct", "projection"):
        best = divmod(int(chosen[by].values.argmax()), H)
        assert many.top(5, 1, by=by) == [(*best, pytest.approx(float(told[by][best])))]
    whole = many.table(1, held_out=False).set_index("step").loc[5]
    assert whole["n"] == 8 and whole["contrast"] == pytest.approx(float(data["contrast"].sel(step=5).mean("example").max()))


def test_only_chosen_heads_count(model, examples, every, result):
    only = pcm.cot.answer_writers(model, examples, steps=[5], right=every, heads=[(3, 5)])
    expected = (result.data["projection"].sel(step=5, layer=3, head=5) >= 0.5).values
    np.testing.assert_array_equal(only.data["projecting"].sel(step=5, threshold=0.5), expected)


def test_cost_is_what_was_predicted(model, examples, every, result):
    size = workload(cells_module.choose(model, examples, steps=[0, 5, 9], right=every))
    predicted = module.cost(model.cfg, size)
    assert result.about["cost"]["token_forwards"] == pytest.approx(predicted.token_forwards, rel=0.15)
    assert result.about["cost"]["flop"] == pytest.approx(predicted.flop, rel=0.15)
    assert module.authors_cost(model.cfg, size) == Cost()  # read off their graphs


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"thresholds": [0.1, 2]}, "thresholds: got"),
        ({"alpha": 0}, "alpha: got 0"),
        ({"chosen": 0}, "chosen: got 0"),
        ({"heads": torch.ones(2, 2, dtype=torch.bool)}, r"heads: got bool \[2, 2\]"),
    ],
)
def test_bad_input(model, examples, every, arguments, words):
    with pytest.raises(ValueError, match=words):
        pcm.cot.answer_writers(model, examples, right=every, **arguments)
