"""The comparison of three libraries on one question: what it counts, compares and shows."""

from benchmarks import three_ways
from tests.reference import generated


def test_the_page_shows_the_record():
    assert generated.shown(three_ways.PAGE) == three_ways.table(three_ways.read())


def test_lines_recorded_are_those_of_the_page():
    shown = three_ways.snippets()
    assert list(three_ways.RESULTS) and set(shown) == set(three_ways.RESULTS)
    for row in (three_ways.read() or {"rows": []})["rows"]:
        assert row.get("lines") in (None, three_ways.lines(shown[row["library"]])), row["library"]


def test_lines_are_those_of_code():
    snippet = "from a import b\n\n# why\nx = b(\n    1,\n)\nfor i in x:\n    i.y  # z\n"
    assert three_ways.lines(snippet) == 4


def test_ours_answers_in_this_process_and_agrees_with_itself():
    row = three_ways.answer("pycotmech", "tiny-cot", 1)
    assert row["seconds"] > 0 and row["peak"] >= row["before"] > 0 and row["tokens"] > 10
    (same,) = three_ways.compared([row])
    assert same["difference"] == 0 and "values" not in same


def test_a_library_that_disagrees_gets_no_figures():
    ours = {"library": "pycotmech", "version": "1", "lines": 3, "seconds": 1.0, "peak": 9, "before": 5, "values": [[0.0, 1.0]]}
    theirs = {**ours, "library": "nnsight", "seconds": 30.0}
    rows = three_ways.compared([ours, theirs, {**theirs, "library": "pyvene", "values": [[0.0, 1.1]]}])
    record = {"model": "m", "tokens": 7, "heads": 2, "threads": 1, "machine": "a machine", "date": "2026-01-01", "rows": rows}
    shown = three_ways.table(record)
    assert "| nnsight 1 | 3 | 30.0 | 30 times as long | 9 | 5 |" in shown
    assert "| pyvene | | no figures: differs by up to 0.1, of effects that span 1 | | | |" in shown
