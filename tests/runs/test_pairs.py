"""Pairs from a JSONL file: what is read, and what each mistake is called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pycotmech.runs import PromptPair, read_pairs

GOOD = {"clean": "Max is a", "corrupted": [1, 2, 3], "answer": "dog", "wrong": 7, "name": "first"}


def written(folder: Path, *lines: object) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
    return path


def test_reads_text_and_ids_and_counts_lines_as_an_editor_does(tmp_path):
    path = written(tmp_path, GOOD, "", {"clean": [5, 6], "corrupted": [5, 7]}, {"clean": "a\u2028b", "corrupted": "c"})
    first, second, third = read_pairs(path)
    assert first == PromptPair("Max is a", [1, 2, 3], "dog", 7, "first", f"{path}, line 1")
    assert second == PromptPair([5, 6], [5, 7], None, None, "line 3", f"{path}, line 3")
    assert third.clean == "a\u2028b" and third.where.endswith("line 4")


@pytest.mark.parametrize(
    ("line", "metric", "message"),
    [
        ("{", "kl", "line 2: not valid JSON"),
        ([1], "kl", "line 2: expected a JSON object with clean and corrupted, got list"),
        ({"clean": "a"}, "kl", "line 2: field 'corrupted' is missing"),
        ({"clean": "a", "corrupted": "b", "anser": "c"}, "kl", "line 2: unknown field 'anser'"),
        ({"clean": 3, "corrupted": "b"}, "kl", "line 2: field 'clean': expected text or a list of token ids, got 3"),
        ({"clean": "a", "corrupted": [1, True]}, "kl", "line 2: field 'corrupted': expected text or a list of token ids"),
        ({"clean": [1, -4], "corrupted": [1, 2]}, "kl", "line 2: field 'clean': token id -4 is negative"),
        ({"clean": "", "corrupted": "b"}, "kl", "line 2: field 'clean': the prompt is empty"),
        ({"clean": "a", "corrupted": "a"}, "kl", "line 2: fields 'clean' and 'corrupted' are the same"),
        ({"clean": "a", "corrupted": "b"}, "prob", "line 2: field 'answer' is missing; metric 'prob' needs it"),
        ({"clean": "a", "corrupted": "b", "answer": "c"}, "logit_diff", "line 2: field 'wrong' is missing"),
        ({"clean": "a", "corrupted": "b", "wrong": 1.5}, "kl", "line 2: field 'wrong': expected a word or a token id"),
        ({"clean": "a", "corrupted": "b", "name": 1}, "kl", "line 2: field 'name': expected a string, got 1"),
        ('{"clean": "a", "clean": "c", "corrupted": "b"}', "kl", "line 2: field 'clean' is given twice"),
        ("[" * 5000, "kl", "line 2: not valid JSON"),
        ('{"clean": "a \\ud800", "corrupted": "b"}', "kl", "line 2: field 'clean' holds half of a surrogate pair"),
    ],
)
def test_each_error_names_the_line_and_the_field(tmp_path, line, metric, message):
    with pytest.raises(ValueError) as caught:
        read_pairs(written(tmp_path, GOOD, line), metric=metric)
    assert message in str(caught.value)


def test_missing_empty_and_binary_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="pairs: there is no file"):
        read_pairs(tmp_path / "nothing.jsonl")
    with pytest.raises(ValueError, match="holds no pair"):
        read_pairs(written(tmp_path, "", "  "))
    (tmp_path / "binary").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="not UTF-8 text"):
        read_pairs(tmp_path / "binary")
