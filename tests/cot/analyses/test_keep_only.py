"""Sets kept alone (`keep_only`) and sets made smaller (`remove`), against the runs they stand for."""

import re

import numpy as np
import pytest
import torch
import xarray as xr

import pycotmech as pcm
from pycotmech.cot.analyses import keep_only as isolation
from pycotmech.cot.analyses.keep_only import keep_only
from pycotmech.cot.analyses.remove import remove
from pycotmech.cot.tools import cells, cost
from pycotmech.cot.tools.ablation import ablated_steps
from pycotmech.cot.tools.head_sets import HeadSet, intersection, scores_of, set_combinations, union
from pycotmech.stats.draws import layer_matched
from pycotmech.stats.random_sets import DRAWS, beyond_draws
from tests.cot.analyses.interval_cases import keeps_its_ranges
from tests.reference.close import assert_allclose

L, H = 4, 8


@pytest.fixture(scope="module")
def case():
    model = pcm.Model.from_pretrained("tiny-cot")
    examples = pcm.cot.make_examples(3, shots=2, tokenizer=model.tokenizer, bos=model.prepend_bos, seed=4)
    graded = pcm.cot.grade(model, examples)
    means = pcm.cot.head_means(model, examples, n=2)
    run = ablated_steps(model, cells.choose(model, examples, right=graded), mean=means)
    return model, examples, dict(right=graded, mean=means), run.answer


def random_set(seed, share=0.5):
    return np.random.default_rng(seed).random((L, H)) < share


def test_the_papers_five_sets():
    main, first, second = (HeadSet(random_set(i)) for i in range(3))
    found = set_combinations(main, [first, second], shape=(L, H))
    m, f, s = main.mask, first.mask, second.mask
    expected = {
        "common": m & f & s,
        "only_main": m & ~f & ~s,
        "only_other": (f | s) & ~m,
        "other": f | s,
        "common_only_main": (m & f & s) | (m & ~f & ~s),
    }
    assert list(found) == list(expected)
    for name, mask in expected.items():
        np.testing.assert_array_equal(found[name].mask, mask)
        assert found[name].name == name and mask.any()
    # docs/protocol.md, Checks, E6
    assert all((found["common"] - x).mask.sum() == 0 for x in (main, first, second))
    assert not (found["only_main"] & first).mask.any() and not (found["only_main"] & second).mask.any()
    assert not (found["common_only_main"] - main).mask.any()
    np.testing.assert_array_equal(union([main, first, second]).mask, m | f | s)
    np.testing.assert_array_equal(intersection([main, first, second]).mask, m & f & s)
    with pytest.raises(ValueError, match="others: got none"):
        set_combinations(main, [], shape=(L, H))


def test_what_is_kept_is_all_that_is_not_ablated(case):
    model, examples, options, answer = case
    some = random_set(0, 0.7)
    pairs = [(int(l), int(h)) for l, h in np.argwhere(some)]
    by_step = {s: random_set(10 + s % 2, 0.7) for s in range(10)}
    sets = {"all": np.ones((L, H), bool), "some": some, "shuffled": pairs[::-1], "by step": by_step, "none": []}
    found = keep_only(model, examples, sets, **options)
    lp = found.data["log_prob"]
    xr.testing.assert_equal(lp.sel(set="some", drop=True), lp.sel(set="shuffled", drop=True))  # a set has no order
    assert_allclose(lp.sel(set="all"), answer.untouched.log_prob)
    assert_allclose(lp.sel(set="some"), answer(~some).log_prob, atol=1e-4)
    assert_allclose(lp.sel(set="none"), answer(np.ones((L, H), bool)).log_prob, atol=1e-4)
    for s in range(10):
        assert_allclose(lp.sel(set="by step").values[:, s], answer(~by_step[s]).log_prob[:, s], atol=1e-4)
    counts = options["right"].right.numpy()
    assert (found.data["right"].sel(set="all").values[counts] == 1).all()
    assert found.data["kept"].sel(set="by step").values.tolist() == [by_step[s].sum() for s in range(10)]
    table = found.table()
    assert len(table) == 5 * 11 and table[table["set"] == "all"]["accuracy"].min() == 1
    whole = table[(table["set"] == "some") & (table["step"] == "all")]["accuracy"].item()
    assert whole == pytest.approx(np.nanmean(np.nanmean(found.data["right"].sel(set="some").values, 1)))
    keeps_its_ranges(found)
    data = found.data.copy(deep=True)
    data["random"].loc[{"set": "some"}] = np.random.default_rng(0).random(data["random"].sel(set="some").shape)
    made = isolation.KeptSets(data, found.about)
    table = made.table().set_index(["set", "step"])
    for step in (5, "all"):
        own, drawn = (data[k].sel(set="some") for k in ("right", "random"))
        own, drawn = (x.mean("step") if step == "all" else x.sel(step=step) for x in (own, drawn))
        gain = own.values[:, None] - drawn.transpose("example", "draw").values
        for name, values, within in (("random", drawn.values.T, (0, 1)), ("gain", gain, (-1, 1))):
            expected = [float(x) for x in beyond_draws(values, within=within)[:3]]
            assert [table.loc[("some", step)][f"{name}{end}"] for end in ("", "_low", "_high")] == pytest.approx(expected)
    line = next(x for x in made.findings() if x.startswith("some: "))
    assert f"; 20 random sets with as many heads in each layer {table.loc[('some', 'all')]['random']:.2f} [" in line


def test_random_sets_are_run_beside_each_set(case):
    model, examples, options, _ = case
    found = keep_only(model, examples, {"all": np.ones((L, H), bool), "rest": random_set(1)}, n_random=2, steps=[5], **options)
    right = found.data["right"].sel(set="all")  # of all heads there is one set
    np.testing.assert_array_equal(found.data["random"].sel(set="all"), np.stack([right.values] * 2))
    assert "; 2 random sets with as many heads in each layer 1.00" in found.findings()[0]
    alone = type(found)(found.data.isel(example=[0]), found.about)
    assert "accuracy 1.00 over all steps of 1 example; 2 random" in alone.findings()[0]  # no brackets
    assert keep_only.__kwdefaults__["n_random"] == remove.__kwdefaults__["n_random"] == DRAWS == 20


def test_random_sets_of_a_layer_are_all_that_layer_has(case):
    """A set that holds whole layers alone has itself as its only random set: the layers are what it has."""
    model, examples, options, _ = case
    whole = np.zeros((L, H), bool)
    whole[[1, 3]] = True
    found = keep_only(model, examples, {"two layers": whole}, steps=[1, 5], n_random=3, **options)
    row = found.table().set_index("step").loc["all"]
    assert row["gain"] == 0 and row["gain_low"] == -row["gain_high"] < 0  # examples that all agree leave a width


def test_removal_takes_the_best_of_the_set_and_stops(case):
    model, examples, options, answer = case
    within = random_set(0, 0.8)
    scores = np.random.default_rng(5).normal(size=(L, H))
    found = remove(model, examples, within, scores, sizes=[2, 5], stop=0.0, **options)
    ranked = [divmod(int(i), H) for i in np.argsort(-scores.ravel()) if within.ravel()[i]]
    for k, n in enumerate([0, 2, 5]):
        mask = within.copy()
        for head in ranked[:n]:
            mask[head] = False
        np.testing.assert_array_equal(found.data["mask"].values[k, 0], mask)
        assert_allclose(found.data["log_prob"].values[k], answer(~mask).log_prob, atol=1e-4)
    assert found.data["removed"].values.tolist() == [0, 2, 5] and not found.about["settings"]["stopped"]
    started = found.overall().isel(size=0)
    inside = f"{float(started['mean']):.2f} [{float(started['low']):.2f}, {float(started['high']):.2f}]"
    assert f"alone: accuracy {inside} over all steps" in found.findings()[0]
    assert "; as many taken at random in the same layers (20 times): " in found.findings()[1]
    rng, drawn = np.random.default_rng(0), set()
    for k in range(3):
        gone = within & ~found.data["mask"].values[k, 0]
        for draw in range(20):
            mask = within & ~layer_matched(gone[None], rng, within=within[None])[0]
            assert (mask.sum(1) == found.data["mask"].values[k, 0].sum(1)).all()
            np.testing.assert_array_equal(found.data["random"].values[k, draw], answer(~mask).right)
            drawn.add((k, mask.tobytes()))
    assert len(drawn) > 20
    low = remove(model, examples, within, scores, sizes=[1], order="least", n_random=0, stop=0.0, **options)
    assert not low.data["mask"].values[1, 0][ranked[-1]] and low.data["mask"].values[1, 0].sum() == within.sum() - 1
    size = int(within.sum())
    early = remove(model, examples, within, scores, sizes=range(0, size + 1, 4), stop=0.9, **options)
    accuracy = early.accuracy()["mean"]
    assert early.about["settings"]["stopped"] and (accuracy.isel(size=-1) < 0.9).all()
    assert all(bool((accuracy.isel(size=k) >= 0.9).any()) for k in range(early.data.sizes["size"] - 1))
    assert "stopped there" in str(early)


def test_the_papers_removal_counts_heads_outside_of_the_set_too(case):
    """Made by hand: the order is L0H0, L0H1, ...; the set is every second head of it."""
    model, examples, options, answer = case
    within, scores = np.zeros((L, H), bool), -np.arange(float(L * H)).reshape(L, H)
    within[:, 1::2] = True
    theirs = remove(model, examples, within, scores, sizes=[1, 4, 20], stop=0.0, definition="paper", n_random=2, **options)
    ours = remove(model, examples, within, scores, sizes=[1, 4], stop=0.0, n_random=0, **options)
    assert theirs.data["removed"].values.tolist() == [0, 1, 4, 20] and theirs.data["kept"].values[:, 0].tolist() == [
        16,
        16,
        14,
        6,
    ]
    assert ours.data["kept"].values[:, 0].tolist() == [16, 15, 12]
    for k, n in enumerate([0, 1, 4, 20]):
        mask = within & (np.arange(L * H).reshape(L, H) >= n)
        np.testing.assert_array_equal(theirs.data["mask"].values[k, 0], mask)
        np.testing.assert_array_equal(theirs.data["agrees"].values[k], answer(~mask).agrees)
    rng, every = np.random.default_rng(0), np.ones((1, L, H), bool)  # from all heads too
    for k, n in enumerate([0, 1, 4, 20]):
        first = (np.arange(L * H).reshape(L, H) < n)[None]
        for draw in range(2):
            gone = layer_matched(first, rng, within=every)[0]
            np.testing.assert_array_equal(theirs.data["random"].values[k, draw], answer(~(within & ~gone)).agrees)
    assert "without the 20 with the highest scores of all heads (scores)" in str(theirs)
    every = remove(model, examples, within, scores, sizes=[L * H], stop=0.0, definition="paper", n_random=0, **options)
    assert int(every.data["kept"].values[-1, 0]) == 0
    with pytest.raises(ValueError, match=r"sizes: got \[33\]; expected numbers in 0\.\.32, the number of heads with a score"):
        remove(model, examples, within, scores, sizes=[33], definition="paper", **options)


def test_examples_that_chose_the_sets_are_said(case):
    model, examples, options, _ = case
    axes = ("example", "layer", "head")
    scores = xr.DataArray(np.random.default_rng(0).normal(size=(2, L, H)), dims=axes, coords={"example": [0, 9]}, name="s")
    chosen = pcm.cot.select_heads(scores, k=20)[0]
    found = keep_only(model, examples, {"chosen": chosen, "less": chosen - chosen}, steps=[5], n_random=0, **options)
    assert found.about["settings"]["reused"] == 1 and "1 example was also used to choose the sets" in str(found)
    other = pcm.cot.select_heads(scores.sel(example=[9]), k=20)[0]
    apart = keep_only(model, examples, {"chosen": other}, steps=[5], n_random=0, **options)
    assert "the sets were chosen on 1 other example, none of these" in str(apart) and "optimistic" not in str(apart)
    few = dict(sizes=[1], steps=[5], n_random=0, **options)
    for ranking, reused in ((scores, 1), (scores.sel(example=[9]), 0), (scores.mean("example"), 0)):
        assert remove(model, examples, other, ranking, **few).about["settings"]["reused"] == reused


@pytest.mark.parametrize("by_step", [False, True])
def test_cost_is_what_was_predicted(case, by_step):
    model, examples, options, _ = case
    load = cost.workload(cells.choose(model, examples, right=options["right"]))
    sets = {"a": {s: random_set(s) for s in range(10)}} if by_step else {"a": random_set(3), "b": random_set(4)}
    found = keep_only(model, examples, sets, right=options["right"], n_mean=2)
    predicted = isolation.cost(model.cfg, load, sets=len(sets), n_mean=2, steps=10 if by_step else 1)
    assert found.about["cost"]["token_forwards"] == pytest.approx(predicted.token_forwards, rel=0.15)
    assert isolation.authors_cost(model.cfg, load).forwards == load.cells * 19.5  # section 3: 19 500 for 1 000


def test_results_are_kept_and_drawn(case, tmp_path):
    model, examples, options, _ = case
    kept = keep_only(model, examples, {"some": random_set(0), "none": []}, steps=[4, 5], **options)
    gone = remove(model, examples, random_set(0), np.arange(32.0).reshape(L, H), sizes=[3], steps=[4, 5], **options)
    for found in (kept, gone):
        found.save(tmp_path)
        again = type(found).load(tmp_path)
        xr.testing.assert_equal(again.data, found.data)
        assert again.findings() == found.findings()
        found.plot(path=tmp_path / f"{found.name}.png")
        assert (tmp_path / f"{found.name}.png").stat().st_size > 10_000


def test_bad_input(case):
    model, examples, options, _ = case
    for call, words in [
        (lambda: keep_only(model, examples, [], **options), "sets: got list"),
        (lambda: keep_only(model, examples, {"a": np.ones((2, 2), bool)}, **options), r"sets\['a'\]: got a set of shape"),
        (lambda: keep_only(model, examples, {"a": {0: []}}, **options), r"sets\['a'\]: has no set for step 1"),
        (lambda: keep_only(model, examples, {"a": []}, n_random=-1, **options), "n_random: got -1"),
        (lambda: keep_only(model, examples, {"a": []}, definition="x", **options), "definition: got 'x'"),
        (lambda: remove(model, examples, [(0, 0)], np.zeros((L, H)), sizes=[2], **options), r"sizes: got \[2\]"),
        (lambda: remove(model, examples, [(0, 0)], np.zeros((2, H)), **options), r"scores: got heads \[2, 8\]"),
        (lambda: remove(model, examples, [(9, 0)], np.zeros((L, H)), **options), r"within: got \(9, 0\)"),
        (lambda: remove(model, examples, [(0, 0)], np.zeros((L, H)), order="x", **options), "order: got 'x'"),
        (lambda: remove(model, examples, [(0, 0)], np.zeros((L, H)), stop=50, **options), "stop: got 50"),
    ]:
        with pytest.raises((TypeError, ValueError), match=words):
            call()


def test_torch_masks_are_taken(case):
    model, examples, options, _ = case
    found = keep_only(model, examples, {"all": torch.ones(L, H, dtype=torch.bool)}, steps=[0], n_random=0, **options)
    assert found.data["kept"].values.tolist() == [[32]]


PAPER = ("patch_steps", "decision_heads", "copy_heads", "common", "only_main", "only_other", "other", "common_only_main")


def test_findings_tables_and_figures_use_the_words(case):
    model, examples, options, _ = case
    sets = {name: random_set(i) for i, name in enumerate(PAPER)}
    found = keep_only(model, examples, sets, steps=[5], n_random=0, **options)
    text = " ".join([*found.findings(), *(t.get_text() for t in found.plot().axes[0].get_yticklabels())])
    assert not re.search(r"[a-z]_[a-z]", text) and "exact" not in text
    assert found.findings()[0].startswith(f"heads that restore most: {random_set(0).sum()} of 32 heads kept, accuracy ")
    table = found.table()
    assert list(table.columns[:2]) == ["set", "in_words"] and set(table["set"]) == set(PAPER)
    assert (table[table["set"] == "only_main"]["in_words"] == "heads that restore most, in no other set").all()
    assert found.definition_words == "heads are ablated, and accuracy is every token of the gold word"
    within = {"sizes": [1], "steps": [5], "n_random": 0, "stop": 0.0, "definition": "paper", **options}
    scores = xr.Dataset({"copying": (("layer", "head"), np.random.default_rng(0).normal(size=(L, H)))})
    taken = remove(model, examples, random_set(0), scores_of(scores), name="the first", **within)
    taken.about["settings"]["scores"] = "copy_heads copying"
    assert (
        "without the 1 with the highest scores of all heads (attention to the answer's word times what the head writes of it): "
        in str(taken)
    )
    assert taken.definition_words.endswith("agreement with the untouched model") and taken.names_in_words() == [
        "0 taken",
        "1 taken",
    ]
    overlap = pcm.cot.head_overlap({name: sets[name] for name in PAPER[:3]})
    assert "heads that restore most and heads that copy: " in str(overlap) and not re.search(r"[a-z]_[a-z]", str(overlap))
    assert overlap.table()["b_in_words"].tolist() == ["heads that carry the answer", "heads that copy", "heads that copy"]
