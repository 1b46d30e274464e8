"""Exports of results folders to MIB and CircuitsVis: the values that arrive there, and what needs the model."""

from __future__ import annotations

import json

import numpy as np
import pytest

import pycotmech as pcm
from pycotmech import paper
from pycotmech.exports import mib_circuit
from pycotmech.runs import ResultAxes, Settings, SweepStore
from pycotmech.runs.attention import summarise_text
from pycotmech.runs.report import by_step
from pycotmech.runs.store import read
from tests.runs.fake_circuitsvis import drawn as drawn
from tests.runs.synthetic import sweep_of

SIZES = {"n_layers": 4, "n_heads": 3, "d_model": 12, "parallel": False}


def sweeps(folder, *, steps=(5, 9), sizes=SIZES):
    axes = ResultAxes(["a", "b"], list(steps), ["induction"] * len(steps), n_layers=4, n_heads=3)
    identity = {"model": "m", "metric": "kl", "direction": "denoise", "positions": "all"}
    model = {"name": "org/My model", "description": "", "notes": [], **({"sizes": sizes} if sizes else {})}
    about = {"model": model, "threads": 1, "created": "now", "versions": {"torch": "2"}}
    store = SweepStore.create(folder, axes, identity=identity, about=about)
    for e in range(2):
        store.grade(e, [1] * len(steps))
        store.finish(e, list(range(len(steps))), [sweep_of(10 * e + s) for s in range(len(steps))], 1.0)
    return folder


@pytest.fixture(scope="module")
def paper_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper") / "out"
    paper.run(Settings(model="tiny-cot", examples=2, shots=2, steps=(2, 5)), folder, only=("patch_steps",))
    return folder


def scores_of(path, n_layers, n_heads):
    nodes = json.loads(path.read_text())["nodes"]
    return np.array([[nodes[f"a{l}.h{h}"]["score"] for h in range(n_heads)] for l in range(n_layers)])


def test_mib_holds_the_effects_of_one_step(tmp_path):
    results = pcm.open_results(sweeps(tmp_path / "run"))
    (path,) = results.export("mib", tmp_path / "circuits", step=9)
    assert path == tmp_path / "circuits" / "step-9_My-model" / "importances.json"
    # The ratio of means: the two examples lie equally far from their clean run.
    expected = (sweep_of(1).effect + sweep_of(11).effect) / 2
    np.testing.assert_allclose(scores_of(path, 4, 3), expected, rtol=1e-6)
    assert json.loads(path.read_text())["cfg"] == {"n_layers": 4, "n_heads": 3, "parallel_attn_mlp": False, "d_model": 12}
    (named,) = results.export("mib", tmp_path / "circuits", step=9, task="ioi", model="gpt2")
    assert named.parent.name == "ioi_gpt2" and named.read_text() == path.read_text()


def test_a_single_step_need_not_be_named(tmp_path):
    (path,) = pcm.open_results(sweeps(tmp_path / "run", steps=(5,))).export("mib", tmp_path)
    np.testing.assert_allclose(scores_of(path, 4, 3), (sweep_of(0).effect + sweep_of(10).effect) / 2, rtol=1e-6)


def test_mib_of_the_paper_holds_its_restoration(paper_folder, tmp_path):
    results = pcm.open_results(paper_folder)
    scores = results.analysis("patch_steps").scores()
    step = int(scores["step"].values[np.flatnonzero((scores["n"] > 0).any(("layer", "head")).values)[0]])
    (path,) = results.export("mib", tmp_path, step=step)
    model = pcm.Model.from_pretrained("tiny-cot")
    expected = scores["mean"].sel(step=step).transpose("layer", "head").values
    assert json.loads(path.read_text()) == mib_circuit(expected, model.cfg)


def test_circuitsvis_of_sweeps_has_steps_for_tokens(tmp_path, drawn):
    results = pcm.open_results(sweeps(tmp_path / "run"))
    (page,) = results.export("circuitsvis", tmp_path / "page.html")
    assert "drawn" in page.read_text() and drawn["tokens"] == [" 5 induction", " 9 induction"]
    expected = by_step(read(tmp_path / "run"))["restoration"].transpose("step", "layer", "head")
    np.testing.assert_allclose(drawn["activations"], expected, rtol=1e-6)


def test_circuitsvis_of_a_paper(paper_folder, tmp_path, drawn):
    results = pcm.open_results(paper_folder)
    results.export("circuitsvis", tmp_path / "page.html")
    mean = results.analysis("patch_steps").scores()["mean"].transpose("step", "layer", "head").values
    np.testing.assert_allclose(drawn["activations"], mean[np.isfinite(mean).any((1, 2))], rtol=1e-6)


def test_circuitsvis_of_attention_shows_what_each_token_receives(tmp_path, drawn):
    summarise_text("The cat is a cat.", tmp_path / "out", model="tiny-cot")
    results = pcm.open_results(tmp_path / "out")
    results.export("circuitsvis", tmp_path / "page.html")
    table = results.table("tokens")
    assert drawn["activations"].shape == (len(table), 4, 8) and drawn["tokens"] == table["text"].tolist()
    np.testing.assert_allclose(drawn["activations"].mean((1, 2)), table["received"], rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"to": "headvis"}, r"to: headvis cannot .* call pycotmech\.exports\.write_headvis\(folder, model, prompts"),
        ({"to": "mib"}, "step: missing; expected one of 5, 9"),
        ({"to": "mib", "step": 7}, "step: got 7; expected one of 5, 9"),
        ({"to": "mib", "step": 5, "name": "other"}, "name: got 'other'; expected one of sweeps"),
        ({"to": "mib", "variables": ["effect"]}, "variables: belong to tables and arrays; expected none with mib"),
        ({"to": "mib", "step": 5, "task": "a/b"}, "task: got 'a/b'"),
        ({"to": "csv", "step": 5}, "step: belongs to mib; expected none with csv"),
        ({"to": "circuitsvis", "task": "ioi"}, "task: belongs to mib; expected none with circuitsvis"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_written(tmp_path, given, message, drawn):
    results = pcm.open_results(sweeps(tmp_path / "run"))
    with pytest.raises(ValueError, match=message):
        results.export(**{"path": tmp_path / "new", **given})
    assert not [p for p in (tmp_path / "new").rglob("*") if p.is_file()]


def test_a_folder_without_sizes_names_the_call_with_the_model(tmp_path):
    results = pcm.open_results(sweeps(tmp_path / "run", sizes=None))
    with pytest.raises(ValueError, match=r"exports\.mib_circuit\(pycotmech\.open_results\(folder\)\.head_scores\(step=5\)"):
        results.export("mib", tmp_path / "new", step=5)
    other = pcm.open_results(sweeps(tmp_path / "other", sizes={**SIZES, "n_heads": 5}))
    with pytest.raises(ValueError, match=r"holds scores \[4, 3\] of a model of \[4, 5\]"):
        other.export("mib", tmp_path / "new", step=5)


def test_attention_and_a_paper_without_e1_name_the_function(tmp_path, paper_folder):
    import shutil

    summarise_text("The cat.", tmp_path / "out", model="tiny-cot")
    with pytest.raises(ValueError, match=r"no patching of heads \(attention\)\. With the model call .*mib_circuit"):
        pcm.open_results(tmp_path / "out").export("mib", tmp_path / "new")
    without = shutil.copytree(paper_folder, tmp_path / "paper")
    shutil.rmtree(without / "data" / "patch_steps.zarr")
    with pytest.raises(ValueError, match=r"no patch_steps \(E1\)\. With the model call .*circuitsvis_attention"):
        pcm.open_results(without).export("circuitsvis", tmp_path / "new.html")
