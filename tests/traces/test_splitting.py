"""Sentences of a text: nothing is lost, and the published rule is the published rule."""

from __future__ import annotations

import builtins

import pytest

from pycotmech.traces.splitting import covering, located, split

TEXT = "Okay, so I need x. Let me try e.g. 3.5 first.\nWait, 2x + 1 = 8? Then x = 3.5!\n\nSo it is 3.5"


@pytest.mark.parametrize("splitter", ["sentencex", "published", lambda text: text.split("\n")])
def test_the_pieces_put_together_are_the_text(splitter):
    found = split(TEXT, splitter)
    assert "".join(TEXT[a:b] for a, b in found) == TEXT
    assert all(TEXT[a:b].strip() for a, b in found)


def test_the_published_rule_cuts_after_marks_before_white_space_and_at_empty_lines():
    found = [TEXT[a:b].strip() for a, b in split(TEXT, "published")]
    assert found == [
        "Okay, so I need x.", "Let me try e.g.", "3.5 first.", "Wait, 2x + 1 = 8?", "Then x = 3.5!", "So it is 3.5",
    ]  # fmt: skip
    assert [TEXT[a:b] for a, b in split(TEXT, "published")][4].endswith("!\n\n")


def test_the_library_knows_abbreviations_and_decimals():
    found = [TEXT[a:b].strip() for a, b in split(TEXT)]
    assert "Wait, 2x + 1 = 8?" in found and not any(piece == "3.5 first." for piece in found)


def test_white_space_has_no_sentence():
    assert split(" \n\n ", "published") == [] == split("", "published")
    assert covering("  A. ", [(0, 2), (2, 5)]) == [(0, 5)]


def test_long_texts_are_cut_at_once():
    text = TEXT * 500
    assert len(split(text)) > 1500 and len(split(text, "published")) > 2500


def test_errors_name_the_splitter():
    with pytest.raises(ValueError, match="splitter: got 'nltk'"):
        split("A. B.", "nltk")
    with pytest.raises(ValueError, match=r"splitter\[1\]: 'C.' is not in the reasoning"):
        split("A. B.", lambda text: ["A.", "C."])
    with pytest.raises(ValueError, match=r"sentences\[1\]: 'A.'"):
        located("A. B.", ["B.", "A."])


def test_without_the_library_the_extra_is_named(monkeypatch):
    plain = builtins.__import__

    def blocked(name, *args, **kwargs):
        if name == "sentencex":
            raise ImportError(name)
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(ImportError, match=r"pycotmech\[traces\]"):
        split("A. B.")
