"""The table of docs/reliability.md: what the tests of faults recorded, and that nothing was lost."""

from tests.faults import table


def test_the_page_shows_the_record_and_nothing_was_lost():
    record = table.read()
    assert table.shown() == table.table(record), "run `python -m tests.faults.table`"
    assert record and all(found.get("lost", 0) == 0 and sum(found.values()) for found in record.values())
