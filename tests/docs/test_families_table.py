"""The table of docs/families.md: what the suite recorded, of every family and of every function."""

import inspect
import re

from pycotmech.model.families.refused import KINDS
from pycotmech.model.families.registry import SUPPORTED
from pycotmech.model.text_part import TYPES
from tests.cot.analyses import test_every_family as of_analyses
from tests.model import test_every_family as of_functions
from tests.reference import family_table, small_families
from tests.reference.watch import FUNCTIONS


def test_the_page_shows_the_record():
    assert family_table.shown() == family_table.table(family_table.read()), "run `python -m tests.reference.family_table`"


def test_every_family_and_function_is_there():
    shown = family_table.shown()
    assert set(SUPPORTED) <= set(small_families.FAMILIES), "a family is missing in tests/reference/small_families.py"
    assert all(f"`{name}`" in shown for name in (*SUPPORTED, *(name for name, _ in FUNCTIONS.values())))


def test_no_cell_is_empty():
    names = [name for name, _ in FUNCTIONS.values()]
    assert not [(family, name) for family, found in family_table.read().items() for name in names if not found.get(name)]


def test_every_test_of_the_suite_is_in_the_record():
    tests = {
        name
        for module in (of_functions, of_analyses)
        for name, test in inspect.getmembers(module, inspect.isfunction)
        if name.startswith("test_") and "case" in inspect.signature(test).parameters
    }
    assert tests == set(FUNCTIONS)


def kinds_and_words(text: str) -> dict[str, str]:
    """`model_type` -> the last column, of the rows of a table."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ") and "`model_type`" not in line]
    return {kind: what.strip() for _, kinds, what in rows for kind in re.findall(r"`(\w+)`", kinds)}


def test_the_page_says_which_models_load():
    section = family_table.PAGE.read_text("utf-8").partition("## Which models load")[2].partition("\n## ")[0]
    computed, refused = (kinds_and_words(part) for part in section.split("These are not computed."))
    assert computed.keys() == set(SUPPORTED) | set(TYPES) and len(refused) > 30
    assert all(computed[kind].endswith("its language model is used") for kind in TYPES)
    for kind, reason in refused.items():
        assert reason in KINDS[kind] if kind in KINDS else reason == "no family yet", kind
