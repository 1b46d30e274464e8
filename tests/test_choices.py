"""A name that is none of those allowed: the error says what came, what could have been given and what was probably meant."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech._choices import LISTED, alike, check_choice, did_you_mean, shortened, unknown_choice
from pycotmech.model.loading import load
from pycotmech.paper.entries import chosen as chosen_entries
from pycotmech.paper.settings import named
from pycotmech.runs import Settings
from pycotmech.runs.results import AttentionResults, SweepResults
from pycotmech.runs.save_figures import Drawing, check_arguments, chosen

METRICS = ("kl", "logit_diff", "prob")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("kll", ["kl"]),
        ("KL", ["kl"]),
        ("logit-diff", ["logit_diff"]),
        ("Logit Diff", ["logit_diff"]),
        ("logitdiff", ["logit_diff"]),
        ("probs", ["prob"]),
        ("accuracy", []),
        ("", []),
        ("  ", []),
        (None, []),
        (3, []),
        (torch.zeros(2), []),
    ],
)
def test_what_was_probably_meant(given, meant):
    assert alike(given, METRICS) == meant


def test_the_most_similar_names_come_first_and_poor_ones_not_beside_good_ones():
    names = ("step_1", "step_10", "overview", "step_2", "step_3", "step_4")
    assert alike("step_1", names)[0] == "step_1" and alike("step1", names)[0] == "step_1"
    assert alike("step_9", names) == ["step_1", "step_2", "step_3"]  # three of those that are equally similar
    assert alike("ovrview", [*names, *names]) == ["overview"]  # once
    assert alike("step_9", names, n=1) == ["step_1"] and alike("step_9", names, least=0.9) == []
    assert alike("x", [None, 3, "x"]) == ["x"]  # what is no text is never alike


def test_one_wording():
    assert unknown_choice("metric", "kll", METRICS) == (
        "metric: got 'kll'; expected one of kl, logit_diff, prob; did you mean 'kl'?"
    )
    assert unknown_choice("only", "x", ["a", "b"], several=True, also="E1 to E13") == (
        "only: got 'x'; expected some of a, b, or E1 to E13"
    )
    assert unknown_choice("step", 7, [1, 5]) == "step: got 7; expected one of 1, 5"
    assert unknown_choice("name", "a", [], none="nothing is finished") == "name: got 'a'; expected none: nothing is finished"
    assert did_you_mean("a c", ["a_b", "a_c"]) == "; did you mean 'a_c'?"
    assert did_you_mean("sep_1", ["step_1", "step_2"]) == "; did you mean 'step_1'?"


def test_many_names_are_shortened():
    names = [f"variable_{i}" for i in range(LISTED + 1)]
    assert shortened(names[:-1]) == ", ".join(names[:-1])
    few = "variable_0, variable_1, variable_2, variable_3, variable_4"
    assert shortened(names) == f"{LISTED + 1} names such as {few}"
    assert shortened(names, "--list") == f"{LISTED + 1} names such as {few} (--list lists all)"


def test_what_is_allowed_passes_and_nothing_else_does():
    check_choice("half", None, ("select", None))
    check_choice("half", "select", ("select", None))
    check_choice("step", np.int64(3), (np.int64(3),))
    for value in ("Select", 0, False, ["select"], np.array(["select"]), torch.zeros(2)):
        with pytest.raises(ValueError, match=r"half: got .*; expected one of select, None"):
            check_choice("half", value, ("select", None))


DRAWINGS = {
    **{name: Drawing("", "E8", None) for name in ("answer_writers", "information_flow")},
    **{f"{setting}/copy_heads": Drawing("", "E4", None) for setting in ("competing", "shuffled")},
    **{f"figure_{i}": Drawing("", "", None) for i in range(20)},
}


def test_figures_that_are_not_there_are_not_answered_by_a_page_of_names():
    with pytest.raises(ValueError) as error:
        chosen(DRAWINGS, ["E9"])
    assert str(error.value) == (
        "only: got 'E9'; expected some of 23 names such as answer_writers, information_flow, copy_heads, figure_0, figure_1 "
        "(pycotmech figures FOLDER --list lists all), or of the experiments E8, E4"
    )
    with pytest.raises(ValueError, match=r"experiments E8, E4; did you mean 'copy_heads'\?"):
        chosen(DRAWINGS, ["copy_head"])
    with pytest.raises(ValueError, match=r"did you mean 'competing/copy_heads'\?"):
        chosen(DRAWINGS, ["competing/copy_head"])
    with pytest.raises(ValueError, match="only: got 'E9'; expected none: nothing is finished"):
        chosen({}, ["E9"])


@pytest.fixture(scope="module")
def given():
    torch.manual_seed(0)
    model = pcm.Model.from_pretrained("tiny-cot")
    tokens = torch.arange(20, 32)
    corrupted = tokens.clone()
    corrupted[7] = 60
    return SimpleNamespace(model=model, pair=(tokens, corrupted), tokens=tokens)


def of(kind, names):
    """The results of a folder with these datasets, without a folder."""
    found = object.__new__(kind)
    found.folder = "results"
    vars(found)["names"] = names
    return found


@pytest.mark.parametrize(
    ("call", "message"),
    [
        # model, task, template, style
        (lambda g: load("smolm2-135m"), r"'smolm2-135m' \(did you mean 'smollm2-135m'.*\?\) is not an alias"),
        (lambda g: load("tiny-cot", dtype="bfloat"), "dtype: got 'bfloat'; .*did you mean 'bfloat16'"),
        (lambda g: pcm.cot.make_examples(1, tokenizer=g.model.tokenizer, style="evry"), "style: got 'evry'; .*mean 'every'"),
        (
            lambda g: pcm.cot.make_examples(1, tokenizer=g.model.tokenizer, ontology="fictonal"),
            "ontology: got 'fictonal'; .*mean 'fictional'",
        ),
        (lambda g: Settings(model="tiny-cot", template="chta").check(), "template: got 'chta'; .*mean 'chat'"),
        (lambda g: Settings(model="tiny-cot", order="backwards").check(), "order: got 'backwards'; .*mean 'backward'"),
        (lambda g: named(["distractor"]), "tasks: got 'distractor'; .*mean 'distractors'"),
        # site, metric, direction
        (lambda g: pcm.patch_heads(g.model, *g.pair, metric="logit-diff"), "metric: got 'logit-diff'; .*mean 'logit_diff'"),
        (lambda g: pcm.patch_heads(g.model, *g.pair, direction="denoising"), "direction: .*did you mean 'denoise'"),
        (lambda g: pcm.patch_heads(g.model, *g.pair, site="patern"), "site: unknown site 'patern'; .*mean 'pattern'"),
        (lambda g: pcm.patch_residual(g.model, *g.pair, site="resid-mid"), "site: unknown site 'resid-mid'; .*'resid_mid'"),
        (lambda g: g.model.run(g.tokens, capture=("resid_pst",)), "capture: unknown site 'resid_pst'; .*'resid_post'"),
        (lambda g: pcm.logit_lens(g.model, g.tokens, site="resid_pots"), "site: got 'resid_pots'; .*mean 'resid_post'"),
        (lambda g: pcm.ablate_heads(g.model, g.tokens, [(0, 0)], kind="means"), "kind: got 'means'; .*mean 'mean'"),
        (
            lambda g: pcm.attention_summary(g.model, g.tokens, segments={"question": slice(0, 4)}).plot(segments=["qestion"]),
            "no segment 'qestion'; .*mean 'question'",
        ),
        # analyses and what results hold
        (lambda g: chosen_entries(("copy_head",)), "only: got 'copy_head'; expected some of E1, .*did you mean 'copy_heads'"),
        (lambda g: chosen_entries(("E99",)), r"only: got 'E99'; expected some of E1, .*did you mean 'E9'\?"),
        (lambda g: of(SweepResults, ("sweeps",))["sweep"], "has no dataset 'sweep'; it has sweeps; did you mean 'sweeps'"),
        (
            lambda g: of(AttentionResults, ("attention",)).export("parket", "x"),
            "to: got 'parket'; .*did you mean 'parquet'",
        ),
        (lambda g: check_arguments(("pgn",), 100), "formats: got 'pgn'; expected some of png, svg, pdf; did you mean 'png'"),
        (lambda g: pcm.cost.device_named("h10"), "device: got 'h10'; .*did you mean 'h100'"),
    ],
)
def test_every_choice_says_what_was_meant(given, call, message):
    with pytest.raises((ValueError, KeyError, FileNotFoundError), match=message):
        call(given)
