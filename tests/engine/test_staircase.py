"""The climb of variants: what joins, what is computed or frozen, what is watched, where it ends."""

from dataclasses import replace

import pytest
import torch

import pycotmech as pcm
from pycotmech.engine.bases import Bases, Stage, run_pairs
from pycotmech.engine.row_edits import Entries, GivenValues, RowEdits
from pycotmech.engine.rows import PackedRows, Variants
from pycotmech.engine.staircase import Staircase
from pycotmech.model import sizes
from pycotmech.model.work import LayerRows
from tests.reference.close import assert_close
from tests.reference.tiny import tiny_llama
from tests.reference.truth import double

T, FIRST, L, D = 20, 14, 3, 48
SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


@pytest.fixture(scope="module")
def case():
    """A model in float64, one pair's base runs, and the activations of both prompts."""
    model = pcm.Model(double(tiny_llama(n_layers=L, n_heads=4, n_key_value_heads=2)))
    clean = torch.randint(61, (T,), generator=torch.Generator().manual_seed(0))
    corrupted = torch.cat((clean[:FIRST], (clean[FIRST : FIRST + 1] + 1) % 61, clean[FIRST + 1 :]))
    found = run_pairs(
        model.family, [corrupted], [clean], past=None, first=[FIRST], reads=[[T - 1]], sites=SITES, source_sites=SITES
    )  # fmt: skip
    return model, found, model.run(clean, capture=SITES), model.run(corrupted, capture=SITES)


def variants(*at):
    """Of (layer, stage), from the first position that differs on."""
    layer, stage = torch.tensor(at).T
    return Variants(torch.zeros_like(layer), layer, stage, torch.full_like(layer, FIRST))


def from_source(bases: Bases):
    return lambda joining: bases.source[joining.stage.site][joining.layer][joining.index].clone()


EVERYWHERE = [(1, Stage.POST), (0, Stage.PRE), (2, Stage.MID), (1, Stage.MID), (2, Stage.POST), (2, Stage.PRE), (0, Stage.MID)]


@pytest.mark.parametrize("block", [2048, 7])
def test_a_variant_that_joins_with_the_other_run_is_the_other_run(case, block, monkeypatch):
    """At whatever layer and stage it joins: in the rows before each layer, and in the end."""
    model, found, clean, _ = case
    monkeypatch.setattr(sizes, "CPU", replace(sizes.CPU, row_block=block))
    seen = {}

    def watch(l, rows, x, n):
        seen[l] = n
        for i in range(n):
            own = x[rows.begins[i] : rows.begins[i + 1]]
            assert_close(own, clean["resid_pre"][l, FIRST:], rtol=1e-10, atol=1e-12)

    final = Staircase(model.family, found.bases, variants(*EVERYWHERE), from_source(found.bases), watch=watch).run()
    assert_close(final, found.source_final.expand(len(EVERYWHERE), -1), rtol=1e-10, atol=1e-12)
    assert seen == {0: 1, 1: 2, 2: 5}
    half = [(0, Stage.MID), (1, Stage.POST), (0, Stage.PRE)]
    x = Staircase(model.family, found.bases, variants(*half), from_source(found.bases), upto=2).run()
    assert_close(x, clean["resid_pre"][2, FIRST:].repeat(3, 1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("upto", [None, 2])
def test_frozen_parts_add_what_they_added(case, upto):
    """With both frozen what joins arrives as it is; with attention alone, no position depends on another."""
    model, found, _, corrupted = case
    change = torch.randn(2, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def join(joining):
        return found.bases.sites["resid_mid"][joining.layer][joining.index] + change[joining.variant]

    end = corrupted["resid_pre"][2, FIRST:] if upto else corrupted["resid_post"][-1, -1:]
    both = Staircase(
        model.family, found.bases, variants((1, Stage.MID), (0, Stage.MID)), join, frozen=("attn_out", "mlp_out"), upto=upto
    ).run()
    expected = torch.cat((end + change[1], end + change[0])) if upto else torch.cat((end + change[0], end + change[1]))
    assert_close(both, expected, rtol=1e-10, atol=1e-12)  # before a layer: as they are packed, lower layers first

    ticks: list[LayerRows] = []
    alone = Staircase(model.family, found.bases, variants((0, Stage.MID)), join, ticks.append, frozen=("attn_out",)).run()
    x, row = corrupted["resid_mid"][0, -1] + change[0], slice(T - 1, T)
    for l in range(L):
        x = x if l == 0 else x + corrupted["attn_out"][l, row][0]
        x = x + model.family.mlp_out(l, x[None])[0]
    assert_close(alone[0], x, rtol=1e-10, atol=1e-12)
    S = T - FIRST
    assert ticks == [LayerRows(S, 0, 0, S), LayerRows(S, 0, 0, S), LayerRows(1, 0, 0, 1)]


def test_rows_of_a_layer_are_counted(case):
    model, found, *_ = case
    ticks: list[LayerRows] = []
    Staircase(model.family, found.bases, variants((1, Stage.MID), (0, Stage.PRE)), from_source(found.bases), ticks.append).run()
    S = T - FIRST
    assert ticks == [LayerRows(S, S, S, S), LayerRows(2 * S, S, S, 2 * S), LayerRows(2, 2 * S + 2, 2, 2)]


def test_packed_rows_stand_in_the_order_in_which_variants_join(case, monkeypatch):
    model, found, *_ = case
    monkeypatch.setattr(sizes, "CPU", replace(sizes.CPU, row_block=13))
    rows, S = PackedRows(model.family, found.bases, variants(*EVERYWHERE)), T - FIRST
    assert rows.keys == sorted(3 * l + s for l, s in EVERYWHERE) and len(rows) == len(EVERYWHERE) * S
    assert [EVERYWHERE[i] for i in rows.order] == sorted(EVERYWHERE)
    assert rows.position.tolist() == [*range(FIRST, T)] * len(EVERYWHERE)
    spans = [(span.start, span.stop) for span, _ in rows.spans(5)]
    assert spans == [(0, 2 * S), (2 * S, 4 * S), (4 * S, 5 * S)]  # two variants fit, and none is cut
    assert rows.read_rows.tolist() == [S - 1 + i * S for i in range(len(EVERYWHERE))]


def test_edited_rows_of_variants_that_are_read_twice_are_refused(case):
    model, *_ = case
    bases = run_pairs(
        model.family, [torch.arange(T)], [], past=None, first=[FIRST], reads=[[T - 2, T - 1]], sites=SITES, source_sites=()
    ).bases
    one = torch.zeros(1, dtype=torch.long)
    tables = {("z", 2): Entries(one, one + T - 1, one, one)}
    edits = RowEdits(model.family, bases, tables, GivenValues({("z", 2): torch.zeros(1, 12)}))
    with pytest.raises(ValueError, match="read at one position"):
        Staircase(model.family, bases, variants((0, Stage.PRE)), lambda joining: joining, edits=edits)
