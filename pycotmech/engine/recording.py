"""Records what a pass launches, so that it can be launched again at once: CUDA graphs of PyTorch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch


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
            # A recording that fails does not leave its stream (`torch.cuda.graph` ends it first, which raises); `here` does.
            # thread_local: what other threads of the program ask of the driver does not break the recording.
            here = torch.cuda.stream(torch.cuda.current_stream())
            with here, torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
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
