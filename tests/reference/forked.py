"""A run in a child of this process, which has loaded everything already, so that a stop costs no start."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path


def start(work: Callable[[], object], errors: Path) -> int:
    """Forks a process that does the work and ends with 0, or with what `SystemExit` says; 70 for another error. Its standard
    error goes to the file. Returns its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        work()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(code)


def ended(pid: int, seconds: float) -> int | None:
    """The exit code of a child, negative for a signal; None if it is still there after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.001)


def stopped(pid: int, after: float, *signals: int, gap: float = 0.0, patience: float = 120.0) -> int:
    """Sends signals after so many seconds, unless the child has ended, and returns its exit code."""
    code = ended(pid, after)
    for number in signals:
        if code is None:
            os.kill(pid, number)
            code = ended(pid, gap)
    code = ended(pid, patience) if code is None else code
    if code is None:
        os.kill(pid, signal.SIGKILL)
        ended(pid, patience)
        raise AssertionError("the process does not end")
    return code
