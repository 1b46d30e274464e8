"""Knock-out curves against hooked float64 forwards of each step by itself, and the rules around them."""

import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr

import pycotmech as pcm
from pycotmech.cot.analyses import knock_out_curve as knock_out
from pycotmech.cot.analyses.knock_out_curve import knock_out_curve, nearest
from pycotmech.cot.tools import cells, cost
from pycotmech.cot.tools.ablation import AblatedAnswers, ablated_steps
from pycotmech.stats import bootstrap
from pycotmech.stats.random_sets import DRAWS, beyond_draws
from tests.cot.analyses.interval_cases import keeps_its_ranges, tells
from tests.reference.close import assert_allclose
from tests.reference.planted import models as planted
from tests.reference.truth import double, edited, logits_of

L, H = 4, 8


@pytest.fixture(scope="module")
def examples(model):
    return pcm.cot.make_examples(4, shots=2, tokenizer=model.tokenizer, bos=model.prepend_bos, seed=4)


@pytest.fixture(scope="module")
def graded(model, examples):
    return pcm.cot.grade(model, examples)


@pytest.fixture(scope="module")
def means(model, examples):
    return pcm.cot.head_means(model, examples, n=3)


@pytest.fixture(scope="module")
def scores(examples):
    """Scores per example and step, each example with a ranking of its own."""
    values = np.random.default_rng(3).normal(size=(len(examples), examples.n_steps, L, H))
    axes = ("example", "step", "layer", "head")
    return xr.DataArray(values, dims=axes, coords={"example": [e.index for e in examples], "step": range(10)}, name="made up")


@pytest.fixture(scope="module")
def curve(model, examples, graded, means, scores):
    return knock_out_curve(model, examples, scores, right=graded, mean=means, order=("least", "most"), sizes=[8, 16, 24, 32])


@pytest.mark.parametrize("kind", ["mean", "zero"])
@pytest.mark.parametrize("positions", ["all", "suffix"])
def test_answers_are_those_of_each_step_by_itself(model, examples, means, kind, positions):
    """The whole solution is run once for all steps; here every step is one hooked float64 forward of its own prompt."""
    wide = pcm.Model(double(model.hf), model.tokenizer, check=False)
    everything = torch.ones(len(examples), 10, dtype=torch.bool)
    chosen = cells.choose(wide, examples, right=everything, steps=[0, 4, 5, 9])
    means = dataclasses.replace(means, z=means.z.double())
    run = ablated_steps(wide, chosen, kind=kind, mean=means if kind == "mean" else None, positions=positions)
    heads = np.random.default_rng(7).random((L, H)) < 0.3
    found = run.answer(heads)
    at = 0 if positions == "all" else len(examples.shared_ids)
    for cell in list(chosen)[::5]:
        tokens = torch.cat((cell.step.clean, torch.tensor(cell.step.answer_tokens)))
        roles = means.roles[cell.e][: len(tokens)]
        where = list(range(at, len(tokens)))
        edits = [
            ("z", int(l), int(h), where, means.z[l, roles, h][at:] if kind == "mean" else 0.0) for l, h in np.argwhere(heads)
        ]
        with edited(wide.hf, edits):
            logits = logits_of(wide.hf, tokens)
        rows = logits[len(cell.step.clean) - 1 : -1].log_softmax(-1)
        gold = torch.tensor(cell.step.answer_tokens)
        assert found.log_prob[cell.e, cell.s] == pytest.approx(float(rows.gather(1, gold[:, None]).sum()), abs=1e-9)
        assert found.right[cell.e, cell.s] == float((rows.argmax(-1) == gold).all())
        clean = logits_of(wide.hf, cell.step.clean)[-1].argmax()
        assert found.agrees[cell.e, cell.s] == float(rows[0].argmax() == clean)
    assert np.abs(found.log_prob - run.answer.untouched.log_prob).min() > 0


def test_nothing_ablated_is_the_model_itself(curve, graded):
    for order in curve.data["order"].values:
        first = curve.data.sel(order=order).isel(size=0)
        counts = graded.right.numpy()
        assert (first["right"].values[counts] == 1).all() and (first["agrees"].values[counts] == 1).all()
        assert np.isnan(first["right"].values[~counts]).all() and int(first["removed"]) == 0


def test_mean_over_the_prompt_itself_changes_nothing(model, examples, graded):
    one = examples.only([examples[0]])
    found = knock_out_curve(model, one, np.arange(32.0).reshape(L, H), right=graded.right[:1], mean=one, sizes=[5, 32])
    assert (found.data["agrees"] == 1).where(found.data["agrees"].notnull()).all()
    off = found.data["log_prob"] - found.data["log_prob"].isel(size=0)
    assert float(np.abs(off).max()) < 1e-4 and found.data.sizes["size"] == 3
    assert (found.data["half"] == "both").all() and found.about["settings"]["mean_prompts"] == 1


def test_all_heads_ablated_leave_what_the_token_and_its_place_say(model, examples, curve):
    """Every order ends in the same run; with zero in all places the answer depends on the last token alone."""
    ends = curve.data.isel(size=-1)
    for order in ends["order"].values:
        xr.testing.assert_equal(ends["log_prob"].sel(order=order, drop=True), ends["log_prob"].isel(order=0, drop=True))
    everything = torch.ones(len(examples), 10, dtype=torch.bool)
    run = ablated_steps(model, cells.choose(model, examples, right=everything), kind="zero")
    found = run.answer(np.ones((L, H), bool)).log_prob
    seen: dict = {}
    for e, example in enumerate(examples):
        for s, step in enumerate(example.steps):
            key = (int(step.clean[-1]), step.answer_tokens)
            assert found[e, s] == pytest.approx(seen.setdefault(key, found[e, s]), abs=1e-4)
    assert len(seen) < found.size


def test_orders_are_what_they_say(curve, scores, examples):
    ablated, removed = curve.data["ablated"], curve.data["removed"]
    assert removed.sel(order="least").values.tolist() == [0, 8, 16, 24, 32]
    held_out = {e for e, h in zip(scores["example"].values, curve.data["half"].values) if h == "report"}
    used = scores.sel(example=[e for e in scores["example"].values if e not in held_out])
    ranking = np.argsort(-used.mean(("example", "step")).values.ravel(), kind="stable")  # no example that is reported on
    for k, n in enumerate([0, 8, 16, 24, 32]):
        assert set(np.flatnonzero(ablated.sel(order="least").values[k])) == set(ranking[32 - n :])
        assert set(np.flatnonzero(ablated.sel(order="most").values[k])) == set(ranking[:n])
    assert "2 of 4 examples that are not reported on" in curve.about["settings"]["ranked_on"]
    values = ablated.values
    assert (values[:, :-1] <= values[:, 1:]).all()  # each set holds the one before it


def test_operating_point_is_nearest_with_ties_to_the_larger_and_told_on_the_other_half(curve):
    assert nearest(np.array([1.0, 0.95, 0.85, 0.3]), 0.9) == 2
    assert nearest(np.array([0.9, 0.2, 0.1]), 0.9) == 1  # index 0 never
    assert nearest(np.array([1.0, 1.0, 1.0]), 0.9) == 2
    assert nearest(np.array([1.0, np.nan]), 0.9) is None
    half = curve.data["half"].values
    assert sorted(half) == ["report", "report", "select", "select"]
    np.testing.assert_array_equal(np.flatnonzero(half == "select"), bootstrap.halves(4, seed=0)[0])
    values = curve.data["right"].sel(order="least")
    for row in curve.operating_points(target=0.5).itertuples():
        if row.step == "all":
            continue
        chosen = np.nanmean(values.sel(step=row.step).values[:, half == "select"], 1)
        assert row.size == nearest(chosen, 0.5) and row.chosen_at == chosen[row.size]
        told = values.sel(step=row.step).values[row.size, half == "report"]
        assert row.accuracy == pytest.approx(np.nanmean(told)) and row.n == np.isfinite(told).sum()
        assert row.removed + row.kept == 32
        assert row.floor == pytest.approx(np.nanmean(values.sel(step=row.step).values[-1, half == "report"]))
        ends = bootstrap.mean_interval(values.sel(step=row.step).values[-1, half == "report"], within=(0, 1))
        expected = pytest.approx([*map(float, ends[:3])], nan_ok=True)
        assert [getattr(row, "floor" + end) for end in ("", "_low", "_high")] == expected
    assert "with every head ablated" in str(curve)
    keeps_its_ranges(curve)


def test_random_sets_have_the_layers_of_the_operating_point(curve, model, examples, graded, means):
    point = curve.operating_points(order="least").set_index("step").loc["all"]
    size, data = int(curve.data["random_size"]), curve.data
    assert size == point["size"] and data.sizes["draw"] == DRAWS == 20
    kept = ~data["ablated"].sel(order="least").isel(size=size)
    assert (data["random_kept"].sum("head") == kept.sum("head")).all()
    assert len({draw.tobytes() for draw in data["random_kept"].values}) > 10
    half = data["half"].values
    assert data["random"].isel(example=half == "select").isnull().all()
    run = ablated_steps(model, cells.choose(model, examples, right=graded), mean=means)
    for draw in (0, 7):
        expected = run.answer(~data["random_kept"].values[draw]).right[half == "report"]
        np.testing.assert_array_equal(data["random"].values[draw, half == "report"], expected)


def test_the_interval_of_what_random_sets_keep_is_over_examples_and_sets(curve):
    rng = np.random.default_rng(0)
    data = curve.data.copy(deep=True)
    data["right"][:] = rng.random(data["right"].shape)
    data["random"][:] = rng.random(data["random"].shape)
    made = type(curve)(data, curve.about)
    at = made.operating_points().set_index("step").loc["all"]["size"]
    found = type(curve)(data.assign(random_size=int(at)), curve.about)
    row = found.operating_points().set_index("step").loc["all"]
    told = data.isel(example=data["half"].values == "report")
    own = told["right"].sel(order="least").isel(size=int(at)).mean("step").values
    drawn = told["random"].mean("step").transpose("example", "draw").values
    for name, values, within in (("random", drawn, (0, 1)), ("gain", own[:, None] - drawn, (-1, 1))):
        expected = beyond_draws(values, within=within)
        assert [row[f"{name}{end}"] for end in ("", "_low", "_high")] == pytest.approx([float(x) for x in expected[:3]])
        assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
    assert f"; 20 random sets with as many heads in each layer {row['random']:.2f} [" in found.findings()[-3]
    assert f"] (difference {row['gain']:+.2f} [" in found.findings()[-3]
    most = found.operating_points(order="most")
    assert most["random"].isna().all() and most["gain_low"].isna().all()  # they are beside the first order
    one = found.table().set_index(["order", "step"]).loc[("most", 5)].iloc[2]
    tells(one, "agreement", data["agrees"].sel(order="most", step=5).values[2], (0, 1))


def test_the_papers_definition_is_agreement_chosen_and_told_on_all(model, examples, graded, means, scores):
    selection = pcm.cot.select_heads(scores, rule="window", definition="paper", t=range(4))
    found = knock_out_curve(model, examples, selection, right=graded, mean=means, definition="paper", n_random=0)
    assert found.main == "agrees" and (found.data["half"] == "both").all()
    removed = found.data["removed"].sel(order="least").values.tolist()
    assert removed == sorted({0, *(32 - len(s) for s in selection)}) and "authors" in found.about["settings"]["rule"]
    assert "agreement with the untouched model" in str(found) and "the same examples" in str(found)
    np.testing.assert_array_equal(found.data["ablated"].values[0, -1], ~selection[-1].mask)


def test_rankings_by_step_ablate_by_step(model, examples, graded, means, scores):
    few = dict(right=graded, mean=means, sizes=[10], n_random=1)
    found = knock_out_curve(model, examples, scores, steps=[5, 9], ranking="by_step", **few)
    assert found.data["ablated"].dims == ("order", "size", "step", "layer", "head")
    chosen = cells.choose(model, examples, right=graded, steps=[5, 9])
    run = ablated_steps(model, chosen, mean=means)
    for s, step in enumerate([5, 9]):
        mask = found.data["ablated"].sel(order="least").values[1, s]
        alone = knock_out_curve(model, examples, scores.sel(step=[step]), steps=[step], **few)
        np.testing.assert_array_equal(mask, alone.data["ablated"].sel(order="least").values[1])
        expected = run.answer(mask).log_prob[:, s]
        assert_allclose(found.data["log_prob"].sel(order="least").values[1, :, s], expected, atol=1e-4)
    assert (found.data["ablated"].values[0, 1, 0] != found.data["ablated"].values[0, 1, 1]).any()


@pytest.mark.parametrize("options", [{}, {"kind": "zero"}, {"ranking": "by_step"}])
def test_cost_is_what_was_predicted(model, examples, graded, scores, options):
    sizes = [16] if "ranking" in options else [8, 16, 32]
    found = knock_out_curve(model, examples, scores, right=graded, sizes=sizes, n_mean=2, **options)
    chosen = cells.choose(model, examples, right=graded)
    load = cost.workload(chosen)
    arguments = {k: v for k, v in options.items() if k == "kind"}
    steps = 10 if "ranking" in options else 1
    predicted = knock_out.cost(model.cfg, load, sizes=len(sizes), n_mean=2, steps=steps, **arguments)
    assert found.about["cost"]["token_forwards"] == pytest.approx(predicted.token_forwards, rel=0.15)
    assert found.about["cost"]["flop"] == pytest.approx(predicted.flop, rel=0.15)


def test_authors_cost_is_that_of_their_loops(model):
    load = cost.Workload(examples=100, cells=1000, length=640, suffix=60, shared=575)
    theirs = knock_out.authors_cost(model.cfg, load)
    assert theirs.forwards == 25_500 and theirs.token_forwards == 25_500 * 640  # section 3, E5 decision
    assert theirs.token_forwards > 20 * knock_out.cost(model.cfg, load, sizes=24, n_random=0).token_forwards


def test_result_is_kept_and_drawn(curve, tmp_path):
    curve.save(tmp_path)
    again = type(curve).load(tmp_path)
    xr.testing.assert_equal(again.data, curve.data)
    assert again.findings() == curve.findings() and len(again.table()) == 2 * 5 * 10
    curve.plot(path=tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="half: got 'first'"):
        curve.accuracy(half="first")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"order": "best"}, "order: got 'best'"),
        ({"ranking": "each"}, "ranking: got 'each'"),
        ({"target": 90}, "target: got 90"),
        ({"sizes": [40]}, r"sizes: got \[40\]; expected numbers of heads in 1\.\.32"),
        ({"kind": "resample"}, "kind: got 'resample'"),
        ({"kind": "zero", "mean": 1}, "mean: kind 'zero' takes no mean"),
        ({"positions": "last"}, "positions: got 'last'"),
        ({"n_random": -1}, "n_random: got -1"),
    ],
)
def test_bad_input(model, examples, graded, scores, options, words):
    with pytest.raises(ValueError, match=words):
        knock_out_curve(model, examples, scores, right=graded, **options)


def test_bad_scores(model, examples, graded, means, scores):
    with pytest.raises(ValueError, match=r"scores: got heads \[3, 8\]; the model has \[4, 8\]"):
        knock_out_curve(model, examples, np.zeros((3, 8)), right=graded)
    with pytest.raises(ValueError, match="scores: 1 of 32 heads have no score"):
        knock_out_curve(model, examples, np.r_[np.nan, np.arange(31)].reshape(L, H), right=graded)
    with pytest.raises(ValueError, match="'by_step' needs scores with an axis step"):
        knock_out_curve(model, examples, np.arange(32.0).reshape(L, H), right=graded, ranking="by_step")
    with pytest.raises(ValueError, match="mean: its roles are those of other examples"):
        knock_out_curve(model, examples[:2], np.arange(32.0).reshape(L, H), right=graded.right[:2], mean=means)


@pytest.mark.parametrize("plant", [planted.induction, planted.parallel])
def test_planted_heads_suffice_and_are_needed(plant):
    """Only what was planted is kept: the answers stay. Only that is ablated: they go. What was not planted can all go."""
    made = plant(dtype=torch.float64)
    prompts = made.prompts(8)
    texts = [torch.cat((p.tokens, torch.tensor([p.answer]))) for p in prompts]
    answer = AblatedAnswers(made.model, texts, [[slice(len(t) - 1, len(t))] for t in texts])
    cfg = made.model.cfg
    heads = np.zeros((cfg.n_layers, cfg.n_heads), bool)
    for layer, head in made.heads.values():
        heads[layer, head] = True
    assert answer.untouched.right.mean() == 1
    assert answer(~heads).right.mean() == 1 and answer(heads).right.mean() < 0.2
