"""In the place of CUDA graphs, where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable

from pycotmech.engine.graphs import Captured


class Again:
    """Captures a pass by running it; a replay runs it again. `bytes`: what a capture is said to take."""

    def __init__(self, size: int = 0) -> None:
        self.bytes = size

    def capture(self, fn: Callable[[], None]) -> Captured:
        fn()
        return Captured(lambda: self.replayed(fn), self.bytes)

    def replayed(self, fn: Callable[[], None]) -> None:
        fn()

    def mark(self) -> None:
        return None

    def after(self, mark: None) -> None:
        pass

    def drain(self) -> None:
        pass
