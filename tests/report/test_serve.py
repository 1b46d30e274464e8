"""The server of one page: this machine alone, one file, no other host."""

from __future__ import annotations

import http.client
import threading

import pytest

from pycotmech.report.serve import server_of


@pytest.fixture
def address(tmp_path):
    page = tmp_path / "report.html"
    page.write_text("<!doctype html><title>page</title>")
    (tmp_path / "secret.txt").write_text("secret")
    with server_of(page) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address
        server.shutdown()
        thread.join()


def get(address, path, host=None):
    connection = http.client.HTTPConnection(*address, timeout=10)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.getheader("Content-Type"), body


def test_the_page_and_nothing_else(address):
    assert address[0] == "127.0.0.1"
    assert get(address, "/") == (200, "text/html; charset=utf-8", b"<!doctype html><title>page</title>")
    assert get(address, "/report.html")[0] == 200
    for path in ("/secret.txt", "/../secret.txt", "/%2e%2e/secret.txt"):
        status, _, body = get(address, path)
        assert status == 404 and b"secret\n" not in body


def test_a_page_of_another_host_gets_nothing(address):
    assert get(address, "/", host="evil.example:80")[0] == 403
    assert get(address, "/", host=f"localhost:{address[1]}")[0] == 200
