"""CUDA graphs: a staircase pass that has been seen before is replayed with one launch in place of thousands.

A pass launches some thirty kernels for each layer and block of rows. With few rows (the last position of a short list of
heads, a small model) a GPU is done with each before the program has launched the next one. What repeats is the whole pass:
prompts of the same lengths with the same variants, which is what a loop over examples or steps, or a list of prompts cut
into chunks, asks for again and again. Only the numbers differ.

The objects that a pass consists of say which of their attributes are on the device (`on_device`). Everything else (where to
cut, which variants join where, which edits fall into which block) decides what is launched; its digest is the signature of
a pass. Two things are left out of it, so that prompts of other lengths replay the same graph: what is read only when a pass
is made (`for_making`), and the exact length of tensors whose rows are looked up by number (`padded`). Their buffers have
lengths that are rounded up; what lies after the end is zero at first and never looked at.

A pass whose signature comes up for the second time is captured: bound to buffers that stay where they are, run once to warm
up, run again while the launches are recorded. The first replay is compared with the pass run as usual; if they differ beyond
rounding, nothing is replayed any more. From then on a pass of this signature copies its tensors into the buffers and replays.
The arithmetic is the same kernels in the same order.

Weights are read where they are, so an update in place is seen; weights that were moved or replaced drop all graphs. Models
with hooks, adapters or other projections than the library's own are never captured: their Python would run once and not
again. Nor are models on several devices. The environment variable PYCOTMECH_CUDA_GRAPHS=0 switches all of this off.
"""

from __future__ import annotations

import hashlib
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pycotmech._warnings import warn
from pycotmech.engine import planner
from pycotmech.engine.staircase import Staircase
from pycotmech.model.families.base import Family
from pycotmech.model.placement import is_placed
from pycotmech.model.precision import matmul_precision
from pycotmech.model.work import LayerRows

_SHARE_OF_ROOM = 8
"""A call's memory budget divided by this may be held by graphs and their buffers."""

_ROUNDING = {torch.float64: 64, torch.float32: 64, torch.bfloat16: 8, torch.float16: 8}
"""Units in the last place of the model's dtype, relative to the norm, by which a first replay may differ from the pass run as
usual: buffers have other addresses than the tensors they replace, so a library may choose another kernel."""

_REMEMBERED = 4096
"""Signatures that were seen once."""


@dataclass(frozen=True)
class Captured:
    """Launches that were recorded: `replay` makes them again, on the current stream; nbytes: memory that they hold."""

    replay: Callable[[], None]
    nbytes: int


class Backend(Protocol):
    """What records launches and makes them again."""

    def capture(self, fn: Callable[[], None]) -> Captured:
        """Records what fn launches. fn has been called at least once when this returns; it may be called several times.
        Raises RuntimeError if something in it cannot be recorded."""
        ...

    def mark(self) -> Any:
        """A point in the current stream."""
        ...

    def after(self, mark: Any) -> None:
        """What the current stream does from now on comes after this point."""
        ...

    def drain(self) -> None:
        """Waits until everything that was launched is done."""
        ...


class CudaBackend:
    """CUDA graphs of PyTorch, each with a memory pool of its own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # One stream for warming up and for recording: what libraries allocate for a stream is then there beforehand.
        self.stream = torch.cuda.Stream(device)

    def capture(self, fn: Callable[[], None]) -> Captured:
        with torch.cuda.device(self.device):
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                fn()
            torch.cuda.current_stream().wait_stream(self.stream)
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            before, graph = torch.cuda.memory_reserved(), torch.cuda.CUDAGraph()
            # thread_local: what other threads of the program ask of the driver does not break the recording.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                fn()
            return Captured(graph.replay, max(0, torch.cuda.memory_reserved() - before))

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    def after(self, mark: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self.device).wait_event(mark)

    def drain(self) -> None:
        torch.cuda.synchronize(self.device)


def captures(device: torch.device) -> bool:
    """Whether passes on this device are captured."""
    return device.type == "cuda" and torch.version.cuda is not None and os.environ.get("PYCOTMECH_CUDA_GRAPHS", "1") != "0"


def backend_for(device: torch.device) -> Backend:
    return CudaBackend(device)


# ---- what a pass consists of -------------------------------------------------------------------------------------------


class NotCapturable(Exception):
    """A pass holds something of which it is not known whether it decides what is launched."""


class Signature:
    """Reads a pass: `tensors`, those on the device, each once, in a fixed order, with the `shapes` of their buffers, and
    `digest`, of everything else."""

    def __init__(self, staircase: Staircase) -> None:
        self.tensors: list[Tensor] = []
        self.shapes: list[tuple[int, ...]] = []
        self._place: dict[int, int] = {}  # id of a tensor or an object -> its number
        self._hash = hashlib.blake2b(digest_size=16)
        self._object(staircase)
        self.digest = self._hash.digest()

    def _say(self, *what: object) -> None:
        self._hash.update(repr(what).encode())

    def _object(self, x: Any) -> None:
        if not hasattr(x, "on_device"):
            raise NotCapturable(f"{type(x).__name__} does not say which of its attributes are on the device")
        known = id(x) in self._place
        self._say(type(x).__qualname__, self._place.setdefault(id(x), len(self._place)))
        # one family for all graphs; nothing that is launched depends on a tick
        unread = ("family", "tick", *getattr(x, "for_making", ()))
        for name in [] if known else sorted(vars(x).keys() - set(unread)):
            self._say(name)
            if name in x.on_device:
                self._input(getattr(x, name), getattr(x, "padded", {}).get(name))
            else:
                self._fixed(getattr(x, name))

    def _input(self, x: object, padded: tuple[int, int] | None = None) -> None:
        """padded: a dimension of tensors, and the multiple to which it is rounded up."""
        if isinstance(x, Tensor):
            known, shape = id(x) in self._place, _rounded_up(x.shape, padded)
            self._say("tensor", self._place.setdefault(id(x), len(self._place)), shape, x.dtype)
            if not known:
                self.tensors.append(x)
                self.shapes.append(shape)
        elif isinstance(x, dict):
            for key, value in x.items():
                self._say(key)
                self._input(value, padded)
        elif isinstance(x, tuple):
            self._say(len(x))
            for value in x:
                self._input(value, padded)
        elif x is None:
            self._say(None)
        else:
            self._object(x)

    def _fixed(self, x: object) -> None:
        if isinstance(x, Tensor) and x.device.type == "cpu":
            x = x.numpy()
        if isinstance(x, np.ndarray):
            self._say(x.dtype.str, x.shape)
            self._hash.update(np.ascontiguousarray(x).data)
        elif isinstance(x, list | tuple) and not all(isinstance(item, int) for item in x):
            self._say(len(x))
            for item in x:
                self._fixed(item)
        elif x is None or isinstance(x, int | float | str | list | tuple):
            self._say(x)
        elif hasattr(x, "on_device"):
            self._object(x)
        else:
            raise NotCapturable(f"{type(x).__name__} is not known to be the same in every pass of this shape")


def bound(x: Any, to: dict[int, Any]) -> Any:
    """A pass (or a part of one) with other tensors in place of its own: to: id of a tensor -> the other one."""
    if id(x) in to:
        return to[id(x)]
    if isinstance(x, dict):
        return {key: bound(value, to) for key, value in x.items()}
    if isinstance(x, tuple):
        return tuple(bound(value, to) for value in x)
    if x is None:
        return None
    to[id(x)] = out = copy(x)
    for name in x.on_device:
        vars(out)[name] = bound(getattr(x, name), to)
    return out


# ---- what is kept ------------------------------------------------------------------------------------------------------


class _Buffer:
    """A tensor at a fixed address, and what it holds, from its beginning on in each dimension."""

    def __init__(self, shape: tuple[int, ...], like: Tensor) -> None:
        self.tensor = _blank(shape, like)
        self.users = 0
        self._held: tuple[Callable[[], Tensor | None], int] | None = None

    def fill(self, x: Tensor) -> None:
        """Chunks of one call have their base runs in common: what is there already is not copied again."""
        to = self.tensor[tuple(map(slice, x.shape))]
        if x.is_inference():  # has no version
            to.copy_(x)
            self._held = None
        elif self._held is None or self._held[0]() is not x or self._held[1] != x._version:
            to.copy_(x)
            self._held = weakref.ref(x), x._version

    @property
    def nbytes(self) -> int:
        return _nbytes(self.tensor)


@dataclass(frozen=True)
class _Graph:
    captured: Captured
    buffers: list[tuple]  # keys of the cache's buffers, in the order of `Signature.tensors`
    out: Tensor
    rows: LayerRows  # that a replay takes through the parts of layers


class Graphs:
    """The graphs of one model, the most recently used up to a limit. One pass at a time goes through them.

    limit: bytes of buffers, results and memory pools; None: an eighth of what the call that asks may use; 0: none. At
        most half of it is taken.
    replays, captures: how often each was done.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.limit: int | None = None
        self.replays = self.captures = 0
        self._graphs: OrderedDict[tuple, _Graph] = OrderedDict()
        self._buffers: dict[tuple, _Buffer] = {}  # shared by graphs, for they run one after another
        self._seen: OrderedDict[tuple, bool] = OrderedDict()  # whether it may be captured
        self._weights: tuple | None = None
        self._last: Any = None
        self._failed = False
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._graphs)

    @property
    def nbytes(self) -> int:
        """What is held on the device, in bytes."""
        kept = sum(g.captured.nbytes + _nbytes(g.out) for g in self._graphs.values())
        return kept + sum(b.nbytes for b in self._buffers.values())

    def clear(self) -> None:
        """Drops everything; after a capture that failed, captures are tried again."""
        with self._lock:
            self._drop(len(self._graphs))
            self._seen.clear()
            self._failed = False

    def run(self, staircase: Staircase, room: int) -> Tensor:
        """`staircase.run()`, replayed if such a pass was captured before. room: bytes that the call may use."""
        limit = self.room(room)
        if self._failed or limit == 0 or torch.is_autocast_enabled("cuda"):
            return staircase.run()
        try:
            signature = Signature(staircase)
        except NotCapturable:
            return staircase.run()
        key = (signature.digest, *_setting())
        with self._lock:
            graph = self._ready(staircase, signature, key, limit)
            if graph is not None:
                graph.captured.replay()
                out = graph.out.clone()
                self._last = self.backend.mark()
                self.replays += 1
        if graph is None:
            return staircase.run()
        staircase.tick(graph.rows)
        return out

    def room(self, room: int) -> int:
        """Bytes that graphs may hold where a call may use `room`."""
        return room // _SHARE_OF_ROOM if self.limit is None else min(self.limit, room // 2)

    def trust(self, family: Family) -> None:
        """Drops the graphs if they would read weights where these no longer are."""
        tensors = family.tensors()
        weights = (*((t.data_ptr(), t.dtype, t.shape, t.stride()) for t in tensors), *family.constants())
        with self._lock:
            if weights != self._weights:
                self.clear()
                self._weights = weights

    def _ready(self, staircase: Staircase, signature: Signature, key: tuple, limit: int) -> _Graph | None:
        """The graph of this signature with the pass's tensors in its buffers; None if the pass is to be run as it is."""
        self._keep_to(limit)
        if key in self._graphs:
            self._graphs.move_to_end(key)
            self._fill(self._graphs[key].buffers, signature)
            return self._graphs[key]
        if key not in self._seen:
            self._seen[key] = True
            if len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
            return None
        rows, family = len(staircase.rows), staircase.family
        buffers = zip(signature.shapes, signature.tensors, strict=True)
        needed = sum(prod(shape) * t.element_size() for shape, t in buffers) + rows * planner.row_bytes(family)
        if not self._seen[key] or needed + planner.block_bytes(family, min(rows, family.sizes.row_block)) > limit:
            return None
        graph = self._capture(staircase, signature)
        if graph is None:
            return None
        self._graphs[key] = graph
        self.captures += 1
        self._keep_to(limit)
        self._seen[key] = key in self._graphs  # too large on its own
        return self._graphs.get(key)

    def _capture(self, staircase: Staircase, signature: Signature) -> _Graph | None:
        taken: list[tuple] = []
        family, nth, ticks = staircase.family, dict[tuple, int](), list[LayerRows]()
        try:
            with torch.inference_mode(False), torch.no_grad():
                for shape, t in zip(signature.shapes, signature.tensors, strict=True):
                    kind = (shape, t.dtype)
                    nth[kind] = nth.get(kind, -1) + 1
                    key = (*kind, nth[kind])
                    if key not in self._buffers:
                        self._buffers[key] = _Buffer(shape, t)
                    self._buffers[key].users += 1
                    taken.append(key)
                n_read = len(staircase.rows.read_rows)
                out = torch.empty(n_read, family.cfg.d_model, dtype=family.resid_dtype, device=family.device)
                places = {id(t): self._buffers[k].tensor for t, k in zip(signature.tensors, taken, strict=True)}
                static = bound(staircase, places)
                static.tick = ticks.append

                def run() -> None:
                    ticks.clear()
                    out.copy_(static.run())

                self._fill(taken, signature)
                captured = self.backend.capture(run)
                rows = reduce(LayerRows.plus, ticks)
                captured.replay()
                usual = copy(staircase)
                usual.tick = lambda rows: None
                self._compare(out, usual.run(), family.dtype)
                return _Graph(captured, taken, out, rows)
        except BaseException as error:
            self._release(taken)
            if not isinstance(error, RuntimeError):
                raise
            self._failed = True
            warn(
                f"pycotmech: a pass could not be captured as a CUDA graph ({error}); passes run kernel by kernel from now on. "
                "PYCOTMECH_CUDA_GRAPHS=0 switches graphs off."
            )
            return None

    @staticmethod
    def _compare(replayed: Tensor, usual: Tensor, dtype: torch.dtype) -> None:
        """RuntimeError if a replay gave other numbers than the pass run as usual. dtype: of the products in it."""
        off, size = float((replayed - usual).norm()), float(usual.norm())
        if not off <= _ROUNDING[dtype] * torch.finfo(dtype).eps * size:  # nor if it is not a number
            raise RuntimeError(f"its first replay is {off:.2g} off the pass run as usual, of {size:.2g}")

    def _fill(self, buffers: list[tuple], signature: Signature) -> None:
        if self._last is not None:
            self.backend.after(self._last)
        for key, t in zip(buffers, signature.tensors, strict=True):
            self._buffers[key].fill(t)

    def _keep_to(self, limit: int) -> None:
        while self.nbytes > limit and self._graphs:
            self._drop(1)

    def _drop(self, n: int) -> None:
        """Drops the n least recently used graphs."""
        if n:
            self.backend.drain()  # what they hold may still be read
        for _ in range(n):
            self._release(self._graphs.popitem(last=False)[1].buffers)

    def _release(self, buffers: list[tuple]) -> None:
        for key in buffers:
            self._buffers[key].users -= 1
            if self._buffers[key].users == 0:
                del self._buffers[key]


class KeptGraphs:
    """The graphs of every model, each for as long as its model lives."""

    def __init__(self) -> None:
        self._graphs: weakref.WeakKeyDictionary[Family, Graphs] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def of(self, family: Family) -> Graphs | None:
        """The graphs of a model (`of(model.family)`), valid for its weights as they are; None where nothing is captured.

        Cost: a look at every module and weight; once for a call, not once for a pass.
        """
        if not captures(family.device) or is_placed(family.hf) or not family.is_plain():
            return None
        with self._lock:
            if family not in self._graphs:
                self._graphs[family] = Graphs(backend_for(family.device))
            graphs = self._graphs[family]
        graphs.trust(family)
        return graphs

    def reserved(self, family: Family, room: int) -> int:
        """Bytes that are left to the graphs of a model by a call that may use `room`."""
        if not captures(family.device):
            return 0
        with self._lock:
            graphs = self._graphs.get(family)
        return room // _SHARE_OF_ROOM if graphs is None else graphs.room(room)

    def clear(self) -> None:
        """Forgets the graphs of all models."""
        with self._lock:
            self._graphs.clear()


kept = KeptGraphs()
"""Where all passes of this process are kept."""


def _setting() -> tuple:
    """What decides which kernels are launched, besides the pass and the weights."""
    matmul = torch.backends.cuda.matmul
    return (
        *matmul_precision(),
        matmul.allow_bf16_reduced_precision_reduction,
        matmul.allow_fp16_reduced_precision_reduction,
        torch.are_deterministic_algorithms_enabled(),
    )


def _rounded_up(shape: tuple[int, ...], padded: tuple[int, int] | None) -> tuple[int, ...]:
    if padded is None:
        return tuple(shape)
    dim, multiple = padded
    return (*shape[:dim], -(-shape[dim] // multiple) * multiple, *shape[dim + 1 :])


def _blank(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.zeros(shape, dtype=like.dtype, device=like.device)


def _nbytes(t: Tensor) -> int:
    return t.numel() * t.element_size()
