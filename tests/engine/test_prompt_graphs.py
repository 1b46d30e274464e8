"""Passes over prompts that are padded to a few sizes and replayed: no number changes, memory is bounded, failures are said."""

import warnings

import pytest
import torch

import pycotmech as pcm
from pycotmech.engine import graphs as graphs_module
from pycotmech.model.packed import KeyValues
from pycotmech.model.prompt_pass import MOST_ROWS, PromptPass, bucket
from pycotmech.model.run import forward_packed
from tests.engine.test_graphs import CASES, SHAPES, on, sweeps  # noqa: F401  on is a fixture
from tests.reference.stand_in_graphs import Again
from tests.reference.tiny import tiny_llama


@pytest.fixture(autouse=True)
def _forget():
    graphs_module.kept.clear()


def llama(dtype=torch.float32):
    return pcm.Model(tiny_llama(**SHAPES["gqa"], n_layers=3, dtype=dtype), check=False)


def test_buckets():
    assert [bucket(n) for n in (0, 1, 16, 17, 128, 129, 472, 513)] == [0, 16, 16, 32, 128, 256, 512, 640]
    sizes = {bucket(n) for n in range(1, MOST_ROWS + 1)}
    assert len(sizes) == 19 and all(bucket(n) >= n and bucket(bucket(n)) == bucket(n) for n in sizes)


@pytest.mark.parametrize(("case", "dtype"), [("z, everywhere", torch.float32), ("z, where it is read", torch.bfloat16)])
def test_a_sweep_whose_prompts_are_replayed(case, dtype, on):  # noqa: F811
    """Other prompts and other lengths: what is replayed is what is run, to the last bit."""
    model, lengths = llama(dtype), [24, 24, 26, 25]
    graphs = on(model, prompts=True)
    graphs.limit = 0  # passes are padded, and run
    expected = [sweeps(CASES[case], seed, model, length) for seed, length in enumerate(lengths)]
    graphs.limit = None
    for seed, length in enumerate(lengths):
        model.prefixes.clear()
        assert (sweeps(CASES[case], seed, model, length) == expected[seed]).all()
        on.poison()
    assert graphs.captures["prompts"] == 2 and graphs.replays["prompts"] == 2 * (len(lengths) - 1)


SEQUENCES = [torch.tensor([5, 6, 7, 8, 9]), torch.tensor([5, 6, 9])]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["a prompt", "after a past", "kept"])
def test_rows_that_are_added_change_no_value(case, dtype):
    """Float64 runs on the reference path. Any tokens may be there; beside a pass without them only rounding differs."""
    family = llama(dtype).family
    past = None if case == "a prompt" else forward_packed(family, [torch.arange(3, 12)]).key_values(0, None)
    sequences = SEQUENCES[:1] if past is None else SEQUENCES
    arguments = dict(sites=("z", "resid_mid") if case == "kept" else (), keep=torch.tensor([1, 4]), read=torch.tensor([4]))
    after, found = [(0, 0 if past is None else 9 - i) for i in range(len(sequences))], []
    for change in (0, 1):
        one = PromptPass(family, sequences, past, after, n_layers=3, **arguments)
        one.tokens[one.n_real :] += change
        found.append(one.run())
    plain = forward_packed(family, sequences, past, after=after, **arguments)
    assert one.n_rows == 16 and plain.offsets == found[0].offsets and set(plain.sites) == set(found[0].sites)
    parts = [(p.k, p.v, p.resid_final, *p.sites.values()) for p in (*found, plain)]
    for a, b, usual in zip(*parts, strict=True):
        assert torch.equal(a, b) and a.shape == usual.shape
        assert (a - usual).norm() <= 8 * torch.finfo(dtype).eps * usual.norm()


def test_what_the_buckets_hold_is_counted_and_bounded():
    family, ids = llama().family, torch.arange(3, 40)

    graphs = graphs_module.Graphs(Again(1000))
    expected = forward_packed(family, [ids])
    for n in range(4):
        found = forward_packed(family, [ids], replay=lambda one: graphs.run(one, 2**30))
        torch.testing.assert_close(found.k, expected.k)
        if n == 1:
            found.k.zero_()  # what a call gets is its own
    assert graphs.captures["prompts"] == 1 and graphs.replays["prompts"] == 3
    outputs = 2 * 3 * 64 * 2 * 16 * 4
    inputs = sum(b.nbytes for b in graphs._buffers.values())
    assert graphs.nbytes == outputs + inputs + 1000 and inputs >= 64 * (8 + 8 + 16 + 2 * 16 * 4)
    graphs.limit = outputs
    forward_packed(family, [ids], replay=lambda one: graphs.run(one, 2**30))
    assert len(graphs) == graphs.nbytes == 0


def test_prompts_that_cannot_be_captured_leave_the_variants_graphs(on):  # noqa: F811
    model = llama()
    graphs = on(model, prompts=True)
    honest = graphs.backend.capture

    def refuse(fn):
        of = fn.__closure__[fn.__code__.co_freevars.index("static")].cell_contents
        if of.kind == "prompts":
            raise RuntimeError("operation not permitted when stream is capturing")
        return honest(fn)

    graphs.backend.capture = refuse
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for seed in range(3):
            sweeps(CASES["z, where it is read"], seed, model)
    assert ["a pass of prompts could not be captured" in str(w.message) for w in said] == [True]
    assert graphs.captures == {"variants": 1} and graphs.replays == {"variants": 2}


def test_what_is_edited_or_too_long_is_not_padded():
    family, seen = llama().family, []

    def replay(one):
        seen.append(one)
        return one.run()

    forward_packed(family, [torch.arange(5)], edit_z=lambda l, z, rows: z, replay=replay)
    assert not seen and not PromptPass.is_for(family, MOST_ROWS + 1) and PromptPass.is_for(family, 1)
    forward_packed(family, [torch.arange(5)], KeyValues(*torch.zeros(2, 3, 4, 2, 16)), replay=replay)
    assert len(seen) == 1
