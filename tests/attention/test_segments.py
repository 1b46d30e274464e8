"""Segments: names and labels, the first token, and every way to get them wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pycotmech.attention.segments import SegmentRule


def test_names_in_the_order_given_and_the_first_token_behind_them():
    found = SegmentRule({"b": slice(4, 6), "a": [2, -1], "one": 7}).label(10)
    assert found.names == ("b", "a", "one", "first")
    assert found.labels.dtype == torch.int32
    assert found.labels.tolist() == [3, -1, 1, -1, 0, 0, -1, 2, -1, 1]


def test_the_first_token_stays_in_a_segment_that_holds_it():
    found = SegmentRule({"all": slice(None)}).label(4)
    assert found.names == ("all",) and found.labels.tolist() == [0, 0, 0, 0]
    assert SegmentRule(None).label(3).labels.tolist() == [0, -1, -1]


@pytest.mark.parametrize("labels", [[-1, 1, 1, -1], np.array([-1, 1, 1, -1]), torch.tensor([-1, 1, 1, -1])])
def test_labels_keep_their_numbers(labels):
    found = SegmentRule(labels).label(4)
    assert found.names == ("0", "1", "first") and found.labels.tolist() == [2, 1, 1, -1]


def test_arrays_of_any_strides_and_numbers_of_numpy_are_positions():
    found = SegmentRule({"a": np.arange(6)[::-2], "b": np.int64(2)}).label(6)
    assert found.labels.tolist() == [2, 0, 1, 0, -1, 0]
    assert SegmentRule({"a": np.int64(4)}, growing=True).label(6).labels.tolist() == [1, -1, -1, -1, 0, -1]


def test_each_example_of_a_batch_has_its_own_first_token():
    found = SegmentRule({"a": slice(1, 3)}).label(5, torch.tensor([0, 1, 3]))
    assert found.names == ("a", "first")
    assert found.labels.tolist() == [[1, 0, 0, -1, -1], [-1, 0, 0, -1, -1], [-1, 0, 0, 1, -1]]


def test_growing_keys_join_open_slices_and_planned_positions():
    rule = SegmentRule({"later": slice(4, None), "planned": [2, 3]}, growing=True)
    assert rule.label(3).labels.tolist() == [2, -1, 1]
    assert rule.label(6).labels.tolist() == [2, -1, 1, 1, 0, 0]
    assert SegmentRule([0, 0], growing=True).label(4).labels.tolist() == [0, 0, -1, -1]


@pytest.mark.parametrize(
    "segments, message",
    [
        ({"a": slice(0, 5), "b": [4, 6]}, "'b' and 'a' overlap at position 4"),
        ({"a": slice(2, 11)}, r"segments\['a'\].*outside the 10 tokens"),
        ({"a": slice(-11, None)}, "outside the 10 tokens"),
        ({"a": [10]}, "position 10 is outside"),
        ({"a": [-11]}, "position -11 is outside"),
        ({"a": slice(5, 5)}, "holds no token"),
        ({"a": []}, r"segments\['a'\]: is empty"),
        ({"first": slice(2, 4)}, "the name 'first' is kept"),
        ([0] * 9, "got 9 labels for 10 tokens"),
        ([-2] + [0] * 9, "-1 .none. or 0 and up, got -2"),
        ([2**32] + [0] * 9, "expected integers of 32 bits"),
        ({"a": [2**32 + 3]}, r"segments\['a'\]: got 4294967299"),
        (torch.zeros(2, 10, dtype=torch.long), r"expected \[T\] or \[1, T\]"),
    ],
)
def test_wrong_values(segments, message):
    with pytest.raises(ValueError, match=message):
        SegmentRule(segments).label(10)


@pytest.mark.parametrize(
    "segments, message",
    [
        ({3: [1]}, "names must be strings"),
        ({"a": True}, "expected integers"),
        ({"a": [1.5]}, r"segments\['a'\]: expected integers"),
        ({"a": "xyz"}, "expected integers"),
        ("question", "expected a mapping"),
        (slice(2, 4), "expected a mapping"),
        (torch.ones(10), "expected integers"),
        (torch.ones(10, dtype=torch.bool), "expected integers"),
    ],
)
def test_wrong_types(segments, message):
    with pytest.raises(TypeError, match=message):
        SegmentRule(segments).label(10)


@pytest.mark.parametrize("segments", [{"a": [-1]}, {"a": slice(-3, None)}])
def test_growing_keys_are_counted_from_the_front(segments):
    with pytest.raises(ValueError, match=r"segments\['a'\]"):
        SegmentRule(segments, growing=True).label(10)


def test_an_overlap_of_growing_segments_is_found_at_once():
    with pytest.raises(ValueError, match="overlap at position 30"):
        SegmentRule({"a": slice(20, 40), "b": slice(30, None)}, growing=True)
