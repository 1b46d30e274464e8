"""CUDA graphs: a pass that has been seen before is replayed with one launch in place of thousands.

A pass over variants launches some thirty kernels for each layer and block of rows, one over prompts a dozen. With few rows
(the last position of a short list of heads, a small model) a GPU is done with each before the program has launched the next
one. What repeats is the whole pass: prompts of the same lengths with the same variants, which is what a loop over examples or
steps, or a list of prompts cut into chunks, asks for again and again. Only the numbers differ. Passes over prompts have a few
numbers of rows (`model.prompt_pass`), so that prompts of any length repeat them.

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
import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from pycotmech._warnings import warn
from pycotmech.engine import planner
from pycotmech.engine.recording import Backend, Captured, backend_for, captures
from pycotmech.model.families.base import Family
from pycotmech.model.placement import is_placed
from pycotmech.model.precision import matmul_precision
from pycotmech.model.work import LayerRows

_SHARE_OF_ROOM = 8
"""A call's memory budget divided by this may be held by graphs and their buffers."""

_ROUNDING = {torch.float64: 64, torch.float32: 64, torch.bfloat16: 8, torch.float16: 8}
"""Units in the last place of the model's dtype, relative to the norm, by which a first replay may differ from the pass run as
usual: buffers have other addresses than the tensors they replace, so a library may choose another kernel."""

_ATTENTION = tuple(getattr(torch.backends.cuda, f"{name}_sdp_enabled") for name in ("flash", "mem_efficient", "math", "cudnn"))
"""Whether PyTorch's attention may choose each of its kernels."""

_REMEMBERED = 4096
"""Signatures that were seen once."""


Taken = TypeVar("Taken", covariant=True)


class Pass(Protocol[Taken]):
    """What can be captured: a staircase of variants, or a pass over prompts (`model.prompt_pass`). It says what its attributes
    are (`on_device`, and if there are any `for_making` and `padded`), as do the objects among them.

    kind: of which of the two it is; a kind that could not be captured once is not tried again. tick: gets the rows that go
    through each layer.
    """

    kind: ClassVar[str]
    family: Family

    @property
    def n_rows(self) -> int:
        """Rows that go through the layers, at most."""
        ...

    def outputs(self) -> tuple[Tensor, ...]:
        """Room for what it computes."""
        ...

    def run_into(self, out: Sequence[Tensor]) -> None:
        """Runs the pass and fills this room."""
        ...

    def run(self) -> Taken:
        """Runs the pass and gives what the caller gets."""
        ...

    def result(self, out: Sequence[Tensor], *, copied: bool = False) -> Taken:
        """What the caller gets, from the room that was filled. copied: not as views of it."""
        ...

    def replayed(self, recorded: LayerRows) -> None:
        """Reports a replay as work. recorded: what the pass ticked that was captured."""
        ...


# ---- what a pass consists of -------------------------------------------------------------------------------------------


class NotCapturable(Exception):
    """A pass holds something of which it is not known whether it decides what is launched."""


class Signature:
    """Reads a pass: `tensors`, those on the device, each once, in a fixed order, with the `shapes` of their buffers, and
    `digest`, of everything else."""

    def __init__(self, one: Pass) -> None:
        self.tensors: list[Tensor] = []
        self.shapes: list[tuple[int, ...]] = []
        self._place: dict[int, int] = {}  # id of a tensor or an object -> its number
        self._hash = hashlib.blake2b(digest_size=16)
        self._object(one)
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
    out: tuple[Tensor, ...]
    rows: LayerRows  # that a replay takes through the parts of layers


class Graphs:
    """The graphs of one model, the most recently used up to a limit. One pass at a time goes through them.

    limit: bytes of buffers, results and memory pools; None: an eighth of what the call that asks may use; 0: none. At
        most half of it is taken.
    replays, captures: how often each was done, by kind of pass.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.limit: int | None = None
        self.replays, self.captures = Counter[str](), Counter[str]()
        self._graphs: OrderedDict[tuple, _Graph] = OrderedDict()
        self._buffers: dict[tuple, _Buffer] = {}  # shared by graphs, for they run one after another
        self._seen: OrderedDict[tuple, bool] = OrderedDict()  # whether it may be captured
        self._weights: tuple | None = None
        self._last: Any = None
        self._failed: set[str] = set()  # kinds
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._graphs)

    @property
    def nbytes(self) -> int:
        """What is held on the device, in bytes."""
        kept = sum(g.captured.nbytes + sum(map(_nbytes, g.out)) for g in self._graphs.values())
        return kept + sum(b.nbytes for b in self._buffers.values())

    def clear(self) -> None:
        """Drops everything; after a capture that failed, captures are tried again."""
        with self._lock:
            self._drop(len(self._graphs))
            self._seen.clear()
            self._failed.clear()

    def run(self, one: Pass[Taken], room: int) -> Taken:
        """`one.run()`, replayed if such a pass was captured before. room: bytes that the call may use."""
        limit = self.room(room)
        if one.kind in self._failed or limit == 0 or torch.is_autocast_enabled("cuda"):
            return one.run()
        try:
            signature = Signature(one)
        except NotCapturable:
            return one.run()
        key = (signature.digest, *_setting())
        with self._lock:
            graph = self._ready(one, signature, key, limit)
            found = [] if graph is None else [self._replay(one, graph)]
        if graph is None:
            return one.run()
        one.replayed(graph.rows)
        return found[0]

    def _replay(self, one: Pass[Taken], graph: _Graph) -> Taken:
        graph.captured.replay()
        out = one.result(graph.out, copied=True)
        self._last = self.backend.mark()
        self.replays[one.kind] += 1
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

    def _ready(self, one: Pass, signature: Signature, key: tuple, limit: int) -> _Graph | None:
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
        buffers = zip(signature.shapes, signature.tensors, strict=True)
        needed = sum(prod(shape) * t.element_size() for shape, t in buffers) + planner.graph_bytes(one.family, one.n_rows)
        if not self._seen[key] or needed > limit:
            return None
        graph = self._capture(one, signature)
        if graph is None:
            return None
        self._graphs[key] = graph
        self.captures[one.kind] += 1
        self._keep_to(limit)
        self._seen[key] = key in self._graphs  # too large on its own
        return self._graphs.get(key)

    def _capture(self, one: Pass, signature: Signature) -> _Graph | None:
        taken: list[tuple] = []
        nth, ticks = dict[tuple, int](), list[LayerRows]()
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
                places = {id(t): self._buffers[k].tensor for t, k in zip(signature.tensors, taken, strict=True)}
                static, out = bound(one, places), one.outputs()
                static.tick = ticks.append

                def run() -> None:
                    ticks.clear()
                    static.run_into(out)

                self._fill(taken, signature)
                captured = self.backend.capture(run)
                rows = reduce(LayerRows.plus, ticks, LayerRows())
                captured.replay()
                usual, expected = copy(one), one.outputs()
                vars(usual)["tick"] = lambda rows: None
                usual.run_into(expected)
                for replayed, plain in zip(out, expected, strict=True):
                    self._compare(replayed, plain, one.family.dtype)
                return _Graph(captured, taken, out, rows)
        except BaseException as error:
            self._release(taken)
            if not isinstance(error, RuntimeError):
                raise
            self._failed.add(one.kind)
            warn(
                f"pycotmech: a pass of {one.kind} could not be captured as a CUDA graph ({error}); passes of {one.kind} run "
                "kernel by kernel from now on. PYCOTMECH_CUDA_GRAPHS=0 switches graphs off."
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
        *(enabled() for enabled in _ATTENTION),
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
