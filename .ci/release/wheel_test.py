"""Installs the wheels of dist/ into fresh environments and tries them, as on a machine without a compiler and without extras.

    python .ci/release/wheel_test.py [--dist dist]

A fresh environment has the packages that the wheel requires and no other. They are links to those of this environment, since
PyTorch takes gigabytes. `pip check` confirms that nothing is missing. PATH holds the environment's own programs alone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).resolve().parent


def required(wheel: Path) -> list[str]:
    """The distributions that a wheel requires without any extra, and those that these require, installed here."""
    with zipfile.ZipFile(wheel) as file:
        (name,) = (n for n in file.namelist() if n.endswith(".dist-info/METADATA"))
        text = file.read(name).decode("utf-8")
    todo = [(Requirement(line), "") for line in Parser().parsestr(text).get_all("Requires-Dist") or []]
    found: dict[str, set[str]] = {}
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name, extras = canonicalize_name(requirement.name), {"", *requirement.extras}
        new = extras - found.get(name, set())
        if not new:
            continue
        found.setdefault(name, set()).update(new)
        distribution = metadata.distribution(name)  # raises PackageNotFoundError naming what is missing here
        todo += [(Requirement(line), e) for line in distribution.requires or [] for e in new]
    return sorted(found)


def link(names: list[str], site: Path) -> None:
    """Links the files of installed distributions into another environment's packages."""
    for name in names:
        distribution = metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}
        assert tops, f"{name} does not say which files it has"
        for top in tops:
            source, target = Path(str(distribution.locate_file(top))), site / top
            if source.exists() and not target.exists():
                target.symlink_to(source)


def fresh(place: Path, wheel: Path, names: list[str]) -> Path:
    """A new environment with the wheel and what it requires; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    python = place / "bin" / "python"
    (site,) = (place / "lib").glob("python3*/site-packages")
    link(names, site)
    environment = {**clean(place), "PATH": str(place / "bin")}
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    for command in (["install", "--quiet", "--no-index", "--no-deps", wheel], ["check"]):
        done = subprocess.run([*pip, *command], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"pip {command[0]}: {done.stdout}{done.stderr}"
    return python


def clean(place: Path) -> dict[str, str]:
    """The environment variables of a newcomer: no compiler on the PATH, no other place for packages."""
    kept = ("HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
    own = {name: os.environ[name] for name in kept if name in os.environ}
    return {**own, "PATH": str(place / "bin"), "HF_HUB_OFFLINE": "1", "PYCOTMECH_CACHE": str(place / "cache")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dist", type=Path, default=HERE.parents[1] / "dist", help="the folder that `make wheel` fills")
    dist = parser.parse_args().dist.resolve()
    for pattern, kind in (("*-abi3-manylinux*.whl", "compiled"), ("*-py3-none-any.whl", "reference")):
        wheels = sorted(dist.glob(pattern))
        if len(wheels) != 1:
            raise SystemExit(f"{dist} holds {len(wheels)} wheels {pattern}; expected one, from `make wheel`")
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="pycotmech-fresh-") as temporary:
            place = Path(temporary)
            names = required(wheels[0])
            python = fresh(place / "env", wheels[0], names)
            print(
                f"{wheels[0].name}: installed with {len(names)} required packages, {time.perf_counter() - start:.0f} s",
                flush=True,
            )
            work = place / "work"
            work.mkdir()
            (work / "smoke.py").write_text((HERE / "smoke.py").read_text("utf-8"), "utf-8")
            done = subprocess.run([python, "smoke.py", kind], cwd=work, env=clean(place / "env"), check=False)
            if done.returncode:
                raise SystemExit(f"{wheels[0].name} does not work in a fresh environment")
        print(f"{wheels[0].name}: works, {time.perf_counter() - start:.0f} s", flush=True)
    print("2 passed, 0 failed")


if __name__ == "__main__":
    main()
