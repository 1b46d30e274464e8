"""Examples put together: against sums written out by hand, and against the library's own result for a list of pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

import pycotmech as pcm
from pycotmech.runs import ResultAxes, SweepState, SweepStore, read
from pycotmech.runs.report import by_step, findings, top_heads
from pycotmech.runs.report.aggregate import chosen_first, records
from pycotmech.runs.report.table import header, rows, text
from pycotmech.stats.bootstrap import halves
from tests.reference.close import assert_allclose
from tests.reference.tiny import tiny_llama


def dataset(
    effect, clean, corrupted, state, *, floor=1e-3, right=None, kind="induction", metric="logit_diff", control=None
) -> xr.Dataset:
    """effect, control [E, S, L, H]; the others [E, S]."""
    effect = np.asarray(effect, dtype="f4")
    E, S, L, H = effect.shape
    cell, grid = ("example", "step"), ("example", "step", "layer", "head")
    full = np.full((E, S), floor) if np.isscalar(floor) else np.asarray(floor)
    variables = {"effect": (grid, effect), "noise_floor": (cell, full), "seconds": (cell, np.ones((E, S)))}
    variables["control"] = (grid, np.full(effect.shape, np.nan, "f4") if control is None else np.asarray(control, dtype="f4"))
    variables["sham"] = (cell, np.full((E, S), np.nan if control is None else 0.0))
    variables |= {"clean_metric": (cell, np.asarray(clean, dtype=float))}
    variables |= {
        "corrupted_metric": (cell, np.asarray(corrupted, dtype=float)),
        "state": (cell, np.asarray(state, dtype="i1")),
    }
    variables["right"] = (cell, np.ones((E, S), "i1") if right is None else np.asarray(right, dtype="i1"))
    coords = {"step": np.arange(S), "kind": ("step", np.array([kind] * S)), "layer": np.arange(L), "head": np.arange(H)}
    attrs = {"identity": {"metric": metric, "direction": "denoise"}, "about": {"model": {"name": "m", "notes": []}}}
    return xr.Dataset(variables, {"example": np.arange(E), **coords}, attrs)


def test_the_weighted_mean_its_spread_and_signs():
    # Two examples, spans 3 and 1; head 1 differs in sign between them.
    data = dataset([[[[0.4, 0.2]]], [[[0.8, -0.1]]]], [[2.0], [1.0]], [[-1.0], [0.0]], [[1], [1]], floor=[[0.004], [0.008]])
    steps = by_step(data)
    assert_allclose(steps["restoration"][0, 0], [0.5, 0.125], atol=1e-7)
    sd = [np.sqrt(0.75 * 0.1**2 + 0.25 * 0.3**2), np.sqrt(0.75 * 0.075**2 + 0.25 * 0.225**2)]
    assert_allclose(steps["sd"][0, 0], sd, rtol=1e-6)
    assert_allclose(steps["same_sign"][0, 0], [1.0, 0.5])
    assert float(steps["noise_floor"][0]) == pytest.approx(0.005)
    assert (int(steps["n"][0]), float(steps["clean_metric"][0]), float(steps["seconds"][0])) == (2, 1.5, 2.0)


def test_only_finished_sweeps_count():
    effect = np.full((3, 1, 1, 2), np.nan)
    effect[1] = 0.25
    state = [[SweepState.PENDING], [SweepState.FINISHED], [SweepState.SKIPPED]]
    data = dataset(effect, [[np.nan], [1.0], [np.nan]], [[np.nan], [0.0], [np.nan]], state, right=[[1], [1], [0]])
    steps = by_step(data)
    assert_allclose(steps["restoration"], 0.25)
    assert np.isnan(steps["sd"]).all()
    assert [int(steps[n][0]) for n in ("n", "right", "graded", "pending")] == [1, 2, 3, 1]


def test_the_ratio_of_means_is_what_patch_heads_gives_for_a_list(tmp_path):
    model = pcm.Model(tiny_llama(seed=3), None)
    g = torch.Generator().manual_seed(0)
    clean = [torch.randint(61, (9,), generator=g) for _ in range(3)]
    corrupted = [c.clone() for c in clean]
    for i, c in enumerate(corrupted):
        c[4 + i] = (c[4 + i] + 17) % 61
    options = {"metric": "kl"}
    axes = ResultAxes(["0", "1", "2"], [0], ["pair"], model.cfg.n_layers, model.cfg.n_heads)
    about = {"model": {"name": "m", "notes": []}}
    results = SweepStore.create(tmp_path, axes, identity={"metric": "kl", "direction": "denoise"}, about=about)
    for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)):
        results.finish(i, [0], [pcm.patch_heads(model, a, b, **options)], 1.0)
    together = pcm.patch_heads(model, clean, corrupted, **options)
    steps = by_step(read(tmp_path))
    assert_allclose(steps["restoration"][0], together.values, atol=1e-5)
    assert np.abs(together.values).max() > 0.05
    # Both are rounding, seen through other heads and directions: of one size, not one the bound of the other.
    assert 0.1 < float(steps["noise_floor"][0]) / together.noise_floor < 10


def test_top_heads_are_in_order_of_size_with_ties_to_the_lower_head():
    data = dataset([[[[0.1, -0.7], [0.3, 0.3]]]], [[1.0]], [[0.0]], [[1]])
    top = top_heads(by_step(data), 3)
    assert top[["layer", "head"]].values.tolist() == [[0, 1], [1, 0], [1, 1]]
    assert top["restoration"].tolist() == pytest.approx([-0.7, 0.3, 0.3])


def test_steps_without_a_right_example_are_named_and_shown():
    effect = np.stack([np.full((1, 4, 2), 0.2), np.full((1, 4, 2), np.nan)], 1)
    data = dataset(effect, [[1.0, np.nan]], [[0.0, np.nan]], [[1, 2]], right=[[1, 0]])
    steps = by_step(data)
    top = top_heads(steps)
    assert set(top["step"]) == {0}
    table = rows(steps, top)
    assert table[-1][:4] == ["1", "induction", "0/1", "0"] and set(table[-1][4:]) == {"-"}
    assert "Not patched: step 1, which the model gets right in no example." in findings(steps, top)


def test_sentences_say_what_the_numbers_say():
    effect = np.zeros((6, 2, 4, 3))
    effect[:, :, 2, 1] = 0.4
    effect[:, 0, 3, 0] = [0.2, 0.2, 0.2, 0.2, 0.1, 0.2]
    effect[:, 1, 1, 2] = -0.3
    ones = np.ones((6, 2))
    steps = by_step(dataset(effect, ones, 0 * ones, ones))
    said = findings(steps, top_heads(steps))
    first, second = (
        f"Step {i} (induction) depends most on L2H1, which restores 40% by itself (in all 3 held-out examples)" for i in (0, 1)
    )
    assert said[0] in (f"{first}; then L3H0 ({n}%)." for n in (17, 20))  # without or with the fifth example
    assert said[1] == f"{second}; L1H2 (-30%) works against it."
    assert "Among the strongest in several steps: L2H1 (all steps)." in said
    assert any("half of all positive effects is reached at layer 2 for induction" in s for s in said)
    assert "No random control was measured, so effects are compared with rounding alone." in said
    assert any(s.startswith("4 of 24 effects are larger than rounding errors") for s in said)
    assert not any("rests on" in s for s in said)


def test_what_is_below_the_floor_is_called_rounding():
    data = dataset(np.full((1, 1, 4, 2), 1e-6), [[1.0]], [[0.0]], [[1]], floor=1e-3)
    steps = by_step(data)
    top = top_heads(steps)
    said = findings(steps, top)
    assert any("No effect exceeds the noise floor (0.001)" in s for s in said)
    assert "(rounding)" in text(steps, top, {})
    assert any("rests on 1 example" in s for s in said)


def test_heads_are_ranked_on_one_half_and_reported_on_the_other():
    """Head 0 is strong in one half of the examples alone: where that is the half that ranks, it comes first with what it does
    in the other."""
    effect = np.zeros((8, 1, 4, 2))
    effect[:, 0, 1, 1] = 0.3
    steps = by_step(dataset(effect, np.ones((8, 1)), np.zeros((8, 1)), np.ones((8, 1))))
    assert (int(steps["n"][0]), int(steps["held_out_n"][0]), bool(steps["held_out"][0])) == (8, 4, True)
    ranked = halves(8)[0]
    effect[ranked, 0, 2, 0] = 0.9
    top = top_heads(by_step(dataset(effect, np.ones((8, 1)), np.zeros((8, 1)), np.ones((8, 1)))), 2)
    assert top[["layer", "head", "restoration", "examples"]].values.tolist() == [[2, 0, 0.0, 4], [1, 1, pytest.approx(0.3), 4]]
    assert top["held_out"].all() and top["beyond"].tolist() == [False, True]
    few = by_step(dataset(effect[:3], np.ones((3, 1)), np.zeros((3, 1)), np.ones((3, 1))))
    assert int(few["held_out_n"][0]) == 3 and not bool(few["held_out"][0])
    assert_allclose(few["ranking"], few["restoration"])


def test_sentences_name_heads_in_the_order_of_the_half_that_ranks():
    effect, (ranked, reported) = np.zeros((8, 1, 4, 2)), halves(8)
    effect[ranked, 0, 1, 1], effect[reported, 0, 1, 1] = 0.6, 0.2
    effect[ranked, 0, 2, 0], effect[reported, 0, 2, 0] = 0.5, 0.4
    steps = by_step(dataset(effect, np.ones((8, 1)), np.zeros((8, 1)), np.ones((8, 1))))
    said = findings(steps, top_heads(steps))[0]
    assert said.endswith("L1H1, which restores 20% by itself (in all 4 held-out examples); then L2H0 (40%)."), said


def test_the_strongest_of_all_steps_is_chosen_on_the_half_that_ranks():
    """Of two steps one has the larger effect on the half that ranks, the other on the half that is reported."""
    effect, (ranked, reported) = np.zeros((8, 2, 4, 2)), halves(8)
    effect[ranked, 0, 1, 1], effect[reported, 0, 1, 1] = 0.6, 0.5
    effect[ranked, 1, 2, 0], effect[reported, 1, 2, 0] = 0.3, 0.9
    steps = by_step(dataset(effect, np.ones((8, 2)), np.zeros((8, 2)), np.ones((8, 2))))
    rows = [row for row in records(top_heads(steps)) if row["beyond"]]
    best = chosen_first(steps, rows)
    assert (best["layer"], best["head"]) == (1, 1) and best["restoration"] == pytest.approx(0.5)


def test_the_control_is_in_units_of_the_mean_distance_and_effects_within_it_are_not_called_effects():
    """Spans 3 and 1: a control of 0.2 and one of 0.6 are changes of 0.6 each, or 0.3 of the mean span of 2."""
    effect = np.zeros((2, 1, 4, 2))
    effect[:, 0, 1, 1], effect[:, 0, 2, 0] = 0.5, 0.25
    control = np.full((2, 1, 4, 2), np.nan)
    control[0, 0, 0, 0], control[1, 0, 3, 1] = 0.2, -0.6
    steps = by_step(dataset(effect, [[2.0], [1.0]], [[-1.0], [0.0]], [[1], [1]], control=control))
    assert float(steps["control"][0]) == pytest.approx(0.3) and int(steps["n_controls"][0]) == 2
    assert float(steps["head_control"][0, 0, 0]) == pytest.approx(0.3) and np.isnan(steps["head_control"][0, 1, 1])
    assert float(steps["sham"][0]) == 0.0
    top = top_heads(steps, 2)
    assert top["beyond"].tolist() == [True, False] and top["above_floor"].all()
    said = findings(steps, top)
    assert said[0].endswith("depends most on L1H1, which restores 50% by itself (in all 2 examples).")
    assert (
        "1 of 8 effects exceed both noise floor and control: with another example's activations, heads change at most 0.3 "
        "(2 controls). A step with 2 controls says little: of heads without an effect, 1 in 3 exceeds them; 95 % of heads stay "
        "within 19 or more. Before the first difference, patches change 0."
    ) in said
    cells = rows(steps, top)
    assert cells[0][header("logit_diff").index("control")] == "0.300"
    assert cells[1][header("logit_diff").index("effect")] == "+0.250 (within control)"


def test_a_share_of_heads_is_named_only_if_the_controls_are_enough_for_it():
    effect, control = np.zeros((4, 1, 4, 2)), np.full((4, 1, 4, 2), 0.125)
    effect[:, 0, 1, 1] = 0.5
    control[:, 0, 0, 0], control[0, 0, 3, :] = np.nan, np.nan
    arguments = ([[1.0]] * 4, [[0.0]] * 4, [[1]] * 4)

    def said(control):
        steps = by_step(dataset(effect, *arguments, control=control))
        return next(line for line in findings(steps, top_heads(steps)) if "floor and control" in line)

    assert "95 % of heads change at most 0.12 (26 controls)." in said(control)
    control[2:] = np.nan
    assert "of heads without an effect, 1 in 13 exceeds them" in said(control)


def test_the_table_shows_samples_and_fits_its_header():
    data = dataset(np.full((2, 1, 4, 2), 0.25), [[1.0], [1.0]], [[0.0], [0.0]], [[1], [1]], metric="kl")
    steps = by_step(data)
    table = text(steps, top_heads(steps), {0: "… Max is a → lempus"}).splitlines()
    assert " ".join(table[0].split()) == "step kind right used KL floor control head effect ± sd same sign"
    assert "Max is a → lempus" in table[3] and "L0H1" in table[3]
    starts = {line.index("L") for line in table[2:] if "L" in line}
    assert starts == {table[0].index("head")}
    assert header("prob")[4:6] == ["clean", "corrupted"]
