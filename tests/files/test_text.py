"""Stored text is shown and never obeyed."""

from __future__ import annotations

import pytest

from pycotmech.files.text import markdown, printable


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
