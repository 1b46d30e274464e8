"""A worker of the local engine: a process that answers units for as long as the process that started it lives.

Started as `python -P -m pycotmech.runs.workers.process DESCRIPTOR`, where the descriptor is one end of a socket pair. Messages
are pickled, which is safe between a process and those that it starts itself.
"""

from __future__ import annotations

import importlib
import os
import pickle
import queue
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from pycotmech.runs.workers.units import ReplicaSpec

READY, REFUSED, ANSWERED = "ready", "refused", "answered"


def opened(spec: ReplicaSpec) -> Any:
    """Calls the function that the spec names, which returns what answers units."""
    module, _, name = spec.opener.partition(":")
    return getattr(importlib.import_module(module), name)(spec)


def send(connection: Connection, message: object) -> None:
    """Sends a message as plain pickle: that of `Connection.send` would share memory instead of copying tensors."""
    connection.send_bytes(pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL))


def receive(connection: Connection) -> Any:
    """Raises EOFError where the other side is gone."""
    return pickle.loads(connection.recv_bytes())


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, inbox), daemon=True).start()
    spec = inbox.get()
    try:
        replica = opened(spec)
    except Exception as error:
        send(connection, (REFUSED, _portable(error)))
        return
    send(connection, (READY, None))
    while True:
        send(connection, (ANSWERED, replica.answer(inbox.get())))


def _listen(connection: Connection, inbox: queue.SimpleQueue[Any]) -> None:
    """Takes in messages while the main thread computes. The end of them is the end of the process that sent them, and of
    this one, whatever it is doing."""
    while True:
        try:
            inbox.put(receive(connection))
        except (EOFError, OSError):
            os.kill(os.getpid(), signal.SIGKILL)


def _portable(error: Exception) -> Exception:
    """The error, or its text where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    main()
