"""Figures show the numbers they are given: read back from the drawn image and its axes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.figures.heatmap import maps_figure
from pycotmech.runs.report import by_step, overview_figure, step_figure
from tests.reference.close import assert_allclose
from tests.reference.tiny import tiny_llama
from tests.runs.report.test_aggregate import dataset


def image(figure):
    return figure.axes[0].images[0]


@pytest.fixture(scope="module")
def steps():
    effect = np.random.default_rng(0).normal(size=(3, 4, 5, 6)) * 0.2
    effect[:, 2] = np.nan
    ones = np.ones((3, 4))
    state = ones.copy()
    state[:, 2] = 2
    data = dataset(effect, ones, 0 * ones, state, metric="kl")
    data.attrs["about"]["model"]["notes"] = ["tuned by an adapter"]
    return by_step(data)


def test_a_step_is_drawn_layer_upward_centred_on_zero(steps, tmp_path):
    figure = step_figure(steps, 1, sample="Max is a → lempus", path=tmp_path / "a.png")
    grid = steps["restoration"].sel(step=1).values
    drawn = image(figure)
    np.testing.assert_array_equal(drawn.get_array(), grid)
    assert drawn.origin == "lower" and drawn.get_cmap().name == "RdBu"
    low, high = drawn.get_clim()
    assert low == -high and high == pytest.approx(np.abs(grid).max())
    axis = figure.axes[0]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("head", "layer")
    assert figure._suptitle.get_text() == "Step 1, induction\n“Max is a → lempus”"
    assert "tuned by an adapter" in figure._supxlabel.get_text() and "3 examples" in figure._supxlabel.get_text()
    assert figure.axes[-1].get_ylabel() == "share of KL divergence restored"
    strongest = np.unravel_index(np.abs(grid).argmax(), grid.shape)
    assert axis.texts[0].get_position() == strongest[::-1]
    assert axis.texts[0].get_text() == f"{grid[strongest]:.2f}".replace("-0.", "−.").removeprefix("0")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_overview_has_every_patched_step_on_one_scale(steps):
    figure = overview_figure(steps)
    drawn = [axis for axis in figure.axes if axis.images and axis.get_visible() and "n = " in axis.get_title()]
    assert [axis.get_title().split()[0] for axis in drawn] == ["0", "1", "3"]
    for axis, step in zip(drawn, (0, 1, 3), strict=True):
        np.testing.assert_array_equal(axis.images[0].get_array(), steps["restoration"].sel(step=step).values)
    assert len({axis.images[0].get_clim() for axis in drawn}) == 1
    assert "tuned by an adapter" in figure._supxlabel.get_text()


@pytest.mark.parametrize("by_position", [False, True])
def test_a_sweep_plots_itself(by_position, tmp_path):
    model = pcm.Model(tiny_llama(seed=1), None, name="tiny")
    clean = torch.arange(1, 9)
    corrupted = clean.clone()
    corrupted[3] = 40
    sweep = pcm.patch_heads(model, clean, corrupted, by_position=by_position)
    figure = sweep.plot(title="mine", path=str(tmp_path / "a.png"))
    grid = image(figure).get_array()
    if by_position:
        at = np.abs(sweep.effect).argmax(-1)
        want = np.take_along_axis(sweep.effect, at[..., None], -1)[..., 0]
        assert figure.axes[0].get_xlabel() == "position"
    else:
        want = sweep.effect
    assert_allclose(grid, want)
    assert np.abs(want).max() > 0.05 and figure._suptitle.get_text() == "mine"


def test_entries_that_were_not_measured_are_left_out(tmp_path):
    model = pcm.Model(tiny_llama(seed=1), None, name="tiny")
    clean = torch.arange(1, 9)
    corrupted = clean.clone()
    corrupted[3] = 40
    sweep = pcm.patch_heads(model, clean, corrupted, heads=[(1, 2)])
    figure = sweep.plot(path=str(tmp_path / "a.png"))
    assert np.ma.masked_invalid(image(figure).get_array()).count() == 1
    assert len(figure.axes[0].texts) == 1


def test_numbers_above_ten_keep_their_digits():
    effect = np.zeros((1, 1, 4, 3))
    effect[0, 0, 1, 2] = -10.25
    one = np.ones((1, 1))
    figure = step_figure(by_step(dataset(effect, one, 0 * one, one)), 0)
    assert [t.get_text() for t in figure.axes[0].texts] == ["−10.25"]


def test_maps_that_set_no_scale_run_beyond_its_ends():
    grids = [np.array([[0.5, -0.25]]), np.array([[3.0, np.nan]])]
    ours, all_of_them = (maps_figure(grids, ["a", "b"], title="t", label="x", scaled_by=by) for by in ([0], None))
    for figure, end in ((ours, 0.5), (all_of_them, 3.0)):
        assert [axis.images[0].get_clim() for axis in figure.axes[:2]] == [(-end, end)] * 2
    assert ours.axes[2]._colorbar.extend == "both" and all_of_them.axes[2]._colorbar.extend == "neither"
