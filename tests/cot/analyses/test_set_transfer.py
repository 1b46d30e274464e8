"""The heads of one step at the others: which heads they are, which runs these numbers stand for, what random ones are."""

import numpy as np
import pytest
import xarray as xr

import pycotmech as pcm
from pycotmech.cot.analyses import set_transfer as module
from pycotmech.cot.analyses.head_overlap import head_overlap
from pycotmech.cot.analyses.set_transfer import SetTransfer, set_transfer
from pycotmech.cot.tools import cells, cost
from pycotmech.cot.tools.ablation import ablated_steps
from pycotmech.stats import bootstrap
from pycotmech.stats.random_sets import DRAWS, beyond_draws
from tests.cot.analyses.interval_cases import keeps_its_ranges
from tests.reference.close import assert_allclose

L, H, K = 4, 8, 12
STEPS = [0, 1, 4, 5]


@pytest.fixture(scope="module")
def case():
    model = pcm.Model.from_pretrained("tiny-cot")
    examples = pcm.cot.make_examples(4, shots=2, tokenizer=model.tokenizer, bos=model.prepend_bos, seed=4)
    values = np.random.default_rng(3).normal(size=(len(examples), examples.n_steps, L, H))
    axes = ("example", "step", "layer", "head")
    coords = {"example": [e.index for e in examples], "step": range(10)}
    scores = xr.DataArray(values, dims=axes, coords=coords, name="made up")
    options = dict(right=pcm.cot.grade(model, examples), mean=pcm.cot.head_means(model, examples, n=3), steps=STEPS)
    return model, examples, scores, options


@pytest.fixture(scope="module")
def found(case):
    model, examples, scores, options = case
    return set_transfer(model, examples, scores, k=K, **options)


def test_sets_are_chosen_by_step_on_the_other_half(case, found):
    _, examples, scores, _ = case
    choosing, reporting = (half.tolist() for half in bootstrap.halves(4, seed=0))
    assert found.data["example"].values.tolist() == [examples[i].index for i in reporting]
    for i, step in enumerate(STEPS):
        used = scores.values[choosing, step].mean(0).ravel()
        assert set(np.flatnonzero(found.data["kept"].values[i])) == set(np.argsort(-used)[:K])
    assert found.about["settings"]["ranked_on"] == "scores of the 2 of 4 examples that are not reported on"
    assert found.about["settings"]["held_out"] and "held-out examples" in str(found)


def test_answers_are_those_with_all_others_ablated(case, found):
    model, examples, _, options = case
    run = ablated_steps(model, cells.choose(model, examples, right=options["right"], steps=STEPS), mean=options["mean"])
    rows = bootstrap.halves(4, seed=0)[1]
    for i in range(len(STEPS)):
        expected = run.answer(~found.data["kept"].values[i])
        np.testing.assert_array_equal(found.data["right"].values[i], expected.right[rows])
        assert_allclose(found.data["log_prob"].values[i], expected.log_prob[rows], atol=1e-4)
    for draw in (0, 9):
        expected = run.answer(~found.data["random_kept"].values[draw]).right[rows]
        np.testing.assert_array_equal(found.data["random"].values[draw], expected)
    keeps_its_ranges(found)


def test_random_sets_have_the_layers_and_the_overlaps_of_the_steps(found):
    data = found.data
    matched, of_round = data["matched"].values, data["round"].values
    assert of_round.max() + 1 == DRAWS == 20 and data.sizes["draw"] == 40  # two groups of two steps take turns
    masks = dict(zip(STEPS, data["kept"].values))
    for r in range(DRAWS):
        drawn = dict(zip(matched[of_round == r], data["random_kept"].values[of_round == r]))
        assert sorted(drawn) == ([0, 1], [4, 5])[r % 2]
        a, b = drawn
        assert (drawn[a].sum(1) == masks[a].sum(1)).all()
        assert ((drawn[a] & drawn[b]).sum(1) == (masks[a] & masks[b]).sum(1)).all()
    assert len({mask.tobytes() for mask in data["random_kept"].values}) > 35


def test_accuracy_over_pairs_is_that_of_the_matrix(found):
    rng = np.random.default_rng(0)
    data = found.data.copy(deep=True)
    data["right"][:], data["random"][:] = rng.random(data["right"].shape), rng.random(data["random"].shape)
    made = SetTransfer(data, found.about)
    right, kinds = data["right"].values, data["kind"].values.tolist()
    assert kinds == ["decision", "copying", "decision", "induction"]
    pairs = {"own step": [[0], [1], [2], [3]], "same kind": [[2], [], [0], []]}
    pairs["other kinds"] = [[1, 3], [0, 2, 3], [1, 3], [0, 1, 2]]
    for name, steps in pairs.items():
        own = np.mean([right[i][:, j].mean(1) for i, j in enumerate(steps) if j], 0)
        drawn = np.zeros((len(own), DRAWS))
        for r in range(DRAWS):
            rows = np.flatnonzero(data["round"].values == r)
            each = [(STEPS.index(data["matched"].values[d]), data["random"].values[d]) for d in rows]
            drawn[:, r] = np.mean([x[:, steps[i]].mean(1) for i, x in each if steps[i]], 0)
        even = drawn.copy()
        for s in range(2):
            even[:, s::2] += (drawn.mean(1) - drawn[:, s::2].mean(1))[:, None]
        result = made.transfer(name)
        expected = {
            "accuracy": bootstrap.mean_interval(own, within=(0, 1)),
            "random": beyond_draws(even, within=(0, 1), lost=2),
            "gain": beyond_draws(own[:, None] - even, within=(-1, 1), lost=2),
        }
        row = made.transfer_table().set_index("pairs").loc[name]
        for key, interval in expected.items():
            numbers = [float(x) for x in interval[:3]]
            assert [float(x) for x in result[key][:3]] == pytest.approx(numbers), (name, key)
            columns = [key, "low", "high"] if key == "accuracy" else [key, f"{key}_low", f"{key}_high"]
            assert row[columns].tolist() == pytest.approx(numbers)
    with pytest.raises(ValueError, match="pairs: got 'all'"):
        made.transfer("all")


@pytest.mark.parametrize(
    "kinds", [["copying", "copying", "decision", "induction"], ["copying", "decision", "copying", "copying"]]
)
def test_random_sets_that_do_as_the_chosen_ones_gain_nothing_over_any_pairs(found, kinds):
    """Steps 4 and 5, whose sets change together, may have no step of their own kind, or one of them none."""
    data = found.data.copy(deep=True)
    data["right"][:] = np.random.default_rng(0).random(data["right"].shape)
    data["random"][:] = data["right"].sel(chosen=data["matched"]).values
    data = data.assign_coords(kind=("step", kinds), chosen_kind=("chosen", kinds))
    for name in module.PAIRS:
        result = SetTransfer(data, found.about).transfer(name)
        assert result["gain"].mean == pytest.approx(0, abs=1e-12)
        assert result["random"].mean == pytest.approx(result["accuracy"].mean)


def test_table_has_every_pair_and_its_overlap(found):
    table = found.table().set_index(["chosen", "step"])
    assert len(table) == 16 and table.loc[(0, 5)]["chosen_kind"] == "decision" and table.loc[(0, 5)]["kind"] == "induction"
    right = found.data["right"].sel(chosen=0, step=5).values
    assert table.loc[(0, 5)]["accuracy"] == np.nanmean(right) and table.loc[(0, 5)]["n"] == np.isfinite(right).sum()
    overlap = head_overlap({str(s): mask for s, mask in zip(STEPS, found.data["kept"].values)}, draws=0).data
    for key in ("intersection", "f1", "chance", "chance_by_layer", "p_by_layer_holm"):
        assert table.loc[(0, 5)][key] == pytest.approx(float(overlap[key].sel(set="0", other="5")))


def test_a_step_without_scores_chooses_nothing_and_is_evaluated(case):
    model, examples, scores, options = case
    gone = scores.copy(deep=True)
    gone.loc[{"step": 4}] = np.nan
    found = set_transfer(model, examples, gone, k=K, n_random=2, **options)
    assert found.data["chosen"].values.tolist() == [0, 1, 5] and found.data["step"].values.tolist() == STEPS
    assert "no heads were chosen for step 4" in str(found)
    row = found.table().set_index(["chosen", "step"]).loc[(0, 4)]
    assert np.isnan(row["intersection"]) and np.isfinite(row["accuracy"])
    gone.loc[{"step": STEPS}] = np.nan
    with pytest.raises(ValueError, match=r"scores: no head has a score"):
        set_transfer(model, examples, gone, k=K, **options)


def test_steps_of_one_kind_say_nothing_of_others(case):
    model, examples, scores, options = case
    alike = set_transfer(model, examples, scores, k=K, n_random=2, **(options | {"steps": [0, 4]}))
    assert alike.transfer()["accuracy"].n == 0 and np.isnan(alike.transfer()["gain"].mean)
    assert "the steps are all of one kind" in str(alike) and "nan" not in str(alike)
    single = set_transfer(model, examples, scores, k=K, n_random=0, **(options | {"steps": [5]}))
    assert "random" not in single.data and np.isnan(single.data["f1"]).all() and "nan" not in str(single)


def test_the_papers_definition_is_agreement_on_all_examples(case):
    model, examples, scores, options = case
    selection = pcm.cot.select_heads(scores, k=K)
    found = set_transfer(model, examples, selection, n_random=1, definition="paper", **options)
    assert found.main == "agrees" and found.data.sizes["example"] == 4 and found.about["settings"]["k"] == K
    assert "the examples they were chosen on" in str(found)


def test_cost_is_what_was_predicted(case):
    model, examples, scores, options = case
    found = set_transfer(model, examples, scores, k=K, right=options["right"], steps=STEPS, n_mean=2)
    load = cost.workload(cells.choose(model, examples, right=options["right"], steps=STEPS))
    predicted = module.cost(model.cfg, load, n_mean=2)
    assert found.about["cost"]["token_forwards"] == pytest.approx(predicted.token_forwards, rel=0.15)
    assert found.about["cost"]["flop"] == pytest.approx(predicted.flop, rel=0.15)


def test_result_is_kept_and_drawn(found, tmp_path):
    found.save(tmp_path)
    again = SetTransfer.load(tmp_path)
    xr.testing.assert_equal(again.data, found.data)
    assert again.findings() == found.findings()
    found.plot(path=tmp_path / "transfer.png")
    assert (tmp_path / "transfer.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("scores", "options", "words"),
    [
        (np.zeros((4, 10, L, H)), {"k": 0}, r"k: got 0; expected a number of heads in 1\.\.32"),
        (np.zeros((4, 10, 3, H)), {}, r"scores: got heads \[3, 8\]; the model has \[4, 8\]"),
        (np.zeros((L, H)), {}, "scores: have no axis step"),
        (pcm.cot.select_heads(np.zeros((4, 10, L, H)), k=[3, 5]), {}, "scores: got a Selection of 2 sets"),
        (pcm.cot.select_heads(np.zeros((4, 10, L, H)), k=3), {"k": 3}, "scores: got k=3"),
        (np.zeros((4, 10, L, H)), {"n_random": -1}, "n_random: got -1"),
        (np.zeros((4, 10, L, H)), {"definition": "x"}, "definition: got 'x'"),
    ],
)
def test_bad_input(case, scores, options, words):
    model, examples, _, given = case
    with pytest.raises(ValueError, match=words):
        set_transfer(model, examples, scores, **(given | options))
