"""How docstrings of the house's style become Markdown for the reference."""

from tests.docs import site_parts

markdown = site_parts.load("house_style").markdown


def test_names_become_a_list():
    text = "Does it.\n\nclean, other: ids [T],\n    aligned.\nread: where.\n\nReturns a `Sweep`: [L, H].\nRaises ValueError.\n"
    assert markdown(text) == (
        "Does it.\n\n* **clean, other**: ids \\[T\\],\n    aligned.\n* **read**: where.\n\n"
        "**Returns** a `Sweep`: \\[L, H\\].\n\n**Raises** ValueError.\n"
    )


def test_nothing_is_markup_by_accident():
    assert markdown("<z W_O, W_U[v]> of `x[l][h]`, 2 * 3.") == "&lt;z W_O, W_U\\[v\\]&gt; of `x[l][h]`, 2 \\* 3.\n"


def test_examples_stay_code_and_tests_are_left_out():
    assert markdown("A.\n\n    x = f[1](2)\n\nTests: `test_a.py` for\n`b`.\n") == "A.\n\n    x = f[1](2)\n"


def test_parameters_inside_a_line_are_set_apart():
    text = "A.\n\nseed: of draws. read, progress: where. For k: v. length: of it."
    assert markdown(text, ["seed", "read", "progress"]).endswith(
        "* **seed**: of draws. **read, progress**: where. For k: v. length: of it.\n"
    )


def test_a_sentence_that_goes_on_without_indentation_stays_with_its_name():
    text = "A.\n\nids: every prompt of\nevery example.\nMore."
    assert markdown(text) == "A.\n\n* **ids**: every prompt of\n    every example.\n\nMore.\n"
