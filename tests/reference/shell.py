"""The console script, run in this process."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

import pytest

from pycotmech.cli import app


def exit_code(arguments: Sequence[object], monkeypatch: pytest.MonkeyPatch) -> int:
    """Runs `pycotmech` with these arguments and returns its exit code; the handlers of signals are left as they were."""
    monkeypatch.setattr(sys, "argv", ["pycotmech", *map(str, arguments)])
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with pytest.raises(SystemExit) as stopped:
            app.main()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return stopped.value.code
