"""Stored text is shown and never obeyed."""

from __future__ import annotations

import pytest

from pycotmech.files.text import cell, markdown, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\r\nb\tc", "a\\r\\nb\\tc"),
        ("\x9b31m", "\\x9b31m"),
        ("abc\u202edcba", "abc\\u202edcba"),
        ("line\u2028break", "line\\u2028break"),
        ("half \ud800", "half \\ud800"),
        ("café, 模型, 👩‍🔬", "café, 模型, 👩‍🔬"),
    ],
)
def test_control_characters_become_escapes(text, shown):
    assert printable(text) == shown
    assert printable(text).encode("utf-8")


def test_lines_stay_lines_on_request():
    assert printable("a\n\tb\r\x1b", lines=True) == "a\n\tb\\r\\x1b"


def test_markdown_has_no_markup_of_its_own():
    assert markdown("a|b `c` [d](e) <img src=x>\n# f") == "a\\|b \\`c\\` \\[d\\](e) \\<img src=x>\\\\n# f"
    assert markdown("p < 0.05, L2H1 (+40%)") == "p < 0.05, L2H1 (+40%)"


@pytest.mark.parametrize("text", ['=cmd|"/c calc"!A1', "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_is_a_formula(text):
    assert cell(text) == "'" + text


@pytest.mark.parametrize("text", ["", "=", "-", "a=b", " wumpus"])
def test_other_cells_are_as_they_are(text):
    assert cell(text) == text
