"""What was planted is recovered by the public functions, and nothing is found where nothing was.

The models and their examples are those of tests/reference/planted; planted heads are moved, so that knowing the defaults does
not help. "silent" models have attention that writes nothing; in those of noise every head writes a little of everything.
"""

import dataclasses

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.paper import CLAIMS
from tests.reference import planted

N = 8
MANY = 12  # of which halves of 6 are chosen and reported on: fewer that agree decide no claim
EVERY = torch.ones(MANY, 1, dtype=torch.bool)
BY_NAME = {claim.name: claim for claim in CLAIMS}
COPYING = [{}, dict(writer=(2, 0), decoy=(0, 2))]
INDUCTION = [{}, dict(previous=(1, 0), writer=(2, 3), n_layers=4)]


def case(name, n=N, seed=0, words=1, **options):
    made = getattr(planted, name)(**options)
    return made, planted.examples(made, n, seed=seed, words=words)


def mean(result, variable):
    """[layer, head] of the one step."""
    return result.data[variable].mean("example").isel(step=0).transpose("layer", "head", ...).values


def but(grid, *heads):
    """Entries of all other heads."""
    rest = np.ones(grid.shape[:2], bool)
    for head in heads:
        rest[head] = False
    return grid[rest]


@pytest.fixture(scope="module", params=["noise", "silent"])
def null(request):
    """A model without a circuit, its examples, and whether its attention is silent; it gets nothing right."""
    made, examples = case("nothing", n=MANY, silent=request.param == "silent")
    assert not pcm.cot.grade(made.model, examples).right.any()
    return made.model, examples, request.param == "silent"


def test_examples_are_the_prompts():
    made, examples = case("parallel")
    assert pcm.cot.grade(made.model, examples).right.all() and examples.n_steps == 1
    for example, prompt in zip(examples, made.prompts(N), strict=True):
        (step,) = example.steps
        assert torch.equal(step.clean, prompt.tokens) and torch.equal(step.corrupted, prompt.corrupted)
        assert torch.equal(made.model.to_tokens(example.full_text), example.full_ids)
        assert step.text == prompt.text and [s.start for s in step.occurrences] == [
            prompt.positions["answer_question"],
            prompt.positions["answer_generated"],
        ]
        assert step.segments["generated"].start == prompt.positions["so"]


# ---- each head by itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", INDUCTION)
def test_patching_restores_by_the_planted_heads_alone(options):
    made, examples = case("induction", **options)
    found = pcm.cot.patch_steps(made.model, examples)
    score = found.scores()["mean"].sel(step=0).values
    previous, writer = made.heads["previous"], made.heads["writer"]
    assert score[previous] == pytest.approx(1, abs=0.02) and score[writer] == pytest.approx(1, abs=0.02)
    assert np.abs(but(score, previous, writer)).max() < 0.02
    assert {head[:2] for head in found.top(0, 2)} == {previous, writer} and not any(
        "nothing to restore" in x for x in str(found)
    )


def test_patching_finds_nothing_to_restore(null):
    model, examples, silent = null
    found = pcm.cot.patch_steps(model, examples, right=EVERY)
    for name in ("prob", "logit_diff"):
        change = np.abs(found.data[name] - found.data[f"{name}_corrupted"])
        assert float(change.max()) < (1e-6 if silent else 0.1)
    assert float(found.data["kl_corrupted"].max()) < 0.01
    scores = found.scores()
    if not silent:
        assert float(scores["mean"].max()) < 0.25 and np.isfinite(found.data["effect"]).all()
        return
    assert np.isnan(found.data["effect"]).all() and np.isnan(scores["mean"]).all() and int(scores["n"].max()) == 0
    assert found.findings()[-1].startswith(f"in {MANY} of {MANY} cells the corrupted run's output is the clean run's")
    assert not any(" L" in line for line in found.findings()) and len(found.table()) == 0 and found.plot() is not None
    with pytest.raises(ValueError, match="scores: no head has a score"):
        pcm.cot.select_heads(found)


def test_a_cell_with_nothing_to_restore_leaves_the_others_as_they_are():
    """Attention is silent, so only another last token is seen: of one example's corruption. No head restores that."""
    made, examples = case("nothing", silent=True, n=4)
    first = examples[0].steps[0]
    other = first.corrupted.clone()
    other[-1] = planted.ID["."]
    seen = dataclasses.replace(first, corrupted=other, differs=(*first.differs, len(other) - 1))
    items = (dataclasses.replace(examples[0], steps=(seen,)), *examples.items[1:])
    found = pcm.cot.patch_steps(made.model, examples.only(items), right=EVERY[:4])
    effect = found.data["effect"].isel(step=0).values
    assert (effect[0] == 0).all() and np.isnan(effect[1:]).all() and float(found.data["kl_corrupted"][0, 0]) > 0.01
    scores = found.scores()
    assert float(np.abs(scores["mean"]).max()) < 1e-6 and (scores["n"] == 1).all()
    assert "in 3 of 4 cells" in found.findings()[-1]


@pytest.mark.parametrize("options", COPYING)
def test_the_writer_alone_brings_its_layer_to_the_answer(options):
    made, examples = case("copying", **options)
    found = pcm.cot.decision_heads(made.model, examples)
    (layer, head), gain, mu = made.heads["writer"], mean(found, "gain"), found.relative()["mean"].sel(step=0).values
    assert gain[layer, head] > 0.95 and np.abs(but(gain, (layer, head))).max() < 0.01
    assert abs(mu[layer, head]) < 0.01 and but(mu[layer][:, None], (head, 0)).min() > 0.95
    p_mid = found.data["p_mid"].sel(step=0).transpose("layer", "example").values
    assert p_mid[:layer].max() < 0.05 and p_mid[layer:].min() > 0.95
    assert found.top(0, 1)[0][:2] == (layer, head)
    assert f"after the attention of layer {layer} [{layer}, {layer}]" in found.findings()[1]


def test_no_head_brings_a_layer_to_the_answer(null):
    model, examples, silent = null
    found = pcm.cot.decision_heads(model, examples, right=EVERY)
    assert float(np.abs(found.data["gain"]).max()) <= (0 if silent else 0.01) and float(found.data["p_mid"].max()) < 0.05


@pytest.mark.parametrize("options", COPYING)
@pytest.mark.parametrize("definition", ["exact", "paper"])
def test_the_copy_head_is_told_from_its_decoy(options, definition):
    """Both look at the answer's word; one writes it, as 0.6 of a direction that the unembedding reads 20 times."""
    made, examples = case("copying", **options)
    found = pcm.cot.copy_heads(made.model, examples, definition=definition)
    writer, decoy = made.heads["writer"], made.heads["decoy"]
    attention, written, copying = (mean(found, name) for name in ("attention", "written", "copying"))
    assert min(attention[writer], attention[decoy]) > 0.99 and but(attention, writer, decoy).max() < 0.1
    assert written[writer] == pytest.approx(12, rel=0.02) and abs(written[decoy]) < 0.01
    assert copying[writer] == pytest.approx(12, rel=0.02) and but(copying, writer).max() < 0.02
    assert found.top(0, 1)[0][:2] == writer


def test_no_head_copies(null):
    model, examples, silent = null
    found = pcm.cot.copy_heads(model, examples, right=EVERY)
    assert float(found.data["copying"].max()) <= (0 if silent else 0.02)
    assert float(found.data["attention"].max()) < 0.1 and float(np.abs(found.data["written"]).max()) < 0.2


# ---- sets of heads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zero", "mean"])
@pytest.mark.parametrize("options", INDUCTION)
def test_heads_selected_by_their_scores_are_those_that_are_needed(options, kind):
    """Measured, selected and knocked out: the curve falls where only one of the planted heads is left."""
    made, examples = case("induction", **options)
    model, heads = made.model, set(made.heads.values())
    scores = pcm.cot.patch_steps(model, examples)
    selection = pcm.cot.select_heads(scores, k=[2])
    assert set(selection[0].order) == heads
    size = model.cfg.n_layers * model.cfg.n_heads
    replaced = dict(kind=kind, mean=planted.examples(made, N, seed=9) if kind == "mean" else None)
    sizes = [1, 2, size // 2, size - 2, size - 1, size]
    found = pcm.cot.knock_out_curve(model, examples, scores, sizes=sizes, order=("least", "most"), n_random=0, **replaced)
    assert found.overall()["mean"].sel(order="least").values.tolist() == [1, 1, 1, 1, 1, 0, 0]
    assert found.overall()["mean"].sel(order="most").values.tolist() == [1, 0, 0, 0, 0, 0, 0]
    point = found.operating_points(order="least").iloc[-1]
    assert (point.removed, point.kept, point.accuracy, point.floor) == (size - 2, 2, 1, 0)
    many = planted.examples(made, 32)  # 16 that are reported on; 15 of 15 are no sign yet of a share above 0.8
    of_sets = pcm.cot.knock_out_curve(model, many, selection, **replaced)
    ablated = of_sets.data["ablated"].sel(order="least").isel(size=-1).values
    assert {(int(l), int(h)) for l, h in np.argwhere(~ablated)} == heads
    point = of_sets.operating_points().iloc[-1]
    assert point.kept == 2 and point.accuracy == 1 and point.gain > 0.5


def test_no_set_of_heads_is_needed(null):
    """Whatever is ablated, nothing changes: agreement stays, no set is better than a random one, no claim is borne out."""
    model, examples, silent = null
    scores = np.arange(16.0).reshape(4, 4) if silent else pcm.cot.patch_steps(model, examples, right=EVERY)
    found = pcm.cot.knock_out_curve(model, examples, scores, right=EVERY, kind="zero", n_random=4, sizes=[4, 8, 12, 16])
    change = np.abs(found.data["log_prob"] - found.data["log_prob"].isel(size=0))
    assert float(change.max()) < (1e-5 if silent else 0.3)  # of a planted circuit: about 4 nats
    assert float(found.data["agrees"].min()) == 1 and float(found.data["right"].max()) == 0
    point = found.operating_points().iloc[-1]
    assert point.gain == 0 and point.gain_low == -point.gain_high < 0  # examples that all agree leave a width
    transfer = pcm.cot.set_transfer(model, examples, _of_steps(scores), k=4, right=EVERY, kind="zero", n_random=4)
    verdict = BY_NAME["shared_heads"].verdict({"knock_out_curve": found, "set_transfer": transfer})
    assert verdict.word == "not borne out" and "80% of the steps" in verdict.evidence
    theirs = pcm.cot.knock_out_curve(
        model, examples, scores, right=EVERY, kind="zero", n_random=4, sizes=[8, 16], definition="paper"
    )
    assert theirs.operating_points().iloc[-1].kept == 0  # no head is needed to agree
    results = {"knock_out_curve": theirs, "set_transfer": transfer}
    assert BY_NAME["shared_heads"].verdict(results).word != "borne out"  # a gain of 0 in 6 examples denies nothing


def _of_steps(scores):
    """Averages as scores of every example at the one step."""
    return np.broadcast_to(scores, (MANY, 1, *scores.shape)) if isinstance(scores, np.ndarray) else scores


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["shared", "apart"])
def two_steps(request):
    """A model in which two kinds of steps use the same heads, or heads of their own, and what is measured on it."""
    made, examples = planted.two_circuits(apart=request.param), planted.two_step_examples(36)
    given = dict(right=pcm.cot.grade(made.model, examples), kind="zero")
    scores = pcm.cot.patch_steps(made.model, examples, right=given["right"])
    curve = pcm.cot.knock_out_curve(made.model, examples, scores, sizes=(8, 12, 13, 14, 15), **given)
    kept = int(curve.operating_points().iloc[-1].kept)
    return made, curve, pcm.cot.set_transfer(made.model, examples, scores, k=kept, **given), request.param


def test_one_set_for_all_steps_is_no_evidence_that_they_share_heads(two_steps):
    """In both models a quarter of the heads or less keeps all steps right, and far more than random sets of the same layers:
    only where the steps share them do the heads of one serve the other."""
    made, curve, transfer, apart = two_steps
    point = curve.operating_points().iloc[-1]
    kept = {(int(l), int(h)) for l, h in np.argwhere(~curve.data["ablated"].isel(order=0, size=int(point["size"])).values)}
    assert kept == set(made.heads.values()) and point.accuracy == 1 and point.gain_low > 0
    own, other = (transfer.transfer(pairs)["accuracy"] for pairs in ("own step", "other kinds"))
    assert own.mean == 1 and other.mean == (0 if apart else 1)
    verdict = BY_NAME["shared_heads"].verdict({"knock_out_curve": curve, "set_transfer": transfer})
    if apart:
        assert verdict.word == "not borne out"
        assert verdict.evidence.endswith("not so: 80% of the steps of other kinds by one step's heads")
    else:
        assert verdict.word == "borne out"
    assert "20 random sets with as many heads in each layer keep" in verdict.null
    assert "of steps of other kinds, with heads exchanged at random within their layers (20 times)" in verdict.null


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_either_of_two_writers_is_enough_and_one_is_needed(kind):
    made, examples = case("parallel", question=(2, 1), generated=(1, 3))
    question, generated, marker = (made.heads[role] for role in ("question", "generated", "marker"))
    sets = {
        "planted": [question, generated, marker],
        "question": [question, marker],
        "generated": [generated, marker],
        "marker": [marker],
        "noise": made.noise_heads,
        "none": [],
    }
    replaced = dict(kind=kind, mean=planted.examples(made, N, seed=9) if kind == "mean" else None)
    found = pcm.cot.keep_only(made.model, examples, sets, n_random=0, **replaced)
    assert found.accuracy()["mean"].sel(step=0).values.tolist() == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("options", INDUCTION)
def test_removal_by_measured_scores_takes_what_is_needed_first(options):
    made, examples = case("induction", **options)
    scores = pcm.cot.patch_steps(made.model, examples)
    size = scores.data["effect"].isel(example=0, step=0).size
    within = np.ones(scores.data["effect"].shape[2:], bool)
    replaced = dict(kind="zero", n_random=0)
    most = pcm.cot.remove(made.model, examples, within, scores, sizes=[1, 2, 3], **replaced)
    assert most.accuracy()["mean"].sel(step=0).values.tolist() == [1, 0] and most.about["settings"]["stopped"]
    least = pcm.cot.remove(made.model, examples, within, scores, sizes=[1, size - 2, size - 1], order="least", **replaced)
    assert least.accuracy()["mean"].sel(step=0).values.tolist() == [1, 1, 1, 0]
    kept = np.argwhere(least.data["mask"].isel(size=2, step=0).values)
    assert {(int(l), int(h)) for l, h in kept} == set(made.heads.values())
    # Taken out of the planted heads alone, by the authors' count: the lowest of all heads are not among them.
    theirs = pcm.cot.remove(
        made.model, examples, list(made.heads.values()), scores, sizes=[size - 2], order="least", definition="paper", **replaced
    )
    assert theirs.accuracy()["mean"].sel(step=0).values.tolist() == [1, 1] and int(theirs.data["kept"].values[-1, 0]) == 2


# ---- where the answer comes from -----------------------------------------------------------------------------------


def test_sources_are_those_that_were_planted():
    made, examples = case("parallel")
    found = pcm.cot.answer_sources(made.model, examples)
    share = found.shares()["mean"].sel(step=0)
    assert share.sel(place=["few_shot", "question", "generated", "none"]).values.tolist() == [0, 0.5, 0.5, 0]
    assert float(np.abs(found.data["drop"]).max()) < 0.01  # each of the two is enough: neither part is needed
    one, cases = case("copying")
    alone = pcm.cot.answer_sources(one.model, cases)
    number = alone.data["pathways"].sel(step=0)  # the decoy, which makes the norm larger, may count as one without a source
    assert (number.sel(place=["few_shot", "question", "generated"]) == [0, 1, 0]).all() and int(
        number.sel(place="none").sum()
    ) <= 1
    drop, control = (alone.data[name].sel(step=0, segment="question") for name in ("drop", "control_drop"))
    assert float(drop.min()) > 0.9 and float(np.abs(control).max()) < 0.05


def test_no_source_is_found(null):
    model, examples, silent = null
    found = pcm.cot.answer_sources(model, examples, right=EVERY)
    assert float(found.data["pathways"].max()) == 0 and np.isnan(found.shares()["mean"]).all()
    for name in ("drop", "control_drop"):
        assert float(np.abs(found.data[name]).max()) < (1e-7 if silent else 0.005)
    assert BY_NAME["sources"].verdict({"answer_sources": found}).word != "borne out"
    assert found.findings() and len(found.table()) == 4


@pytest.mark.parametrize("first", [3, 2])
def test_the_layer_from_which_heads_write_words_of_the_prompt(first):
    made, examples = case("abiding", first=first)
    found = pcm.cot.context_abidance(made.model, examples)
    np.testing.assert_array_equal(mean(found, "abides"), (np.arange(6) >= first)[:, None] * np.ones(2))
    jump = found.jump()
    assert jump.mean == jump.low == jump.high == first
    assert BY_NAME["abidance"].verdict({"context_abidance": found}).word == "borne out"


@pytest.mark.parametrize("options", COPYING)
def test_the_copy_head_writes_a_word_of_the_prompt_and_its_decoy_no_word(options):
    made, examples = case("copying", **options)
    found = pcm.cot.context_abidance(made.model, examples)
    assert mean(found, "abides")[made.heads["writer"]] == 1 and mean(found, "peak")[made.heads["writer"]] > 0.99
    layer, head = made.heads["decoy"]
    assert np.isnan(found.data["abides"].sel(layer=layer, head=head)).all()


def test_no_layer_from_which_heads_write_words_of_the_prompt():
    """Each head of noise has a word of its own that it likes best, whatever the prompt, and that suits other prompts as
    well."""
    words = []
    for seed in range(6):
        made, examples = case("nothing", n=MANY, n_layers=6, seed=seed)
        found = pcm.cot.context_abidance(made.model, examples, right=EVERY)
        jump = found.jump()
        assert np.isnan([jump.mean, jump.low, jump.high]).all() and "rises at no layer beyond chance" in found.findings()[1]
        words.append(BY_NAME["abidance"].verdict({"context_abidance": found}).word)
        assert abs(float(found.data["abides"].mean()) - float(found.data["chance"].mean())) < 0.15
    assert words.count("borne out") == 0


def test_heads_that_write_nothing_abide_by_nothing():
    made, examples = case("nothing", n=MANY, silent=True)
    found = pcm.cot.context_abidance(made.model, examples, right=EVERY)
    assert np.isnan(found.data["abides"]).all() and np.isnan(found.jump().mean)
    assert found.findings() == ["no head's output makes any token likelier than another"]
    assert BY_NAME["abidance"].verdict({"context_abidance": found}).word == "not decided"


# ---- what is generated ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", INDUCTION)
def test_the_horizon_lies_after_the_writer(options):
    """The text goes on as in the prompt. Corrupted in the writer's layer the first word is the other question's; in that of
    the previous-token head, the first word's successor is looked for where the other question has it."""
    made, examples = case("induction", words=4, **options)
    found = pcm.cot.decision_horizon(made.model, examples)
    previous, writer = made.heads["previous"][0], made.heads["writer"][0]
    same, agreement = (found.data[name].sel(sentences=0) for name in ("same", "agreement"))
    for layer in range(made.model.cfg.n_layers):
        assert (same.sel(layer=layer) == (layer not in (previous, writer))).all()
    assert (found.data["clean_gold"] == 1).all() and (found.data["swapped"] == 0).all()
    assert (agreement.sel(layer=writer) == 0).all() and (agreement.sel(layer=previous) <= 0.25).all()
    assert found.horizon() == {0: writer + 1}


def test_no_layer_matters_to_what_is_generated(null):
    model, examples, _ = null
    found = pcm.cot.decision_horizon(model, examples, right=EVERY)
    assert (found.data["same"] == 1).all() and found.horizon() == {0: 0}
