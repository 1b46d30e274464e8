"""Converted models, kept between runs in the user's cache folder.

`PYCOTMECH_CACHE` names the folder; otherwise it is `pycotmech` in `XDG_CACHE_HOME` or in `~/.cache`. An entry is built
in a temporary folder and appears under its name in one rename, so a reader sees all of it or nothing, and two processes
that build the same entry do not disturb each other. A manifest with the size and SHA-256 of every file is checked at
each use (0.3 s for 540 MB); an entry that fails is built again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pycotmech.files.text import parse_json
from pycotmech.files.write import replacing

FORMAT = 1  # part of every key: raise it when a conversion changes what it writes
MANIFEST = "pycotmech.json"
_HEAD = 1 << 20  # bytes of the source file that go into the key
_STALE = 24 * 3600.0  # seconds after which a temporary folder belongs to no living process


def cache_root() -> Path:
    """The folder of all cached entries; it need not exist."""
    if named := os.environ.get("PYCOTMECH_CACHE"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pycotmech"


def entry_for(source: Path) -> Path:
    """Where the conversion of the file `source` lives: it moves when the file's size, time or beginning changes."""
    stat = source.stat()
    with source.open("rb") as file:
        head = file.read(_HEAD)
    digest = hashlib.sha256(f"{FORMAT}:{stat.st_size}:{stat.st_mtime_ns}:".encode() + head).hexdigest()
    name = "".join(c if c.isalnum() or c in "-._" else "_" for c in source.stem)
    return cache_root() / "models" / f"{name}-{digest[:16]}"


def read_entry(entry: Path) -> dict | None:
    """The facts stored with an entry, or None where it is missing, incomplete or damaged."""
    try:
        manifest = parse_json((entry / MANIFEST).read_text("utf-8"))
        for name, (size, digest) in manifest["files"].items():
            path = entry / name
            if path.stat().st_size != size or sha256_of(path) != digest:
                return None
        return manifest["facts"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def joined(name: str, parts: Sequence[Path], *, sha256: str, first: Callable[[], None]) -> Path:
    """The file that these parts are, one after another, in the cache; put together if it is not there yet.

    sha256: of the whole, checked when it is put together. first: called then.
    Raises ValueError where the parts are not the file, OSError where the cache cannot be written.
    """
    size, path = sum(part.stat().st_size for part in parts), cache_root() / "files" / name
    if path.is_file() and path.stat().st_size == size:
        return path
    digest = hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as out:
            for part in parts:
                with part.open("rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
                        out.write(block)
            if digest.hexdigest() != sha256:
                raise ValueError(f"the parts of {name} are not the file that they should be: {', '.join(map(str, parts))}")
    except OSError as error:
        raise OSError(f"{path} cannot be written; set PYCOTMECH_CACHE to a folder with room ({error})") from error
    first()
    return path


def get_or_build(entry: Path, build: Callable[[Path], dict], *, room: int = 0) -> dict:
    """The facts of `entry`, built by `build(folder) -> facts` where there is no sound one yet.

    room: bytes that the build will write; checked against the free space first. Raises OSError where the cache cannot
    be written, with the way out in the message.
    """
    facts = read_entry(entry)
    if facts is not None:
        return facts
    where = f"the model cache {entry.parent} cannot be written; set PYCOTMECH_CACHE to a folder with room"
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        _sweep(entry.parent)
        temporary = Path(tempfile.mkdtemp(prefix=".build-", dir=entry.parent))
    except OSError as error:
        raise OSError(f"{where} ({error})") from error
    try:
        free = shutil.disk_usage(temporary).free
        if free < room:
            raise OSError(f"{where} ({room / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free)")
        facts = build(temporary)
        files = {path.name: [path.stat().st_size, sha256_of(path)] for path in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps({"files": files, "facts": facts}, indent=1), "utf-8", newline="\n")
        return _publish(temporary, entry, facts)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, entry: Path, facts: dict) -> dict:
    for _ in range(5):
        try:
            os.rename(temporary, entry)
            return facts
        except OSError as error:
            if not entry.exists():
                raise OSError(f"cannot move the converted model to {entry} ({error})") from error
        # Something is there already: another process was quicker (keep its work), or a damaged entry (set it aside).
        theirs = read_entry(entry)
        if theirs is not None:
            return theirs
        aside = Path(tempfile.mkdtemp(prefix=".build-", dir=entry.parent))
        try:
            os.rename(entry, aside / "damaged")
        except FileNotFoundError:
            pass  # set aside by the other process in the same moment
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    raise OSError(f"cannot replace the damaged cache entry {entry}; delete it and try again")


def _sweep(folder: Path) -> None:
    """Removes the leftovers of killed processes."""
    for path in folder.glob(".build-*"):
        try:
            if time.time() - path.stat().st_mtime > _STALE:
                shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:
            continue


def sha256_of(path: Path) -> str:
    """Of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
