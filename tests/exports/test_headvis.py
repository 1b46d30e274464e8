"""The HeadVis tree: every number against the full patterns of the Hugging Face model, and every field that the viewers read."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.exports import patterns, write_headvis
from tests.reference import eager
from tests.reference.tiny import tiny_llama

TEXTS = [[1, 5, 9, 5, 9, 9, 3], [1, 2, 3, 4], [7, 7, 7, 8, 7, 8, 7, 8], [4, 2], [1, 9, 1, 9, 1]]


@pytest.fixture(scope="module")
def hf():
    return tiny_llama(n_heads=4, n_key_value_heads=2)


@pytest.fixture(scope="module")
def model(hf):
    return pcm.Model(hf, name="../../etc/<b>tiny</b>")


@pytest.fixture(scope="module")
def tree(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("headvis")
    return write_headvis(folder, model, TEXTS, dataset="my/texts", n_intervals=2, samples=1, top_samples=2, threshold=0.2)


@pytest.fixture(scope="module")
def truth(hf) -> list[np.ndarray]:
    """The patterns of each text, [L, H, T, T]."""
    return [eager.patterns(hf, torch.tensor(t), hf.config.num_hidden_layers).double().numpy() for t in TEXTS]


def loaded(path):
    text = path.read_text("utf-8")
    assert not any(c in text for c in "<>&")
    return json.loads(text)


def test_the_tree_stays_in_its_folder_and_has_the_files_that_viewers_read(tree, model):
    assert tree.parts[-3:] == ("etc-b-tiny-b", "headvis", "my-texts")
    files = {str(p.relative_to(tree)) for p in tree.rglob("*") if p.is_file()}
    heads = {f"heads/L{l}H{h}.json" for l in range(model.cfg.n_layers) for h in range(model.cfg.n_heads)}
    assert files == {"config.json", "scatter_data.json", "server_config.json", "attributions/manifest.json", *heads}
    config = loaded(tree / "config.json")
    assert {
        "model_name", "np_model_id", "dataset_name", "heads", "n_layers", "n_heads", "n_intervals", "metrics",
        "metric_descriptions", "head_data_pattern", "has_umap", "umap_heads", "custom_plots", "custom_tables",
        "statistics_display", "pipeline_config",
    } == set(config)  # fmt: skip
    required = {"model_name", "dataset_name", "n_sequences", "seq_len", "dtype", "attn_implementation"}
    assert required <= set(config["pipeline_config"]) and config["heads"][-1] == [model.cfg.n_layers - 1, 3]
    assert loaded(tree / "server_config.json") == {} and loaded(tree / "attributions" / "manifest.json") == {}


def test_metrics_are_those_of_the_full_patterns(tree, truth, model):
    rows = loaded(tree / "scatter_data.json")
    assert [(r["layer"], r["head"]) for r in rows] == [tuple(p) for p in loaded(tree / "config.json")["heads"]]
    n = sum(map(len, TEXTS))
    for row in rows:
        p = [t[row["layer"], row["head"]] for t in truth]
        d = [np.abs(np.subtract.outer(range(len(t)), range(len(t)))) for t in TEXTS]
        mean = sum((a * b).sum() for a, b in zip(p, d)) / n
        induction, repeats = 0.0, 0
        for a, text in zip(p, TEXTS):
            for q, token in enumerate(text):
                keys = [k + 1 for k in range(q) if text[k] == token]
                repeats += bool(keys)
                induction += sum(a[q, k] for k in keys if a[q, k] >= 0.01)
        expected = {
            "self_attention_score": sum(np.trace(a) for a in p) / n,
            "prev_token_score": sum(np.trace(a, -1) for a in p) / (n - len(TEXTS)),
            "pattern_entropy": -sum((a[a > 0] * np.log(a[a > 0])).sum() for a in p) / n,
            "qk_distance": mean,
            "qk_distance_variance": sum((a * b**2).sum() for a, b in zip(p, d)) / n - mean**2,
            "induction_score": induction / repeats,
        }
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, abs=1e-4), (row, name)


def test_kept_texts_hold_the_heaviest_keys_of_each_row(tree, truth):
    for path in (tree / "heads").iterdir():
        l, h = map(int, path.stem[1:].split("H"))
        head = loaded(path)
        largest = np.array([t[l, h][1:, 1:].max() for t in truth])
        order = np.argsort(largest, kind="stable")
        low, high = np.array_split(order, 2)
        assert [s["interval"] for s in head["sequences"]] == [1, 2, 2]
        assert {s["sequence_id"] for s in head["sequences"][1:]} == set(high[::-1][:2].tolist())
        assert head["sequences"][0]["sequence_id"] in low
        assert head["statistics"] == {"n_samples": 3, "mean_max_activation": pytest.approx(largest.mean(), abs=1e-4)}
        assert sum(head["histogram"]["bin_values"]) == len(TEXTS)
        mass = 0.0
        for s in head["sequences"]:
            p, T = truth[s["sequence_id"]][l, h], s["seq_len"]
            assert s["tokens"] == list(map(str, TEXTS[s["sequence_id"]]))
            expected = {q * T + k: p[q, k] for q in range(T) for k in range(T) if p[q, k] >= 0.2}
            assert s["attention_indices"] == sorted(expected)
            assert np.allclose(s["attention_values"], [expected[i] for i in s["attention_indices"]], atol=1e-4)
            assert s["max_activation"] == pytest.approx(largest[s["sequence_id"]], abs=1e-4)
            mass += sum(s["attention_values"])
        assert sum(head["qk_distance_histogram"]["bin_values"]) == pytest.approx(mass, abs=1e-2)
        assert sum(t["weight"] for t in head["top_key_tokens"]) == pytest.approx(mass, abs=1e-2)
        assert set(head) == {
            "sequences", "qk_distance_histogram", "top_query_tokens", "top_key_tokens", "histogram", "statistics",
        }  # fmt: skip


def test_patterns_in_pieces_are_the_same(model, truth, monkeypatch):
    monkeypatch.setattr(patterns, "_ENTRIES", 40)
    found = np.zeros_like(truth[0])

    def see(l, first, p):
        found[l, :, first : first + len(p)] = p.transpose(0, 1).numpy()

    patterns.watch_patterns(model, torch.tensor(TEXTS[0]), see)
    assert np.allclose(found, truth[0], atol=1e-5)


def test_layers_that_are_not_asked_for_are_not_shown(model):
    seen = []
    patterns.watch_patterns(model, torch.tensor(TEXTS[0]), lambda l, _first, p: seen.append((l, len(p))), [1])
    assert seen == [(1, len(TEXTS[0]))]


def test_links_are_not_followed_and_bad_arguments_are_named(model, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "m").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="is a symbolic link; nothing is written through it"):
        write_headvis(tmp_path / "tree", model, TEXTS, dataset="d", model_id="m")
    assert not list((tmp_path / "outside").iterdir())
    for more, message in (
        ({"dataset": "../.."}, "dataset: got '../..'; expected a name"),
        ({"dataset": "d", "threshold": math.nan}, "threshold: got nan"),
        ({"dataset": "d", "n_intervals": 0}, "n_intervals"),
    ):
        with pytest.raises(ValueError) as caught:
            write_headvis(tmp_path / "new", model, TEXTS, **more)
        assert message in str(caught.value) and not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match=r"prompts\[1\]: has 1 token; expected two or more"):
        write_headvis(tmp_path / "new", model, [[1, 2], [1]], dataset="d")
