"""Every file of a results folder, cut or with one bit flipped: it is made again or reported, and never read as a value."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import pycotmech as pcm
from pycotmech import paper
from pycotmech.runs import experiment
from pycotmech.runs.attention import summarise_text
from pycotmech.runs.events import EVENTS, read_events
from pycotmech.runs.report import build_report
from pycotmech.runs.trace_run import TraceSettings, run_traces
from tests.faults.conftest import ONLY, PAPER, RUN, TEXT, pairs_of, traces_of
from tests.faults.same import differing, wrong_values

REFUSALS = (ValueError, FileNotFoundError)


def damages(data: bytes, seed: str) -> Iterator[tuple[str, bytes]]:
    """The content cut somewhere, and with one bit flipped somewhere."""
    rng = random.Random(seed)
    yield "cut", data[: rng.randrange(len(data))]
    at = rng.randrange(len(data))
    yield "flipped", data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def files_of(folder: Path) -> list[Path]:
    """All files that hold anything, by their path in the folder."""
    return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and p.stat().st_size)


def kind_of(path: Path) -> str:
    """How files of this kind are called in the record."""
    if path.name == "zarr.json":
        return "zarr.json"
    if any(part.endswith(".zarr") for part in path.parts):
        return "chunks of arrays"
    return (
        path.name
        if path.suffix in (".json", ".jsonl")
        else {".png": "figures (PNG)", ".csv": "tables (CSV)"}.get(path.suffix, path.name)
    )


def each_damage(
    folder: Path, tmp_path: Path, chosen: Callable[[Path], bool] = lambda path: True
) -> Iterator[tuple[Path, Path, str]]:
    """(a copy of the folder, the damaged file in it, how), one after another."""
    for file in filter(chosen, files_of(folder)):
        for how, content in damages((folder / file).read_bytes(), str(file)):
            out = shutil.copytree(folder, tmp_path / "out")
            (out / file).write_bytes(content)
            yield out, file, how
            shutil.rmtree(out)


def check_log(out: Path, truth: Path) -> str:
    """What a damaged log gives: events that were written, and a count of the other lines."""
    written, found = read_events(truth).events, read_events(out)
    wrong = [event for event in found.events if event not in written]
    assert not wrong and len(found.events) >= len(written) - 1 - found.torn * len(written)
    return "reported" if found.torn or len(found.events) < len(written) else "same bits"


def check_sweeps(out: Path, file: Path, truth: Path, again: Callable[[Path], object]) -> str:
    """Reads a damaged folder of sweeps, runs its command again, and compares."""
    logged = check_log(out, truth) if file.name == EVENTS else None
    wrong = wrong_values(out, truth)
    assert not wrong, (file, wrong)
    try:
        again(out)
        build_report(out, top=3)
    except REFUSALS as error:
        assert str(out) in str(error) and "\n" not in str(error), (file, error)
        return "reported"
    assert not differing(out, truth), file
    if logged is not None:
        return logged
    if file.suffix in (".csv", ".jsonl", ".md") or file.name == "summary.json":
        assert (out / file).read_bytes() == (truth / file).read_bytes(), file
    elif file.suffix == ".png":
        assert (out / file).read_bytes()[-8:] == (truth / file).read_bytes()[-8:], file
    return "made again"


def check_paper(out: Path, file: Path, truth: Path) -> str:
    """The same of a folder of analyses."""
    logged = check_log(out, truth) if file.name == EVENTS else None
    expected = pcm.open_results(truth)
    before = expected.provenance
    try:
        results = pcm.open_results(out)
        for name in ONLY:
            assert results[name].drop_attrs().identical(expected[name].drop_attrs()), file
        made = results.provenance
        # If paper.json is lost, other facts are those that the results carry, under names as they were given.
        assert all(made[name] == before[name] for name in ("weights", "config")), file
    except REFUSALS:
        pass
    try:
        outcome = paper.run(PAPER, out, only=ONLY)
    except REFUSALS as error:
        assert str(out) in str(error) and "\n" not in str(error), (file, error)
        return "reported"
    assert not outcome.failures, file
    results = pcm.open_results(out)
    for name in ONLY:
        assert results[name].drop_attrs().identical(expected[name].drop_attrs()), file
    costs = [json.loads((folder / "paper.json").read_text("utf-8"))["costs"][ONLY[0]] for folder in (out, truth)]
    assert {k: v for k, v in costs[0].items() if k != "seconds"} == {k: v for k, v in costs[1].items() if k != "seconds"}, file
    if logged is not None:
        return logged
    if file.suffix in (".csv", ".png"):
        assert (out / file).read_bytes() == (truth / file).read_bytes(), file
    return "made again"


def check_attention(out: Path, file: Path, truth: Path) -> str:
    """Of a text's attention: it is read and drawn from the checked arrays alone."""
    expected = pcm.open_results(truth)
    outcome = "not read"
    try:
        results = pcm.open_results(out)
        for name in results.names:
            found = results[name]
            for variable in found.variables:
                np.testing.assert_array_equal(found[variable].values, expected[name][variable].values)
        for table in results.tables:
            assert results.table(table).equals(expected.table(table)), file
        assert results.provenance == expected.provenance, file
    except REFUSALS as error:
        assert "\n" not in str(error)
        outcome = "reported"
    assert outcome == "reported" or not any(part.endswith(".zarr") for part in file.parts), file
    if file.suffix in (".csv", ".png"):
        summarise_text(TEXT, out, model="tiny-cot", segments="begin=1:3", top_k=2, overwrite=True)
        assert (out / file).read_bytes() == (truth / file).read_bytes(), file
    return outcome


def check_trace(out: Path, file: Path, truth: Path, settings: TraceSettings) -> str:
    """Of analyses of traces: what is damaged is made again, or the folder is refused."""
    logged = check_log(out, truth) if file.name == EVENTS else None
    expected = pcm.open_results(truth)
    try:
        results = pcm.open_results(out)
        for name in results.names:
            assert results[name].drop_attrs().identical(expected[name].drop_attrs()), (file, name)
    except REFUSALS as error:
        assert "\n" not in str(error), (file, error)
    try:
        outcome = run_traces(settings, out)
    except REFUSALS as error:
        assert str(out) in str(error) and "\n" not in str(error), (file, error)
        return "reported"
    assert not outcome.failures, file
    results = pcm.open_results(out)
    assert results.names == expected.names, file
    for name in results.names:
        assert results[name].drop_attrs().identical(expected[name].drop_attrs()), (file, name)
    if logged is not None:
        return logged
    if file.suffix in (".csv", ".png") or file.name == "traces.jsonl":
        assert (out / file).read_bytes() == (truth / file).read_bytes(), file
    return "made again"


def tried(tally, command: str, cases, check) -> None:
    """Counts a check of each case; one that fails is counted as lost, and ends the test."""
    for out, file, how in cases:
        kind = f"{command}: {kind_of(file)}, {how}"
        try:
            tally.add(kind, check(out, file))
        except BaseException:
            tally.add(kind, "lost")
            raise


def few(path: Path) -> bool:
    """One file of each kind, for the quick tests."""
    return str(path) in (
        "results.zarr/raw/c.1.0.0.0",
        "results.zarr/state/c.0.0",
        "results.zarr/zarr.json",
        "examples.jsonl",
        EVENTS,
    )


def test_a_few_files_of_a_run(run_folder, tmp_path, tally):
    cases = each_damage(run_folder, tmp_path, few)
    tried(tally, "run (a few)", cases, lambda out, file: check_sweeps(out, file, run_folder, lambda o: experiment.run(RUN, o)))
    assert sum(sum(found.values()) for kind, found in tally.counts.items() if kind.startswith("run (a few)")) == 10


@pytest.mark.slow
def test_every_file_of_a_run(run_folder, tmp_path, tally):
    cases = each_damage(run_folder, tmp_path)
    tried(tally, "run", cases, lambda out, file: check_sweeps(out, file, run_folder, lambda o: experiment.run(RUN, o)))


@pytest.mark.slow
def test_every_file_of_a_sweep_of_pairs(sweep_folder, tmp_path, tally):
    settings = pairs_of(tmp_path)
    cases = each_damage(sweep_folder, tmp_path)
    tried(tally, "sweep", cases, lambda out, file: check_sweeps(out, file, sweep_folder, lambda o: experiment.run(settings, o)))


@pytest.mark.slow
def test_every_file_of_the_paper(paper_folder, tmp_path, tally):
    cases = each_damage(paper_folder, tmp_path)
    tried(tally, "paper", cases, lambda out, file: check_paper(out, file, paper_folder))


@pytest.mark.slow
def test_every_file_of_attention(attention_folder, tmp_path, tally):
    cases = each_damage(attention_folder, tmp_path)
    tried(tally, "attention", cases, lambda out, file: check_attention(out, file, attention_folder))


@pytest.mark.slow
def test_every_file_of_a_trace(trace_folder, tmp_path, tally):
    settings = traces_of(tmp_path)
    cases = each_damage(trace_folder, tmp_path)
    tried(tally, "trace", cases, lambda out, file: check_trace(out, file, trace_folder, settings))


@pytest.mark.slow
def test_exports_carry_what_finds_a_changed_byte(run_folder, tmp_path, tally):
    """A Parquet file has a checksum for each page, which its readers verify if they are asked to."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (path,) = pcm.open_results(run_folder).to_parquet(tmp_path / "x.parquet")
    expected = pq.read_table(path)
    data, rng = path.read_bytes(), random.Random(5)
    for _ in range(40):
        at = rng.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        try:
            found = pq.read_table(path, page_checksum_verification=True)
        except (OSError, pa.ArrowException):
            tally.add("export: Parquet, flipped", "reported")
            continue
        same = all(
            np.array_equal(found[c].to_numpy(), expected[c].to_numpy(), equal_nan=expected[c].type != "string")
            for c in ("raw", "effect")
        )
        tally.add("export: Parquet, flipped", "same bits" if same else "lost")
        assert same, at
