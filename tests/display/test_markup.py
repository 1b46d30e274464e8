"""HTML of texts that would be markup, of long texts, and of tables."""

import numpy as np
import pandas as pd

from pycotmech.display import Facts, View
from pycotmech.display.markup import card, escaped, facts, html_of_table, html_of_view


def test_texts_are_escaped_and_cut():
    assert escaped("<b>&\x1b[2J") == "&lt;b&gt;&amp;\\x1b[2J"
    assert len(escaped("x" * 1000)) == 400 and escaped("x" * 1000).endswith("…")
    assert "<i>" not in card("<i>", kind="<i>") and "<i>" not in facts([("<i>", "<i>"), ("a", {"<i>": "<i>"})])


def test_a_table_says_what_is_left_out():
    frame = pd.DataFrame(np.ones((30, 20)), columns=[f"<c{i}>" for i in range(20)])
    text = html_of_table("A title", ["a finding"], frame, [("result.table()", "all of it")], "Kind")
    assert "the first 10 of 30 rows, 14 of 20 columns" in text and text.count("<tr>") == 11 and "<c0>" not in text
    assert "no value differs" in html_of_view(View(title="x", values=np.zeros(3), axes=("step",), label="y"), "Kind")


def test_a_result_of_any_size_is_small():
    values = np.random.default_rng(0).normal(size=(80, 300, 64))
    view = View(
        title="x" * 5000, values=values, axes=("layer", "position", "head"), label="y" * 500, strongest_of="head",
        words={"position": ["z" * 5000] * 300}, facts=("f" * 5000,) * 100, beside={"more": values}, floor=0.1,
    )  # fmt: skip
    assert len(html_of_view(view, "Kind")) < 30_000


def test_lines_of_text_become_facts():
    found = Facts.of_text("A title\nname: what it is\n  a note without a name\nname: again")
    assert found.title == "A title" and found.items == [
        ("name", "what it is"),
        ("", "a note without a name"),
        ("name", "again"),
    ]
