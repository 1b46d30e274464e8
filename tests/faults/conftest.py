"""Undisturbed results, and the record of faults."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycotmech import paper
from pycotmech.runs import Settings, experiment
from pycotmech.runs.attention import summarise_text
from pycotmech.runs.report import build_report
from pycotmech.runs.trace_run import TraceSettings, run_traces
from tests.faults.tally import Tally

RUN = Settings(model="tiny-cot", examples=2, shots=0, steps=(1, 5, 9), threads=1)
PAPER = Settings(model="tiny-cot", examples=2, shots=2, steps=(2, 5), threads=1)
ONLY = ("copy_heads",)
TEXT = "The cat is a cat."


@pytest.fixture(scope="session")
def tally(request) -> Iterator[Tally]:
    tally = Tally()
    yield tally
    path = request.config.getoption("--record-faults")
    if path is not None:
        tally.write(Path(path))


def pairs_of(place: Path) -> Settings:
    lines = [{"clean": [1, 5, 6, 7 + i], "corrupted": [1, 5, 8, 7 + i], "name": f"pair {i}"} for i in range(3)]
    (place / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    return Settings(model="tiny-cot", pairs=place / "mine.jsonl", threads=1)


def traces_of(place: Path) -> TraceSettings:
    """Two traces of 37 tokens and eight sentences, with answers: as few as every analysis takes."""
    spans = [[a, a + 3] for a in range(5, 29, 3)]
    lines = [
        {"tokens": [1, *range(first, first + 36)], "sentences": spans, "answer": [31, 33], "name": f"t{first}"}
        for first in (5, 60)
    ]
    (place / "traces.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    return TraceSettings("tiny-cot", place / "traces.jsonl", threads=1)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "out"
    experiment.run(RUN, folder)
    build_report(folder, top=3)
    return folder


@pytest.fixture(scope="session")
def sweep_folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("sweep")
    experiment.run(pairs_of(place), place / "out")
    build_report(place / "out", top=3)
    return place / "out"


@pytest.fixture(scope="session")
def paper_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("paper") / "out"
    paper.run(PAPER, folder, only=ONLY)
    return folder


@pytest.fixture(scope="session")
def attention_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("attention") / "out"
    summarise_text(TEXT, folder, model="tiny-cot", segments="begin=1:3", top_k=2)
    return folder


@pytest.fixture(scope="session")
def trace_folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("trace")
    run_traces(traces_of(place), place / "out")
    return place / "out"
