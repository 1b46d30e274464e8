"""The code blocks of README.md, CONTRIBUTING.md and docs/ run as they stand, on tiny-cot in place of larger models.

Python blocks of one page are run one after another in one namespace, so a page is a session that a reader can follow from its
top. Of shell blocks the commands that begin with `pycotmech` are run, in a folder with the files that the pages speak of; the
others build, test and install, and test_commands_shown.py checks that they exist. A text block after a Python block is what
that block prints. A block that cannot run here is marked ```python no-run, and `NOT_RUN` says why. One marked ```python peers
needs other libraries, and is run by tests/peers/test_migration.py.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import pytest

import pycotmech as pcm
from pycotmech.model.families import registry
from tests.reference.shell import exit_code

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

FENCED = r"^( *)```([^\n]*)\n(.*?)^\1```$"
"""A block, perhaps indented in a list: indentation, what stands after the fence, its text."""

NOT_RUN = {
    (
        "docs/families.md",
        "from transformers import AutoModelForCausalLM",
    ): "a model of 70 billion parameters on several devices",
}
"""(page, first line of the block): why it is not run."""

SLOW = re.compile(r"pycotmech (paper (?!.*--plan)|doctor|.*--engine ray)")
"""Commands that are run with the slow tests. Ray's scheduler and messages are tested without it (tests/runs/workers)."""

SMALLER = (
    (r"smollm2-135m(-cot)?", "tiny-cot"),
    (r"--examples \d+", "--examples 2"),
    (r"--workers \d+", "--workers 1"),
    (r"pycotmech run (?!.*--pairs)", "pycotmech run --shots 1 --steps 4,5 "),
    (r"--points 0:\d+", "--points 0:1"),
    (r"--points \d+:(?!\d)", "--points 1:"),
)
"""What is written smaller in commands and blocks, so that they take seconds."""


OUTPUT = re.compile(r"\n*^ *```text\n((?!pycotmech ).*?)^ *```$", re.M | re.S)
"""A text block right after another block, which is no command: its output."""


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    info: str
    text: str
    prints: str | None = None

    @property
    def runs(self) -> bool:
        return not {"no-run", "peers"} & set(self.info.split())

    @property
    def head(self) -> str:
        return self.text.strip().splitlines()[0]


def blocks_of(page: Path, language: str) -> list[Block]:
    text, name = page.read_text(), page.relative_to(ROOT).as_posix()
    found = []
    for match in re.finditer(FENCED, text, re.M | re.S):
        if match[2].split()[:1] == [language]:
            shown = OUTPUT.match(text, match.end())
            printed = None if shown is None else textwrap.dedent(shown[1])
            found.append(Block(name, text[: match.start()].count("\n") + 2, match[2], textwrap.dedent(match[3]), printed))
    return found


def is_printed(shown: str, printed: str) -> bool:
    """Whether a block prints what the page shows. "..." stands for any lines; numbers may differ by 2 %, and those below 1e-5,
    which are the size of rounding, by any factor up to 10."""
    number = r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?"
    lines = [[re.sub(number, "#", line), *map(float, re.findall(number, line))] for line in printed.strip().splitlines()]

    def close(a: float, b: float) -> bool:
        if max(abs(a), abs(b)) < 1e-5:
            return a == b or 0.1 <= a / b <= 10
        return abs(a - b) <= 0.02 * max(abs(a), abs(b))

    for line in shown.strip().splitlines():
        if line.strip() == "...":
            return True
        if not lines:
            return False
        words, *numbers = lines.pop(0)
        expected = list(map(float, re.findall(number, line)))
        if words != re.sub(number, "#", line) or not all(map(close, expected, numbers)):
            return False
    return not lines


def smaller(text: str) -> str:
    for pattern, replacement in SMALLER:
        text = re.sub(pattern, replacement, text)
    return text


def commands() -> list:
    """Every command in shell blocks as it is run here, once, named after the first page that has it."""
    out = {}
    for page in PAGES:
        for block in blocks_of(page, "sh"):
            for line in block.text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["pycotmech"]:
                    command = smaller(shlex.join(words))
                    marks = [pytest.mark.slow] if SLOW.search(command) else []
                    out.setdefault(command, pytest.param(command, marks=marks, id=f"{block.page}: {shlex.join(words)[:60]}"))
    return list(out.values())


EARLIER = {
    "results": "run --steps 5",
    "paper-results": "paper --only patch_steps",
    "part0": "run --steps 5 --points 0:1",
    "part1": "run --steps 5 --points 1:",
}
"""Folders that an earlier command of a page, or of another page, has made, and how; any other by a run."""


def read_by(words: list[str]) -> list[str]:
    """The folders that a command reads."""
    if words[1] == "merge":
        return words[3:]
    return words[2:3] if words[1] in ("report", "figures", "status", "export") else []


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    """A folder with the files that the pages name, and with the folders of earlier commands that any block has asked for."""
    place = tmp_path_factory.mktemp("shelf")
    model = pcm.Model.from_pretrained("tiny-cot")
    examples = pcm.cot.make_examples(2, tokenizer=model.tokenizer, bos=model.prepend_bos, shots=1)
    text = examples[0].steps[5].text
    (place / "prompt.txt").write_text(text)
    (place / "segments.json").write_text(json.dumps({"question": examples[0].query, "shots": [1, 20]}))
    pairs = [{"clean": s.clean.tolist(), "corrupted": s.corrupted.tolist(), "answer": s.answer} for s in examples[0].steps[4:6]]
    (place / "mine.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return place


@pytest.fixture
def folder(shelf, tmp_path, monkeypatch) -> Path:
    """The working folder of a reader, with the files that the pages name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(matplotlib, "is_interactive", lambda: False)
    monkeypatch.setattr(registry, "FAMILIES", registry.FAMILIES)  # CONTRIBUTING.md adds one
    for file in shelf.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    return tmp_path


def call(line: str, monkeypatch, capsys) -> None:
    """Runs a command in this process, which must succeed."""
    code = exit_code(shlex.split(line)[1:], monkeypatch)
    assert code == 0, f"{line}\n{capsys.readouterr().err}"


@pytest.fixture
def make(shelf, folder, monkeypatch, capsys):
    """make(names): puts the folders that earlier commands have made into the working folder."""

    def made(names: list[str]) -> None:
        for name in names:
            if not (shelf / name).exists():
                command = EARLIER.get(name, "run --steps 1")
                line = f"pycotmech {command} --model tiny-cot --examples 2 --shots 1 --quiet"
                call(f"{line} --out {shlex.quote(str(shelf / name))}", monkeypatch, capsys)
            shutil.copytree(shelf / name, folder / name)

    return made


@pytest.mark.parametrize("page", [p for p in PAGES if blocks_of(p, "python")], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_python_blocks_run(page, make, capsys):
    namespace: dict = {"__name__": "__main__"}
    for block in blocks_of(page, "python"):
        if block.runs:
            make([name for name in re.findall(r'open_results\("([^"]+)"\)', block.text) if not Path(name).exists()])
            source = "\n" * (block.line - 1) + smaller(block.text)
            capsys.readouterr()
            exec(compile(source, page.name, "exec"), namespace)
            if block.prints is not None and "print(" in block.text:
                printed = capsys.readouterr().out
                assert is_printed(block.prints, printed), f"{block.page}, line {block.line}, prints\n{printed}"


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a 0.98 (L3H5)\n", "a 0.981 (L3H5)\n", True), ("a 0.98\n", "a 0.90\n", False), ("a\n...\n", "a\nb\nc\n", True),
        ("a\n", "a\nb\n", False), ("floor 1.9e-07", "floor 3.2e-07", True), ("floor 1.9e-07", "floor 1.9e-04", False),
        ("L3H5", "L3H6", False),
    ],
)  # fmt: skip
def test_what_a_page_shows_is_compared_with_what_is_printed(shown, printed, same):
    assert is_printed(shown, printed) is same


@pytest.mark.parametrize("command", commands())
def test_commands_run(command, make, monkeypatch, capsys):
    make(read_by(shlex.split(command)))
    call(command, monkeypatch, capsys)


def test_blocks_that_are_not_run_say_why():
    marked = {(b.page, b.head) for page in PAGES for b in blocks_of(page, "python") if "no-run" in b.info.split()}
    assert marked == set(NOT_RUN)


def test_no_block_hides_its_language():
    """A fence without a language would never be run; texts, trees and tables of files say ```text."""
    for page in PAGES:
        for _, info, _ in re.findall(FENCED, page.read_text(), re.M | re.S):
            assert info.split()[:1] and info.split()[0] in ("python", "sh", "text", "json"), f"{page.name}: ```{info}"
