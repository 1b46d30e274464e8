"""Shows a page in a browser through a server on this machine alone."""

from __future__ import annotations

import webbrowser
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HOST = "127.0.0.1"


def server_of(page: Path, port: int = 0) -> ThreadingHTTPServer:
    """Returns a server of one file, at /, for this machine. port: 0 takes a free one. Every other path is refused, and so is a
    request that names another host, as that of a foreign page whose name points here does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = (self.headers.get("Host") or "").rpartition(":")[0]
            if name not in (HOST, "localhost"):
                self.send_error(403)
            elif self.path not in ("/", f"/{page.name}"):
                self.send_error(404)
            else:
                content = page.read_bytes()
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return ThreadingHTTPServer((HOST, port), Handler)


def serve(page: Path, *, port: int = 0, browser: bool = True, say: Callable[[str], None] | None = None) -> None:
    """Serves the page until Ctrl-C. browser: whether to open it there. say: called with its address."""
    with server_of(page, port) as server:
        address = f"http://{HOST}:{server.server_address[1]}/"
        if say is not None:
            say(address)
        if browser:
            webbrowser.open(address)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
