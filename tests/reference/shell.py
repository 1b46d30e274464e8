"""The console script, run in this process."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

import pytest

from pycotmech.cli import app


def exit_code(arguments: Sequence[object], monkeypatch: pytest.MonkeyPatch) -> int:
    """Runs `pycotmech` with these arguments and returns its exit code; the handler of SIGTERM is left as it was."""
    monkeypatch.setattr(sys, "argv", ["pycotmech", *map(str, arguments)])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stopped:
            app.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    return stopped.value.code
