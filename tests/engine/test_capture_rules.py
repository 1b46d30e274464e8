"""What CUDA asks of launches that are recorded, held without a GPU.

Every kind of pass runs on PyTorch's meta device, whose tensors have no values, with a stand-in for the recording. It runs a
pass once to warm up and once as if it was recorded. The second time an operation is refused that would fail or be frozen in a
graph: one that reads a value back, looks for places, takes values of the host, pins memory, or draws random numbers. Both times
must ask for the same operations: what is done at the first time only would be missing from a graph.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pycotmech as pcm
from pycotmech.engine import graphs
from pycotmech.engine.joins import HeadJoins
from pycotmech.engine.recording import CudaBackend
from pycotmech.model import model as model_module
from tests.engine.launches import META, Launches, one_attention
from tests.engine.test_graphs import CASES, SHAPES, sweeps
from tests.reference.stand_in_graphs import Again
from tests.reference.tiny import tiny_llama

READS = ("_local_scalar_dense", "item", "equal", "is_nonzero", "allclose")
PLACES = ("nonzero", "masked_select", "unique_dim", "_unique2", "unique_consecutive", "bincount", "argwhere")
RANDOM = ("rand", "normal", "uniform", "bernoulli", "multinomial", "dropout", "native_dropout", "exponential")
HOST = ("pin_memory", "_pin_memory", "record_stream", "is_pinned")


class Refused(RuntimeError):
    """What a recording does not take."""


class Recording(TorchDispatchMode):
    """Holds operations to the rules. asked: each that was run, with the shapes and dtypes of its tensors."""

    def __init__(self, strict: bool) -> None:
        super().__init__()
        self.strict = strict
        self.asked: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func._schema.name.split("::")[1], kwargs or {}
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        self.asked.append((name, *((tuple(t.shape), t.dtype) for t in given)))
        if self.strict and (why := self._why_not(name, args, given, kwargs)):
            raise Refused(f"operation not permitted when stream is capturing: {name} {why}")
        return func(*args, **kwargs)

    @staticmethod
    def _why_not(name: str, args: tuple, given: list[torch.Tensor], kwargs: dict) -> str | None:
        if name in READS:
            return "reads a value back"
        masks = [t for t in tree_leaves(args[1:2]) if name.startswith("index") and isinstance(t, torch.Tensor)]
        if name in PLACES or any(t.dtype == torch.bool for t in masks):
            return "waits for the number of places"
        if name.removesuffix("_").startswith(RANDOM):
            return "draws random numbers"
        if name in HOST:
            return "allocates or asks for memory of the host"
        if name == "repeat_interleave" and kwargs.get("output_size") is None:
            return "waits for the number of rows"
        # A number that was written into the program is a tensor for a moment, and a kernel's argument after it.
        if any(not t.is_meta and not (t.ndim == 0 and name in ("scalar_tensor", "lift_fresh")) for t in given):
            return "takes values of the host"
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type != "meta":
            return "makes a tensor on the host"
        return None


class Strict(Again):
    """Warms up, and records by the rules."""

    def __init__(self, launches: Launches) -> None:
        super().__init__()
        self.launches, self.recorded = launches, 0

    def capture(self, fn):
        with Recording(strict=False) as warm:
            fn()
        with Recording(strict=True) as recorded:
            fn()
        assert recorded.asked == warm.asked, "what is recorded is not what was run to warm up"
        self.recorded += 1
        return super().capture(fn)


@pytest.fixture
def strictly(monkeypatch):
    """A model without values whose passes are captured by the rules; and where their number is counted."""
    launches = Launches()
    monkeypatch.setattr(model_module, "_base_of", lambda hf: hf)  # refuses models without values
    monkeypatch.setattr(F, "scaled_dot_product_attention", one_attention(launches))
    monkeypatch.setattr(HeadJoins, "_picks", staticmethod(lambda rows: False))  # as on a GPU
    monkeypatch.setattr(graphs, "captures", lambda device: True)
    backend = Strict(launches)
    monkeypatch.setattr(graphs, "backend_for", lambda device: backend)
    monkeypatch.setattr(graphs.Graphs, "_compare", staticmethod(lambda replayed, usual, dtype: None))
    graphs.kept.clear()

    def start(shape="gqa", dtype=torch.bfloat16):
        model = pcm.Model(tiny_llama(**SHAPES[shape], n_layers=3, dtype=dtype).to(META), check=False)
        model.family.few_launches = True
        return model, launches, backend

    yield start
    graphs.kept.clear()


QUICK = ("z, where it is read", "resid_pre")


@pytest.mark.parametrize(
    "case",
    # The scale of "z, noise" needs two runs that differ, which values would tell.
    [pytest.param(c, marks=() if c in QUICK else pytest.mark.slow) for c in CASES if c != "z, noise"],
)
def test_passes_keep_to_the_rules(case, strictly):
    model, launches, backend = strictly("gqa")
    for seed in range(2):
        model.prefixes.clear()
        with launches:
            sweeps(CASES[case], seed, model)
    captured = graphs.kept.of(model.family).captures
    assert backend.recorded == captured.total() and captured["variants"] >= 1
    assert captured["prompts"] >= 1 or case == "edits of several layers"  # of one prompt, whose runs have no part in common


@pytest.mark.parametrize("rule", ["reads a value back", "waits for the number of places", "takes values of the host"])
def test_what_breaks_a_rule_is_refused(rule, strictly, monkeypatch):
    model, _, _ = strictly()
    plain, row = model.family.mlp_out, torch.ones(model.cfg.d_model)

    def broken(l, x):
        out = plain(l, x)
        if rule == "reads a value back":
            float(out.sum())
        elif rule == "waits for the number of places":
            out[x[:, 0] > 0]
        else:
            out = out + row
        return out

    monkeypatch.setattr(model.family, "mlp_out", broken)
    with Recording(strict=True), pytest.raises(Refused, match=rule):
        model.family.mlp_out(0, torch.empty(3, model.cfg.d_model, device=META))


def test_a_recording_that_fails_leaves_its_stream(monkeypatch):
    """PyTorch's context ends the recording before it leaves the stream, and the first raises where the recording broke."""
    streams: list = []

    class On:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            self.before = streams[-1]
            streams.append(self.stream)

        def __exit__(self, *_):
            streams.append(self.before)

    class Graph(On):
        def __init__(self, graph, stream, capture_error_mode):
            super().__init__(stream)

        def __exit__(self, *_):
            raise RuntimeError("operation failed due to a previous error during capture")

    class Stream:
        def __init__(self, device=None):
            pass

        def wait_stream(self, other):
            pass

    callers = Stream()
    streams.append(callers)
    fakes = dict(
        Stream=Stream, CUDAGraph=lambda: None, current_stream=lambda device=None: streams[-1], stream=On, graph=Graph,
        device=lambda device: nullcontext(), synchronize=lambda: None, empty_cache=lambda: None, memory_reserved=lambda: 0,
    )  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    calls = []

    def fn():
        calls.append(streams[-1])
        if len(calls) == 2:
            raise RuntimeError("operation not permitted when stream is capturing")

    backend = CudaBackend(torch.device("cuda", 0))
    with pytest.raises(RuntimeError, match="during capture"):
        backend.capture(fn)
    assert calls == [backend.stream] * 2 and streams[-1] is callers
