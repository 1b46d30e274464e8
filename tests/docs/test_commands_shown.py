"""Commands that the pages show and that test_code_blocks.py does not run: their targets, files, commands and options exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import typer

from pycotmech.cli import app as cli
from tests.docs.test_code_blocks import FENCED, PAGES, ROOT, blocks_of

COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
OPTIONS = {name: {o for p in command.params for o in (*p.opts, *p.secondary_opts)} for name, command in COMMANDS.items()}
EVERYWHERE = {"--help", "--version", "--install-completion", "--show-completion"}
OTHERS = {
    *("--record-families", "--record-faults", "--no-deps", "--no-build-isolation", "--benchmark-only"),  # of pytest and pip
    *("--ray", "--repeats"),  # of python -m benchmarks.workers
}
"""Options of other programs that the pages name in passing."""


def lines_of(language: str) -> list[tuple[str, str]]:
    return [
        (block.page, line)
        for page in PAGES
        for block in blocks_of(page, language)
        for line in block.text.replace("\\\n", " ").splitlines()
    ]


def in_text() -> list[tuple[str, str]]:
    """Code in the sentences and tables of the pages."""
    found = []
    for page in PAGES:
        text = re.sub(FENCED, "", page.read_text("utf-8"), flags=re.M | re.S)
        found += [(page.relative_to(ROOT).as_posix(), code) for code in re.findall(r"`([^`\n]+)`", text)]
    return found


def test_make_targets_and_modules_exist():
    targets = set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text("utf-8"), re.M))
    seen = 0
    for page, line in [*lines_of("sh"), *in_text()]:
        for target in re.findall(r"(?:^|&& )make ([a-z][\w-]*)", line):
            assert target in targets, f"{page}: {line}"
            seen += 1
        for module in re.findall(r"python -m ((?:tests|benchmarks|pycotmech|examples)[\w.]*)", line):
            assert importlib.util.find_spec(module), f"{page}: {line}"
            seen += 1
        command = re.match(r"(\w+=\S+ )*(\S*python|pytest) ", line)
        for path in re.findall(r" ((?:tests|docs/site|benchmarks|examples)/[\w/.]+\.py)\b", line) if command else ():
            assert (ROOT / path).exists(), f"{page}: {line}"
            seen += 1
    assert seen > 40


def test_every_line_of_a_shell_block_is_of_a_known_program():
    """A line of any other program would neither be run nor checked."""
    known = ("pycotmech", "make", "git", "python", "pytest")
    for page, line in lines_of("sh"):
        words = [word for word in shlex.split(line, comments=True) if not re.match(r"\w+=", word)]
        assert not words or Path(words[0]).name in known, f"{page}: {line}"


def test_commands_in_sentences_have_the_options_that_they_show():
    seen = 0
    shown = [(page, line.strip()) for page, line in lines_of("text")]
    for page, code in [*in_text(), *shown]:
        words = code.replace("[", " ").replace("]", " ").split("#")[0].split()
        if words[:1] != ["pycotmech"] or len(words) < 2 or not re.fullmatch(r"[a-z]+", words[1]):
            continue
        assert words[1] in COMMANDS, f"{page}: {code}"
        options = {word.partition("=")[0] for word in words[2:] if re.match(r"--?[a-z]", word)}
        assert options <= OPTIONS[words[1]] | EVERYWHERE, f"{page}: {code}"
        seen += 1
    assert seen > 40


@pytest.mark.parametrize(
    "page", ["README.md", "docs/shell.md", "docs/start.md", "docs/results.md", "docs/traces.md", "docs/scale.md"]
)
def test_options_in_sentences_exist(page):
    every = set().union(*OPTIONS.values()) | EVERYWHERE | OTHERS
    named = {option for name, code in in_text() if name == page for option in re.findall(r"(?:^| )(--[a-z][a-z-]*)", code)}
    foreign = {
        option
        for name, code in in_text()
        if name == page and re.match(r"(pip|python|make|pytest) ", code)
        for option in re.findall(r"--[a-z-]+", code)
    }
    assert named - foreign <= every
