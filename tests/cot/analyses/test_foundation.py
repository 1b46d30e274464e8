"""What the analyses share: cells, costs, results."""

from typing import ClassVar

import numpy as np
import pytest
import torch
import xarray as xr

import pycotmech as pcm
from pycotmech.cot.tools import cells as cells_module
from pycotmech.cot.tools.cost import Cost, metered, rows_cost, workload
from pycotmech.cot.tools.result import Analysis, top_cells
from pycotmech.model.config import layer_flop
from tests.reference.close import assert_allclose
from tests.reference.tiny import tiny_llama


def test_grade_is_teacher_forcing_with_the_model_itself(model, examples):
    graded = pcm.cot.grade(model, examples)
    for e, example in enumerate(examples):
        predicted = model.hf(example.full_ids[None]).logits[0].argmax(-1)
        for step in example.steps:
            span = step.answer_span
            right = bool((predicted[span.start - 1 : span.stop - 1] == example.full_ids[span]).all())
            assert bool(graded.right[e, step.index]) == right


def test_cells_are_those_that_count(model, examples):
    right = torch.zeros(3, examples.n_steps, dtype=torch.bool)
    right[0, 5] = right[2, 5] = right[2, 0] = True
    cells = cells_module.choose(model, examples, steps=[5, 9, 0], right=right)
    assert [(c.e, c.s, c.step.index) for c in cells] == [(0, 0, 5), (2, 0, 5), (2, 2, 0)]
    assert len(cells) == 3 and cells.shape == (3, 3) and cells.empty(2).shape == (3, 3, 2)
    assert cells.coords["step"] == [5, 9, 0]
    assert [(c.e, c.step.index) for c in cells.only([2])] == [(0, 5), (0, 0)]
    size = workload(cells)
    assert size.cells == 3 and size.examples == 2
    first = [min(c.step.differs) for c in cells]
    assert size.suffix == pytest.approx(np.mean([len(c.step.clean) - f for c, f in zip(cells, first)]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"steps": []}, r"steps: got \[\]"),
        ({"steps": [3, 3]}, r"steps: got \[3, 3\]"),
        ({"steps": [10]}, r"steps: got \[10\]"),
        ({"right": torch.ones(2, 10, dtype=torch.bool)}, r"right: got torch.bool \[2, 10\]"),
        ({"right": torch.zeros(3, 10, dtype=torch.bool)}, "gets none of steps"),
    ],
)
def test_cells_refuse(model, examples, arguments, words):
    with pytest.raises(ValueError, match=words):
        cells_module.choose(model, examples, **arguments)


def test_costs_add_and_repeat():
    a, b = Cost(1, 10, 100, 7), Cost(2, 20, 200, 5)
    assert a + b == Cost(3, 30, 300, 7) and 3 * a == Cost(3, 30, 300, 7)


def test_meter_counts_what_a_forward_pass_computes():
    model = pcm.Model(tiny_llama(n_key_value_heads=2), check=False)
    tokens = torch.arange(20)
    with metered(model) as outer, metered(model) as inner:
        model.run(tokens, capture=("z",))
    cfg = model.cfg
    assert inner.token_forwards == 20 and inner.flop == outer.flop
    assert inner.flop == pytest.approx(20 * cfg.n_layers * layer_flop(cfg).linear + 20 * 2 * cfg.d_model * cfg.d_vocab)
    assert inner.flop == pytest.approx(rows_cost(cfg, 20, read=20).flop)
    assert not {"qkv", "attn_out", "mlp_out", "logits"} & set(vars(model.family))  # left as found


class _Toy(Analysis):
    name, title, source = "toy", "Toy", "E1"

    def findings(self):
        return ["nothing"]


class _Cut(_Toy):
    ranges: ClassVar = {"effect": (-1.5, 1.5)}


def test_a_result_is_kept_whole(model, examples, tmp_path):
    cells = cells_module.choose(model, examples, steps=[5], right=torch.ones(3, 10, dtype=torch.bool))
    values = np.random.default_rng(0).normal(size=(3, 1, 4, 8))
    values[1] = np.nan
    axes, settings = {"layer": 4, "head": 8}, {"seed": np.int64(3), "where": (1, 2)}
    result = _Toy.made(model, cells, {"effect": values}, axes, "toy", settings)
    data, facts = result.data, result.about
    found = result.interval("effect")
    assert_allclose(found["mean"].values, np.nanmean(values, 0))
    assert found["n"].values.max() == 2 and found["mean"].dims == ("step", "layer", "head")
    cut, free = _Cut(data, facts).interval("effect"), np.abs(found[["low", "high"]])
    np.testing.assert_array_equal(cut["low"], found["low"].clip(-1.5, 1.5))
    np.testing.assert_array_equal(cut["high"], found["high"].clip(-1.5, 1.5))
    assert float(free.to_array().max()) > 1.5  # without a range any number
    with pytest.raises(ValueError, match="variable: got 'effekt'; expected one with the axis 'example': effect"):
        result.interval("effekt")
    result.save(tmp_path)
    result.save(tmp_path)  # again: replaced
    again = _Toy.load(tmp_path)
    xr.testing.assert_equal(again.data, result.data)
    assert again.data["kind"].values.tolist() == ["induction"]
    assert again.about["settings"] == {"seed": 3, "where": [1, 2]} and again.about["model"] == "tiny-cot"
    assert str(again).splitlines()[0] == "Toy (tiny-cot; docs/protocol.md, E1)"
    with pytest.raises(FileNotFoundError, match=r"toy\.zarr"):
        _Toy.load(tmp_path / "elsewhere")


def test_top_cells_are_in_order_with_ties_to_the_lower_place():
    grid = xr.DataArray(
        [[1.0, np.nan, 3.0], [3.0, -4.0, 0.0]], dims=("layer", "head"), coords={"layer": [0, 1], "head": [0, 1, 2]}
    )
    assert [(int(l), int(h), v) for l, h, v in top_cells(grid, 3)] == [(0, 2, 3.0), (1, 0, 3.0), (0, 0, 1.0)]
    assert top_cells(grid, 1, by_size=True)[0][2] == -4.0
