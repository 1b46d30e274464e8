"""Graphs of staircase passes, with a stand-in for CUDA: what it "captured" it runs again on the same buffers.

A replay on a GPU reads the addresses that it was captured with. The stand-in holds a pass to that: while it runs, every
tensor that an operation takes must be a weight, one of the cache's buffers, or made by the pass itself.
"""

import threading
import warnings

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pycotmech as pcm
from pycotmech.engine import graphs as graphs_module
from pycotmech.engine.joins import HeadJoins
from pycotmech.model.prompt_pass import PromptPass
from pycotmech.model.work import counted
from tests.reference.tiny import tiny_llama

T, FIRST = 24, 15
SHAPES = {"mha": dict(n_heads=4), "gqa": dict(n_heads=4, n_key_value_heads=2)}


class Foreign(AssertionError):
    """A pass read what a graph would not find at the next replay."""


class Reads(TorchDispatchMode):
    """Holds what runs to known tensors."""

    def __init__(self, known):
        super().__init__()
        self.known = {t.untyped_storage().data_ptr() for t in known if t.numel()}
        self.made = []  # kept, so that no address comes up twice

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for t in tree_leaves((args, kwargs)):
            if isinstance(t, torch.Tensor) and t.numel() and t.untyped_storage().data_ptr() not in self.known:
                raise Foreign(f"{func._schema.name} reads {t.dtype} {list(t.shape)}")
        out = func(*args, **(kwargs or {}))
        new = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.known |= {t.untyped_storage().data_ptr() for t in new if t.numel()}
        self.made += new
        return out


def filled_by(fn):
    """The tensors that a pass fills, which is being captured."""
    return fn.__closure__[fn.__code__.co_freevars.index("out")].cell_contents


class StandIn:
    """Captures by running once and replays by running again."""

    def __init__(self, family):
        self.family, self.log, self.pool = family, [], 0

    def capture(self, fn):
        graphs = graphs_module.kept.of(self.family)
        out = filled_by(fn)

        def run():
            known = [b.tensor for b in graphs._buffers.values()]
            with Reads([*self.family.hf.parameters(), *self.family.hf.buffers(), *known, *out]):
                fn()

        def replay():
            self.log.append("replay")
            for x in out:
                x.fill_(torch.nan)
            run()

        self.log.append("capture")
        run()
        return graphs_module.Captured(replay, self.pool)

    def mark(self):
        self.log.append("mark")
        return len(self.log)

    def after(self, mark):
        self.log.append("after")

    def drain(self):
        self.log.append("drain")


@pytest.fixture
def on(monkeypatch):
    """Makes a model one whose passes of variants are captured, and of prompts if they are to be; gives its graphs. Inputs of
    passes are poisoned when a call is over."""
    inputs = []
    real = graphs_module.Signature.__init__

    def read(self, staircase):
        real(self, staircase)
        inputs.extend(self.tensors)

    monkeypatch.setattr(graphs_module.Signature, "__init__", read)
    monkeypatch.setattr(HeadJoins, "_picks", staticmethod(lambda rows: False))  # as on a GPU
    is_for = PromptPass.is_for

    def start(model, *, prompts=False):
        monkeypatch.setattr(PromptPass, "is_for", staticmethod(is_for if prompts else lambda family, rows: False))
        monkeypatch.setattr(graphs_module, "captures", lambda device: True)
        monkeypatch.setattr(graphs_module, "backend_for", lambda device: StandIn(model.family))
        return graphs_module.kept.of(model.family)

    def poison():
        for t in inputs:
            if t.is_floating_point():  # the others are what the signature says; on the CPU it has them in common with the pass
                t.fill_(torch.nan)
        inputs.clear()

    start.poison = poison
    start.stop = lambda: monkeypatch.setattr(graphs_module, "captures", lambda device: False)
    return start


def prompts(seed, length=T):
    clean = torch.randint(61, (length,), generator=torch.Generator().manual_seed(seed))
    corrupted = clean.clone()
    corrupted[FIRST] = (corrupted[FIRST] + 1) % 61
    return clean, corrupted


def sweeps(case, seed, model, length=T):
    """The numbers of one call: values and noise floor."""
    clean, corrupted = prompts(seed, length)
    name, options = case
    options = dict(options)
    if name == "paths":
        options = dict(metric="logit_diff", answer=7, wrong=11, normalize=False, **options)
        found = pcm.path_patch(model, clean, corrupted, **options)
    elif name == "sweep":
        edits = (
            pcm.Edit("k", 0, 1, [16, 19], 0.0),
            pcm.Edit("z", 1, 2, None, 1.0),
            pcm.Edit("edge", 2, None, [23], keys=[3, 4]),
        )
        flat = pcm.Edit("pattern", 1, None, [18, 23], torch.full((1, length), 1 / 30).tril(FIRST))
        variants = [pcm.Variant(edits[:n]) for n in (1, 2, 3)] + [pcm.Variant((flat,))]
        found = pcm.sweep(model, clean, variants)
    elif name == "residual":
        found = pcm.patch_residual(model, clean, corrupted, **options)
    else:
        found = pcm.patch_heads(model, clean, corrupted, **options)
    return np.append(found.raw.flatten(), found.noise_floor)


CASES = {
    "z, everywhere": ("heads", dict(site="z")),
    "z, where it is read": ("heads", dict(site="z", positions=[-1])),
    "z, by position": ("heads", dict(site="z", by_position=True)),
    "z, noise": ("heads", dict(site="z", direction="noise", metric="logit_diff", answer=7, wrong=11)),
    "q": ("heads", dict(site="q")),
    "k": ("heads", dict(site="k", positions=[-1, -2])),
    "v": ("heads", dict(site="v", per_query_head=True)),
    "pattern": ("heads", dict(site="pattern")),
    "pattern, by position": ("heads", dict(site="pattern", by_position=True)),
    "resid_pre": ("residual", dict(site="resid_pre", by_position=True)),
    "mlp_out": ("residual", dict(site="mlp_out")),
    "attn_out": ("residual", dict(site="attn_out")),
    "edits of several layers": ("sweep", {}),
    "paths": ("paths", dict(senders=[(0, 1), (1, 3)], receivers=[(1, 0), (2, 3)], positions=[-1, -3])),
}


EACH = [(case, "gqa", torch.float32) for case in CASES]
EACH += [(case, "mha", torch.bfloat16) for case in ("z, everywhere", "z, where it is read", "pattern")]
EACH += [("z, everywhere", "gqa", torch.bfloat16), ("z, where it is read", "mha", torch.float32)]


@pytest.mark.parametrize(("case", "shape", "dtype"), EACH, ids=str)
def test_replays_are_what_is_run_kernel_by_kernel(case, shape, dtype, on):
    model = pcm.Model(tiny_llama(**SHAPES[shape], n_layers=3, dtype=dtype), check=False)
    model.family.few_launches = True  # as on a GPU
    expected = [sweeps(CASES[case], seed, model) for seed in range(3)]
    graphs = on(model)
    for seed in range(3):
        assert (sweeps(CASES[case], seed, model) == expected[seed]).all()
        on.poison()
    assert graphs.captures["variants"] == 1 and graphs.replays["variants"] == 2
    assert len({tuple(e) for e in expected}) == 3 and not np.isnan(np.concatenate(expected)[:-1]).any()


@pytest.fixture(scope="module")
def model():
    return pcm.Model(tiny_llama(**SHAPES["gqa"], n_layers=3))


@pytest.fixture(autouse=True)
def _forget():
    graphs_module.kept.clear()


def test_the_stand_in_sees_what_flows_around_the_buffers(model, on, monkeypatch):
    """A pass that is bound but for one part reads that part's own tensors, which no replay would find."""
    plain = graphs_module.bound

    def forgetful(x, to):
        out = plain(x, to)
        if isinstance(x, HeadJoins):
            vars(out)["signs"] = x.signs
        return out

    monkeypatch.setattr(graphs_module, "bound", forgetful)
    on(model)
    sweeps(CASES["z, everywhere"], 0, model)
    with pytest.raises(Foreign, match="int64"):
        sweeps(CASES["z, everywhere"], 1, model)


def test_pieces_of_one_call(model, on, monkeypatch):
    """Each piece of variants is a graph; what pieces have in common, the runs of the prompts, is copied once for all."""
    monkeypatch.setattr(graphs_module.kept, "reserved", lambda family, room: room // 8)
    monkeypatch.setattr(graphs_module.Graphs, "room", lambda self, room: 2**30)
    options = dict(memory_gb=0.0006, metric="logit_diff", answer=7, wrong=11, by_position=True)
    lists = [[[prompts(seed)[i] for seed in seeds] for i in (0, 1)] for seeds in ((0, 1, 2), (3, 4, 5), (6, 7, 8))]
    expected = [pcm.patch_heads(model, *two, **options) for two in lists]
    graphs, copies = on(model), []
    plain = torch.Tensor.copy_
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, x: (copies.append(x.nbytes), plain(self, x))[1])
    for e, two in zip(expected, lists, strict=True):
        copies.clear()
        before = graphs.replays["variants"]
        found = pcm.patch_heads(model, *two, **options)
        assert (found.raw == e.raw).all() and found.plan.bytes_in_flight <= found.plan.budget_bytes
    assert (
        found.plan.chunks > 3 and graphs.replays["variants"] - before == found.plan.chunks and graphs.captures["variants"] > 1
    )
    assert sum(copies) < sum(b.nbytes for b in graphs._buffers.values()) * found.plan.chunks / 2


@pytest.mark.parametrize("other", ["length", "positions", "site"])
def test_another_shape_is_another_graph(model, on, other):
    graphs = on(model)
    change = {"length": dict(length=T + 1), "positions": {}, "site": {}}[other]
    case = {"positions": "z, where it is read", "site": "q"}.get(other, "z, everywhere")
    for _ in range(2):
        sweeps(CASES["z, everywhere"], 0, model)
    sweeps(CASES[case], 0, model, **change)
    assert graphs.captures["variants"] == graphs.replays["variants"] == 1
    sweeps(CASES[case], 0, model, **change)
    assert graphs.captures["variants"] == graphs.replays["variants"] == len(graphs) == 2


@pytest.mark.parametrize("site", ["z", "q", "resid_mid"])
def test_prompts_of_other_lengths_replay_the_same_graph(site, model, on, monkeypatch):
    """Buffers are longer than what they hold. What lies after it is not looked at: here it is not a number."""
    case = ("residual" if site == "resid_mid" else "heads", dict(site=site, positions=[-1]))
    lengths = [T, T, T + 5, FIRST + 2, T + 9]
    expected = [sweeps(case, seed, model, length) for seed, length in enumerate(lengths)]
    graphs = on(model)
    blank = graphs_module._blank
    monkeypatch.setattr(graphs_module, "_blank", lambda shape, like: poisoned(blank(shape, like)))
    for seed, length in enumerate(lengths):
        assert (sweeps(case, seed, model, length) == expected[seed]).all()
    assert graphs.captures["variants"] == len(graphs) == 1 and graphs.replays["variants"] == len(lengths) - 1
    assert any(b.tensor.is_floating_point() and b.tensor.isnan().any() for b in graphs._buffers.values())


def poisoned(x):
    return x.fill_(torch.nan if x.is_floating_point() else 99)


def test_where_positions_decide_what_is_launched_lengths_are_apart(model, on):
    """Patterns read ranges of keys that are cut on the CPU."""
    graphs = on(model)
    case = CASES["pattern"]
    for length in (T, T + 5, T, T + 5):
        sweeps(case, 0, model, length)
    assert graphs.captures["variants"] == 2


def test_the_limit_is_kept_and_the_oldest_goes_first(model, on):
    graphs = on(model)
    graphs.backend.pool = 2**21

    def twice(length):
        return [sweeps(CASES["z, everywhere"], 0, model, length) for _ in range(2)][1]

    expected = [twice(length) for length in (T, T + 1, T + 2)]
    held = graphs.nbytes
    assert len(graphs) == 3 and held == sum(b.nbytes for b in graphs._buffers.values()) + sum(
        sum(x.nbytes for x in g.out) + 2**21 for g in graphs._graphs.values()
    )
    graphs.clear()
    assert len(graphs) == graphs.nbytes == len(graphs._buffers) == 0 and graphs.backend.log[-1] == "drain"
    graphs.limit = held - 1
    assert [(twice(length) == e).all() for length, e in zip((T, T + 1, T + 2), expected, strict=True)] == [True] * 3
    assert len(graphs) == 2 and graphs.nbytes <= graphs.limit
    before = graphs.captures["variants"]
    twice(T + 2)
    assert graphs.captures["variants"] == before
    twice(T)
    assert graphs.captures["variants"] == before + 1


def test_what_is_too_large_is_not_held(model, on):
    graphs = on(model)
    graphs.limit = 2**16  # below what the buffers need: known before
    for _ in range(3):
        sweeps(CASES["z, everywhere"], 0, model)
    assert graphs.captures["variants"] == graphs.nbytes == 0
    graphs.limit, graphs.backend.pool = 2**24, 2**24  # known when it was captured, and tried once
    for _ in range(3):
        sweeps(CASES["z, everywhere"], 0, model)
    assert graphs.captures["variants"] == 1 and len(graphs) == graphs.nbytes == graphs.replays["variants"] == 0
    graphs.limit = 0
    sweeps(CASES["z, everywhere"], 0, model)


def test_a_capture_that_fails(model, on):
    expected = [sweeps(CASES["z, everywhere"], seed, model) for seed in range(4)]
    graphs = on(model)

    def refuse(fn):
        fn()
        graphs.backend.log.append("refused")
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs.backend.capture = refuse
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for seed in range(4):
            assert (sweeps(CASES["z, everywhere"], seed, model) == expected[seed]).all()
    assert [("not permitted" in str(w.message)) for w in said] == [True]
    assert graphs.backend.log.count("refused") == 1 and graphs.nbytes == graphs.replays["variants"] == 0


def test_a_replay_that_gives_other_numbers(model, on):
    """It is found out at the first replay, said once, and no value of it is ever returned."""
    expected = [sweeps(CASES["z, everywhere"], seed, model) for seed in range(4)]
    graphs = on(model)
    honest = graphs.backend.capture

    def wrong(fn):
        captured = honest(fn)
        out = filled_by(fn)

        def replay():
            captured.replay()
            out[0].mul_(1 + 1e-4)

        return type(captured)(replay, captured.nbytes)

    graphs.backend.capture = wrong
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for seed in range(4):
            assert (sweeps(CASES["z, everywhere"], seed, model) == expected[seed]).all()
    assert ["off the pass run as usual" in str(w.message) for w in said] == [True]
    assert graphs.nbytes == graphs.replays["variants"] == 0


def test_a_first_replay_may_be_off_by_the_rounding_of_the_models_dtype():
    x = torch.randn(9, 48, generator=torch.Generator().manual_seed(0))
    graphs_module.Graphs._compare(x * (1 + 1e-3), x, torch.bfloat16)  # rows of a bfloat16 model are float32
    graphs_module.Graphs._compare(x * (1 + 1e-6), x, torch.float32)
    for factor, dtype in ((1.2, torch.bfloat16), (1 + 1e-3, torch.float32), (float("nan"), torch.bfloat16)):
        with pytest.raises(RuntimeError, match="off the pass run as usual"):
            graphs_module.Graphs._compare(x * factor, x, dtype)


def test_weights(on):
    """An update in place is read by the next replay; weights that lie elsewhere drop the graphs."""
    hf = tiny_llama(n_layers=3)
    model = pcm.Model(hf)
    graphs = on(model)

    def found():
        on.stop()
        expected = sweeps(CASES["z, everywhere"], 1, model)
        on(model)
        return (sweeps(CASES["z, everywhere"], 1, model) == expected).all()

    assert found() and found() and graphs.captures["variants"] == 1
    before = graphs.replays["variants"]
    hf.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    assert found() and graphs.captures["variants"] == 1 and graphs.replays["variants"] == before + 1
    hf.model.layers[1].mlp.up_proj.weight.data = hf.model.layers[1].mlp.up_proj.weight * 0.5
    assert found() and len(graphs) == 0
    assert found() and graphs.captures["variants"] == 2
    hf.model.layers[1].input_layernorm.variance_epsilon = 0.1  # a number that was recorded
    assert found() and len(graphs) == 0
    seen = []
    hf.model.layers[0].mlp.register_forward_hook(lambda *_: seen.append(1))
    for _ in range(3):
        assert found()
    assert len(graphs) == 0 and seen


def test_progress_counts_the_same(model, on):
    told = []
    for n in range(4):
        if n == 1:
            on(model)
        done = []
        clean, corrupted = prompts(n)
        pcm.patch_heads(model, clean, corrupted, progress=lambda *now, done=done: done.append(now))
        told.append(done[-1])
    assert len(set(told)) == 1 and told[0][0] == told[0][1] > 0


@pytest.mark.parametrize("case", ["z, everywhere", "pattern", "paths"])
def test_a_replay_counts_the_work_of_the_pass(case, model, on):
    """The pass that is captured runs more than once and a replay calls nothing: all count what the first one did."""
    graphs, found = on(model), []
    for seed in range(4):
        model.prefixes.clear()
        with counted(model.family) as tally:
            sweeps(CASES[case], seed, model)
        found.append((tally.layer_rows, tally.flop))
    assert graphs.captures["variants"] == 1 and graphs.replays["variants"] == 3
    assert len(set(found)) == 1 and found[0][0] > T * 3


def test_a_pass_comes_after_the_one_before(model, on):
    """Buffers are filled only behind the last replay that read them, on whatever stream that was."""
    graphs = on(model)
    for seed in range(4):
        sweeps(CASES["z, everywhere"], seed, model)
    first = ["capture", "replay"]  # which is held against the pass run as usual
    assert graphs.backend.log == [*first, "replay", "mark", "after", "replay", "mark", "after", "replay", "mark"]


def test_threads(model, on):
    expected = [sweeps(CASES["z, everywhere"], seed, model) for seed in range(6)]
    graphs, found = on(model), {}

    def call(seed):
        found[seed] = sweeps(CASES["z, everywhere"], seed, model)

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(6)]
    [t.start() for t in threads], [t.join() for t in threads]
    assert all((found[seed] == expected[seed]).all() for seed in range(6)) and graphs.replays["variants"] >= 4


def test_inference_mode(model, on):
    expected = [sweeps(CASES["z, everywhere"], seed, model) for seed in range(4)]
    graphs = on(model)
    for seed in range(4):
        with torch.inference_mode(seed != 2):
            assert (sweeps(CASES["z, everywhere"], seed, model) == expected[seed]).all()
    assert graphs.replays["variants"] == 3


def test_where_nothing_is_captured(model, monkeypatch):
    assert graphs_module.kept.of(model.family) is None and graphs_module.kept.reserved(model.family, 80) == 0
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    cuda = torch.device("cuda")
    assert graphs_module.captures(cuda) and not graphs_module.captures(torch.device("cpu"))
    monkeypatch.setenv("PYCOTMECH_CUDA_GRAPHS", "0")
    assert not graphs_module.captures(cuda)


def test_a_join_that_is_not_known_is_not_captured(model, on):
    """What does not say which of its parts stand on the device cannot be bound to buffers."""
    graphs = on(model)
    plain = HeadJoins.of
    HeadJoins.of = lambda self, first, end: lambda joining: plain(self, first, end)(joining)
    try:
        for seed in range(3):
            sweeps(CASES["z, everywhere"], seed, model)
    finally:
        HeadJoins.of = plain
    assert graphs.captures["variants"] == 0
