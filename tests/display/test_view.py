"""What a view calls its cells, which are the strongest, and how it is cut into figures."""

import numpy as np
import pytest

from pycotmech.display import View


def view(values, *axes, **more):
    return View(title="A title", values=np.asarray(values, float), axes=axes, label="value", **more)


def test_names_of_cells():
    assert view(np.zeros((2, 3)), "layer", "head").place((1, 2)) == "L1H2"
    assert view(np.zeros(2), "layer").place((1,)) == "L1"
    named = view(np.zeros((2, 2, 3)), "step", "layer", "head", labels={"step": [2, 5]}, words={"step": ["decision", "copying"]})
    assert named.place((1, 0, 2)) == "step 5 copying, L0H2"
    place = view(np.zeros((2, 9, 3)), "layer", "position", "head", words={"position": [repr(" a")] * 9}, strongest_of="head")
    assert place.place((1, 7, 2)) == "L1H2, position 7 ' a'"
    assert view(np.zeros((2, 2)), "sender", "receiver", labels={"sender": ["L0H1", "L0H2"]}).place((1, 0)) == "L0H2, receiver 0"


def test_the_strongest_by_size_and_by_value():
    values = [[0.0, -3.0, np.nan], [2.0, 1.0, 0.0]]
    assert view(values, "layer", "head").strongest(3) == [((0, 1), -3.0), ((1, 0), 2.0), ((1, 1), 1.0)]
    assert view(values, "layer", "head", by_size=False).strongest(2) == [((1, 0), 2.0), ((1, 1), 1.0)]
    assert view(np.full((2, 2), np.nan), "layer", "head").strongest() == []


def test_layers_and_heads_fill_a_figure_and_the_rest_are_parts():
    values = np.arange(24.0).reshape(2, 3, 4)
    panels = view(values, "head", "layer", "step").panels()
    assert [p.name for p in panels] == ["step 0", "step 1", "step 2", "step 3"]
    np.testing.assert_array_equal(panels[1].of(values), values[:, :, 1].T)  # rows are layers
    assert view(values, "layer", "position", "x").drawn == ("layer", "x") and view(values[0, 0], "step").drawn == (None, "step")
    assert view(values, "a", "b", "c").drawn == ("b", "c")


def test_of_one_axis_the_strongest_entry_is_drawn():
    values = np.array([[[1.0, -4.0], [np.nan, 2.0]]])
    found = view(values, "layer", "position", "head", strongest_of="head")
    (panel,) = found.panels()
    assert panel.of(values).tolist() == [[-4.0, 2.0]] and found.name_of(int(panel.where[0, 0])) == "L0H1, position 0"


def test_a_name_for_each_axis():
    with pytest.raises(ValueError, match=r"axes: got \('layer',\) for values of shape \[2, 2\]"):
        view(np.zeros((2, 2)), "layer")


def test_a_line_says_the_sizes_and_the_largest():
    assert view([[0.0, -3.0]], "layer", "head", floor=0.01).line() == (
        "A title [layer: 1, head: 2]; largest L0H1 -3; noise floor 0.01"
    )
