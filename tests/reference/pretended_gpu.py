"""A CUDA device where there is none: host code runs in full on tensors that say they are on it and have no values.

Tensors on the device are PyTorch's fake tensors: shapes, dtypes, strides and devices are followed, nothing is computed, and an
operation on tensors of two devices fails as on a GPU. What the host reads back is 1 (true). Tensors on the CPU are as always.
PyTorch's own Python code (`torch.cuda.set_device`, `torch.cuda.graph`, ...) runs as it is: only the C functions below it, which
ask the driver, are replaced.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import triton
from pycotmech.kernels import launch, topk
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pycotmech.model import placement
from pycotmech.model.families.base import Family
from pycotmech.ops import _registry

CUDA, META = 1, 14
"""Numbers of device types in PyTorch's C++ (c10/core/DeviceType.h)."""

_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
"""Their indices may be on the host."""


class OnGpu(TorchDispatchMode):
    """asked: operations on the device by name. reads: how often the host waited for a value. launched: kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.asked: Counter = Counter()
        self.reads = 0
        self.launched: Counter = Counter()
        kernels = _registry._cuda_kernels.items()
        self.kernels = {name: _registry._first_cuda_call(kernel, _no_reference) for name, kernel in kernels}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        there = [t for t in tensors if isinstance(t, FakeTensor)]
        wanted = kwargs.get("device")
        made_there = wanted is not None and torch.device(wanted).type == "cuda"
        if not there and not made_there:
            return func(*args, **kwargs)
        space, name = func._schema.name.split("::")
        self.asked[name] += 1
        if name == "_local_scalar_dense":
            self.read()
            return {torch.bool: True}.get(args[0].dtype, 1.0 if args[0].dtype.is_floating_point else 1)
        if name in ("equal", "is_nonzero"):
            self.read()
            return True
        if name == "_to_copy" and there and wanted is not None and not made_there:
            self.read()
            return self._values(torch.empty(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype))
        if name == "_to_copy" and not there:
            with self.fake:
                return torch.empty(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype, device=wanted)
        if name == "copy_" and not isinstance(args[0], FakeTensor):
            self.read()
            return self._values(args[0])
        if name == "copy_" and not isinstance(args[1], FakeTensor):
            return args[0]
        if name == "bincount":
            self.read()
            with self.fake:
                return torch.empty(max(1, (*args, 0, 0)[2]), dtype=torch.int64, device=args[0].device)
        if name in ("nonzero", "masked_select", "unique_dim", "_unique2"):
            raise NotImplementedError(f"{name}: not followed here, for how much is found is not known")
        if name in _INDEXING:
            args = (args[0], self._places(args[1]), *args[2:])
        elsewhere = [t for t in tensors if not isinstance(t, FakeTensor) and t.ndim]
        if there and elsewhere and name not in _INDEXING:
            shapes = [(str(t.device), tuple(t.shape)) for t in tensors]
            raise RuntimeError(f"{name}: Expected all tensors to be on the same device, but got {shapes}")
        with self.fake:
            out = func(*args, **kwargs)
        return self._by_its_kernel(name, args, kwargs, out) if space == "pycotmech" else out

    def _by_its_kernel(self, name: str, args: tuple, kwargs: dict, expected: Any) -> Any:
        """The op as its wrapper launches it. expected: what its shape function says."""
        if name not in self.kernels:
            return expected
        with self:
            out = self.kernels[name](*args, **kwargs)
        for got, want in zip(tree_leaves(out), tree_leaves(expected), strict=True):
            if want is not None and (got.shape, got.dtype, got.device) != (want.shape, want.dtype, want.device):
                raise AssertionError(f"{name}: the kernel gives {got}, the op {want}")
        return out

    def read(self) -> None:
        """Counts that the host waits for a value. RuntimeError while launches are recorded."""
        if Graph.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.reads += 1

    def _values(self, x: Tensor) -> Tensor:
        """What the host gets: numbers between 0.5 and 1.5 that differ, or 1."""
        return x.uniform_(0.5, 1.5) if x.is_floating_point() else x.fill_(1)

    def _places(self, indices: Iterable[Tensor | None]) -> list[Tensor | None]:
        """Indices in which masks are the places that they name: all."""
        found: list[Tensor | None] = []
        for x in indices:
            if x is not None and x.dtype == torch.bool and isinstance(x, FakeTensor):
                self.read()
                with self.fake:
                    found += [torch.empty(x.numel(), dtype=torch.int64, device=x.device) for _ in range(x.ndim)]
            else:
                found.append(x)
        return found


def _no_reference(*_args: Any, **_kwargs: Any) -> None:
    raise AssertionError("the wrapper of a kernel could not be imported")


class _Python(TorchFunctionMode):
    """What PyTorch's C++ does for Python's own types before an operation is asked for."""

    def __init__(self, gpu: OnGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], FakeTensor):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            args = (args[0], tuple(torch.tensor(i) if isinstance(i, list) else i for i in index), *args[2:])
        if func in (Tensor.tolist, Tensor.numpy, Tensor.__array__) and isinstance(args[0], FakeTensor):
            if func is not Tensor.tolist:
                raise TypeError(f"can't convert {args[0].device} device type tensor to numpy")
            self.gpu.read()
            return torch.ones(args[0].shape, dtype=args[0].dtype).tolist()
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and "cuda" in str(kwargs.get("device")):
            where = kwargs.pop("device")
            return func(*args, **kwargs).to(_numbered(where))
        if func is Tensor.cuda:
            func, args, kwargs = Tensor.to, (args[0], (*args[1:], kwargs.get("device"), "cuda")[0] or "cuda"), {}
        if func is Tensor.to:
            args, kwargs = tuple(map(_numbered, args)), {name: _numbered(x) for name, x in kwargs.items()}
        return func(*args, **kwargs)


def _numbered(x: Any) -> Any:
    """The first device where any is named: PyTorch's C++ asks the driver which one is current."""
    return torch.device("cuda", 0) if isinstance(x, torch.device | str) and str(x) == "cuda" else x


class Event:
    """elapsed_time: a millisecond for every event between."""

    made = 0

    def __init__(self, enable_timing: bool = False) -> None:
        self.timing, self.at = enable_timing, None

    def record(self, stream: Any = None) -> None:
        Event.made += 1
        self.at = Event.made

    def synchronize(self) -> None:
        if self.at is None:
            raise RuntimeError("the event was not recorded")

    def elapsed_time(self, other: Event) -> float:
        if not (self.timing and other.timing and self.at and other.at):
            raise ValueError("both events must be recorded, with timing enabled")
        return float(other.at - self.at)


class Stream:
    """cuda_stream: its number."""

    made = 0

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        torch.cuda._utils._get_device_index(device, optional=True)
        Stream.made += 1
        self.cuda_stream = self.stream_id = Stream.made
        self.device, self.device_index, self.device_type = torch.device("cuda", 0), 0, 1

    def wait_stream(self, other: Stream) -> None:
        assert isinstance(other, Stream)

    def wait_event(self, event: Event) -> None:
        assert isinstance(event, Event)

    def synchronize(self) -> None:
        pass


class Graph:
    """replays: of all graphs; capturing: whether one is being recorded."""

    replays, capturing = 0, False

    def __init__(self, keep_graph: bool = False) -> None:
        self.ready = False

    def capture_begin(self, *pool: Any, capture_error_mode: str = "global", **options: Any) -> None:
        assert not Graph.capturing and capture_error_mode in ("global", "thread_local", "relaxed")
        Graph.capturing = True

    def capture_end(self) -> None:
        assert Graph.capturing
        Graph.capturing, self.ready = False, True

    def replay(self) -> None:
        assert self.ready, "a graph that was not recorded"
        Graph.replays += 1


@contextmanager
def pretended_gpu(capability: tuple[int, int] = (9, 0), memory: int = 80 * 2**30, name: str = "stand-in") -> Iterator[OnGpu]:
    """One CUDA device in the block."""
    current, mode = [Stream()], OnGpu()
    card = SimpleNamespace(name=name, total_memory=memory, major=capability[0], minor=capability[1], multi_processor_count=132)

    def index(device: Any = None) -> int:
        found = torch.cuda._utils._get_device_index(device, optional=True)
        if found != 0:
            raise AssertionError(f"Invalid device id {found}")
        return found

    def set_current(device: int) -> None:
        if device != 0:
            raise RuntimeError("CUDA error: invalid device ordinal")

    def set_stream(stream: Stream | None) -> None:
        if stream is not None:
            current[0] = stream

    def generator(device: Any = "cpu") -> torch.Generator:
        return plain_generator("cpu" if torch.device(device).type == "cuda" else device)

    plain_generator = torch.Generator
    with pytest.MonkeyPatch.context() as patch:
        bytes_then = {"all": {"current": 2**30, "peak": 3 * 2**30}}
        below = dict(
            _cuda_setDevice=set_current, _cuda_getDevice=lambda: 0, _cuda_getDeviceCount=lambda: 1,
            _cuda_synchronize=lambda: None, _cuda_emptyCache=lambda: None, _host_emptyCache=lambda: None,
            _cuda_resetPeakMemoryStats=lambda device: None, _cuda_isInBadFork=lambda: False,
            _cuda_memoryStats=lambda device: dict.fromkeys(("allocated_bytes", "reserved_bytes"), bytes_then),
        )  # fmt: skip
        for what, fake in below.items():
            patch.setattr(torch._C, what, fake, raising=False)
        in_cuda = dict(
            _lazy_init=lambda: None, _initialized=True, _get_device_properties=lambda device: card, Event=Event, Stream=Stream,
            _exchange_device=lambda device: 0, _maybe_exchange_device=lambda device: 0,
            CUDAGraph=Graph, current_stream=lambda device=None: current[index(device)], set_stream=set_stream,
            mem_get_info=lambda device=None: (memory - 2**30 + index(device), memory),
        )  # fmt: skip
        for what, fake in in_cuda.items():
            patch.setattr(torch.cuda, what, fake, raising=False)
        patch.setattr(torch.cuda.graphs, "_CUDAGraph", Graph, raising=False)
        patch.setattr(torch.cuda.graph, "default_capture_stream", None)
        patch.setattr(fake_tensor, "init_gpu_context", lambda device: None)
        patch.setattr(torch.version, "cuda", "13.0")
        patch.setattr(torch, "Generator", generator)
        patch.setattr(nn.Module, "_apply", _applied)
        patch.setattr(placement, "_PLAIN", (*placement._PLAIN, FakeTensor))  # a weight without values is an ordinary one
        patch.setattr(Family, "is_quantised", lambda self: False)
        patch.setattr(F, "scaled_dot_product_attention", _attention)

        def launch_kernel(self: triton.JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
            if not all(isinstance(n, int) and 0 < n < 2**31 for n in grid) or max((*grid, 1, 1)[1:3]) > 65535:
                raise RuntimeError(f"{self.__name__}: a grid of {grid}")
            self.signature.bind(*args, **{name: x for name, x in options.items() if name in self.signature.parameters})
            mode.launched[self.__name__] += 1

        def launch_topk(*_args: Any) -> None:
            mode.launched["attn_topk"] += 1

        patch.setattr(triton.JITFunction, "run", launch_kernel)
        patch.setattr(topk, "library", object)
        patch.setattr(topk, "call", launch_topk)
        with launch.as_if_on(f"sm_{capability[0]}{capability[1]}"), _guarded_as_meta(), mode, _Python(mode):
            yield mode


@contextmanager
def _guarded_as_meta() -> Iterator[None]:
    """What PyTorch's C++ does to make a device the current one is, for CUDA, what it does for the meta device: nothing."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * (META + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before = guards[CUDA]
    guards[CUDA] = guards[META]
    try:
        yield
    finally:
        guards[CUDA] = before


def _applied(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """In the place of PyTorch's, which exchanges what lies below two tensors; fake ones have nothing below."""
    for module in self.modules():
        for name, x in module.named_parameters(recurse=False):
            module._parameters[name] = nn.Parameter(fn(x), requires_grad=x.requires_grad)
        for name, x in module.named_buffers(recurse=False):
            module._buffers[name] = fn(x)
    return self


def _attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask=None, *_args: Any, enable_gqa: bool = False, **_kwargs: Any
) -> Tensor:
    """In the place of PyTorch's attention, which chooses a kernel by asking the driver."""
    H, Hkv = q.shape[-3], k.shape[-3]
    if q.device != k.device or k.device != v.device or k.shape[-1] != q.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise RuntimeError(f"scaled_dot_product_attention: {[(x.device, tuple(x.shape)) for x in (q, k, v)]}")
    if Hkv != H and not (enable_gqa and H % Hkv == 0):
        raise RuntimeError(f"scaled_dot_product_attention: {H} heads over {Hkv}")
    return q.new_empty(*q.shape[:-1], v.shape[-1])
