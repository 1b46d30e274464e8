"""Frames, bars and curves show the numbers and the words that they are given."""

import numpy as np
from matplotlib.text import Text

from pycotmech.figures.bars import bars_with_intervals, interval_reach, stacked_bars, stacked_layers
from pycotmech.figures.curves import layer_line, line_with_band
from pycotmech.figures.frame import PALETTE, finished, framed, saved, small
from pycotmech.figures.heatmap import colour_limit, effect_figure, map_of_heads, share_maps_figure, write_numbers
from tests.reference.close import assert_allclose

MEAN, LOW, HIGH = np.array([0.2, 0.5, 0.4]), np.array([0.1, 0.3, np.nan]), np.array([0.4, 0.6, np.nan])


def test_a_frame_has_its_title_and_small_print_and_is_saved(tmp_path):
    figure, axes = framed(2, 3, "A title", ["made from this", "and that " * 40], width=2.0)
    assert axes.shape == (2, 3)
    assert figure._suptitle.get_text() == "A title"
    fine = figure._supxlabel.get_text().splitlines()
    assert fine[0] == "made from this" and len(fine) > 2  # wrapped to the figure's width
    assert finished(figure, "Another", [], path=tmp_path / "a.png") is figure and (tmp_path / "a.png").stat().st_size > 1000
    assert figure._suptitle.get_text() == "Another"
    small(axes[0, 0], title="t", across="x", up="y")
    assert (axes[0, 0].get_title(), axes[0, 0].get_xlabel(), axes[0, 0].get_ylabel()) == ("t", "x", "y")


def test_bars_reach_as_far_as_their_intervals():
    assert_allclose(interval_reach(MEAN, LOW, HIGH), [[0.1, 0.2, 0], [0.2, 0.1, 0]])
    _, axes = framed(1, 1, "", [])
    bars_with_intervals(axes[0, 0], {"mean": [MEAN, MEAN], "low": [LOW, LOW], "high": [HIGH, HIGH]}, "abc", names=("p", "q"))
    bars = axes[0, 0].patches
    assert [bar.get_height() for bar in bars] == [*MEAN, *MEAN]
    assert [bar.get_x() + bar.get_width() / 2 for bar in bars[:3]] == [-0.2, 0.8, 1.8]
    assert axes[0, 0].get_legend_handles_labels()[1] == ["p", "q"]


def test_shares_are_stacked_and_nan_stays_empty():
    shares = np.array([[0.25, 0.75], [np.nan, np.nan]])
    _, axes = framed(1, 2, "", [])
    stacked_bars(axes[0, 0], shares, ["a", "b"], ["few_shot", "question"])
    stacked_layers(axes[0, 1], shares, ["few_shot", "question"])
    for axis in axes[0]:
        tops = [bar.get_y() + bar.get_height() for bar in axis.patches]
        assert tops == [0.25, 0, 1.0, 0] and axis.get_legend_handles_labels()[1] == ["few-shot", "question"]


def test_lines_have_a_band_where_there_is_an_interval():
    _, axes = framed(1, 2, "", [])
    line_with_band(axes[0, 0], np.arange(3), MEAN, LOW, HIGH, color=PALETTE[0])
    line_with_band(axes[0, 0], np.arange(3), MEAN, np.full(3, np.nan), HIGH)
    assert len(axes[0, 0].lines) == 2 and len(axes[0, 0].collections) == 1
    layer_line(axes[0, 1], MEAN, LOW, HIGH, title="by layer")
    np.testing.assert_array_equal(axes[0, 1].lines[0].get_ydata(), MEAN)
    assert axes[0, 1].get_xlabel() == "layer"


def test_effects_at_positions_show_the_strongest_head_of_each_layer():
    effect = np.random.default_rng(0).normal(size=(3, 4, 5))  # [layer, position, head]
    words = {"title": "t", "lines": ["made"], "metric": "kl", "direction": "noise", "normalised": True}
    figure = effect_figure(effect, across="position", **words)
    strongest = np.take_along_axis(effect, np.abs(effect).argmax(-1)[..., None], -1)[..., 0]
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), strongest)
    assert "the largest effect at the position" in " ".join(figure._supxlabel.get_text().split())
    assert figure.axes[-1].get_ylabel() == "share of KL divergence destroyed"
    assert effect_figure(effect[..., 0], **words | {"normalised": False}).axes[-1].get_ylabel() == "change of KL divergence"


def test_maps_have_their_scales_and_numbers():
    assert colour_limit(np.array([[-3.0, np.nan]]), np.array([[2.0]])) == 3 and colour_limit(np.zeros((1, 1))) == 1
    grid = np.array([[0.7, np.nan], [0.25, 0.0]])
    figure, axes = framed(1, 1, "", [])
    map_of_heads(figure, axes[0, 0], grid, title="by head", label="share")
    write_numbers(axes[0, 0], grid, "{:.2f}".format)
    assert [(t.get_text(), t.get_color()) for t in axes[0, 0].texts] == [
        ("0.70", "white"),
        ("0.25", "black"),
        ("0.00", "black"),
    ]
    shares = share_maps_figure({"a": grid, "b": grid / 2}, title="t", label="share of attention")
    assert {axis.images[0].get_clim() for axis in shares.axes[:2]} == {(0.0, 1.0)}


def test_dollar_signs_of_tokens_begin_no_formula(tmp_path):
    """Mathematics that does not parse would stop the drawing; a formula that does would show something else."""
    token = r"$\frac$ costs $5 and $x^2$"
    figure, axes = framed(1, 1, token, [token])
    axes[0, 0].set_xticks([0, 1], labels=[token, "b"])
    axes[0, 0].text(0.5, 0.5, token)
    small(axes[0, 0], title=token)
    saved(figure, tmp_path / "f.png")
    texts = [text for text in figure.findobj(Text) if token in text.get_text()]
    assert len(texts) >= 4 and not any(text.get_parse_math() for text in texts)
