"""What differs between systems: encodings of text files, line ends, and functions that Windows lacks."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = sorted((ROOT / "pycotmech").rglob("*.py"))

POSIX_ONLY = {
    *("fork", "getuid", "geteuid", "getpgid", "killpg", "pread", "pwrite", "sched_getaffinity", "uname", "statvfs"),
    *("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "O_DIRECTORY", "SIGKILL", "SIGHUP", "SIGALRM", "alarm", "setitimer"),
}
"""Attributes of os and signal. Where the system may lack one, `getattr` with a default reads it."""
LOCAL_ENGINE = {"runs/workers/process.py", "runs/workers/local.py"}
"""Files that only run on POSIX systems: elsewhere the local engine is refused (`EngineChoice.check`)."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / "pycotmech").as_posix()


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]


def opens_text(call: ast.Call) -> bool:
    """Whether this reads or writes a text file with an encoding that the system chooses."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    words = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    if any(k.arg == "encoding" for k in call.keywords) or {"utf-8", "utf-8-sig"} & set(words):
        return False
    if name in ("read_text", "write_text"):
        on_path = isinstance(call.func, ast.Attribute)
        return on_path and not (name == "write_text" and len(call.args) > 1)
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    if name != "open" or (isinstance(owner, ast.Name) and owner.id in ("os", "tarfile", "zipfile", "webbrowser")):
        return False
    return not any("b" in word for word in words)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("path.read_text()", True), ("path.read_text('utf-8', 'replace')", False), ("path.open()", True),
        ("open(p, 'w')", True), ("open(p, 'rb')", False), ("path.open('w', encoding='utf-8')", False),
        ("os.open(p, 0)", False), ("p.write_text(t)", True), ("write_text(path, text)", False),
    ],
)  # fmt: skip
def test_text_files_without_an_encoding_are_seen(code, found):
    (call,) = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call))
    assert opens_text(call) is found


def test_text_files_have_an_encoding():
    assert [f"{name_of(p)}:{call.lineno}" for p in PROGRAM for call in calls(p) if opens_text(call)] == []


def test_tables_end_their_lines_alike_everywhere():
    """pandas ends lines as the system does unless it is told."""
    found = [(p, c) for p in PROGRAM for c in calls(p) if isinstance(c.func, ast.Attribute) and c.func.attr == "to_csv"]
    own = [
        (p, c)
        for p, c in found
        if not any(k.arg == "lineterminator" for k in c.keywords) and name_of(p) != "runs/results_base.py"
    ]
    assert len(found) >= 6 and [f"{name_of(p)}:{c.lineno}" for p, c in own] == []


def test_what_windows_lacks_is_not_taken_for_granted():
    found = {
        f"{name_of(path)}:{node.lineno}: {node.attr}"
        for path in PROGRAM
        if name_of(path) not in LOCAL_ENGINE
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in POSIX_ONLY
        and isinstance(node.value, ast.Name)
        and node.value.id in ("os", "signal")
    }
    assert found == set()
    imported = {
        f"{name_of(path)}: {alias.name}"
        for path in PROGRAM
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name in ("fcntl", "resource", "termios", "pwd", "grp")
    }
    assert imported == set()
