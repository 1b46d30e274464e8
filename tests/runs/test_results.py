"""`pcm.open_results`: one object for every kind of folder, lazy, safe to show, with its exports."""

from __future__ import annotations

import json
import time

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import pycotmech as pcm
from pycotmech import paper
from pycotmech.files.arrays import DamagedData
from pycotmech.runs import ResultAxes, Settings, SweepStore, experiment, read
from pycotmech.runs.attention import summarise_text
from pycotmech.runs.events import EVENTS
from tests.runs.synthetic import sweep_of

NASTY = "<b>m</b>\x1b[2J"
MADE = ("model", "weights", "config", "dtype", "device", "threads", "versions", "arguments", "created")


def synthetic(folder, n=3, steps=(5, 9), *, identity=None, unfinished=()):
    axes = ResultAxes([f"e{i}" for i in range(n)], list(steps), ["induction"] * len(steps), n_layers=4, n_heads=3)
    identity = identity or {"model": NASTY, "metric": "kl", "direction": "denoise", "positions": "all"}
    about = {
        "model": {"name": NASTY, "description": NASTY, "notes": []},
        "threads": 1,
        "created": "now",
        "versions": {"torch": "2"},
    }
    store = SweepStore.create(folder, axes, identity=identity, about=about)
    for e in set(range(n)) - set(unfinished):
        store.grade(e, [1] * len(steps))
        store.finish(e, list(range(len(steps))), [sweep_of(10 * e + s) for s in range(len(steps))], 1.0)
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    experiment.run(Settings(model="tiny-cot", examples=2, shots=0, steps=(5, 9), threads=1), folder)
    return folder


@pytest.fixture(scope="module")
def pairs_folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pairs")
    lines = [{"clean": [1, 5, 6, 7], "corrupted": [1, 5, 8, 7], "name": NASTY}, {"clean": [1, 9, 6], "corrupted": [1, 8, 6]}]
    (place / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    experiment.run(Settings(model="tiny-cot", pairs=place / "mine.jsonl", threads=1), place / "out")
    return place / "out"


@pytest.fixture(scope="module")
def paper_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper") / "out"
    paper.run(Settings(model="tiny-cot", examples=2, shots=2, steps=(2, 5)), folder, only=("decision_heads", "copy_heads"))
    return folder


@pytest.fixture(scope="module")
def attention_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attention") / "out"
    summarise_text("The cat is a cat.", folder, model="tiny-cot", segments="begin=1:3", top_k=2)
    return folder


def test_a_run(run_folder, tmp_path):
    results = pcm.open_results(run_folder)
    assert results.kind == "run" and results.names == ("sweeps",) and results.data.sizes["step"] == 2
    np.testing.assert_array_equal(results.data["effect"], read(run_folder)["effect"])
    assert len(results.table("top_heads", top=2)) == 2 * int((results.table("steps")["n"] > 0).sum())
    results.plot(path=tmp_path / "all.png")
    assert (tmp_path / "all.png").stat().st_size > 5000
    assert results.status().pending == 0 and results.events().events[0]["event"] == "start"


def test_the_users_pairs(pairs_folder):
    results = pcm.open_results(pairs_folder)
    assert results.kind == "sweep" and results.data.sizes == {"example": 2, "step": 1, "layer": 4, "head": 8}
    assert "\x1b" not in repr(results) and results.to_dataframe()["name"].iloc[0] == NASTY


def test_the_paper(paper_folder, tmp_path):
    results = pcm.open_results(paper_folder)
    assert results.kind == "paper" and results.names == ("copy_heads", "decision_heads") == results.tables
    xr.testing.assert_equal(results["copy_heads"], results.analysis("copy_heads").data)
    pd.testing.assert_frame_equal(results.table("copy_heads"), results.analysis("copy_heads").table())
    results.plot("copy_heads", path=tmp_path / "copy.png")
    assert (tmp_path / "copy.png").stat().st_size > 5000 and results.settings == {}
    with pytest.raises(ValueError, match="name: missing; the folder has 2 datasets: copy_heads, decision_heads"):
        _ = results.data
    with pytest.raises(KeyError, match="no dataset 'remove'; it has copy_heads, decision_heads"):
        results["remove"]


def test_attention(attention_folder, tmp_path):
    results = pcm.open_results(attention_folder)
    assert results.kind == "attention" and results.data.sizes["layer"] == 4
    heads = pd.read_csv(attention_folder / "heads.csv")
    assert list(results.table("heads").columns) == list(heads.columns)
    np.testing.assert_allclose(results.table("heads").to_numpy(float), heads.to_numpy(float), rtol=1e-5, equal_nan=True)
    tokens = pd.read_csv(attention_folder / "tokens.csv", keep_default_na=False)
    assert results.table("tokens")["text"].tolist() == tokens["text"].tolist()
    results.plot(path=tmp_path / "mass.png")
    assert (tmp_path / "mass.png").stat().st_size > 5000


@pytest.mark.parametrize("kind", ["run", "pairs", "paper", "attention"])
def test_every_kind_says_how_it_was_made(kind, request):
    made = pcm.open_results(request.getfixturevalue(f"{kind}_folder")).provenance
    assert set(MADE) <= set(made), set(MADE) - set(made)
    assert made["dtype"] == "float32" and made["device"] == "cpu" and made["weights"].startswith("sha256:")
    assert {"pycotmech", "torch", "transformers"} <= set(made["versions"])
    if kind in ("run", "pairs"):
        assert made["prompts"] and made["plan"]["units"] >= 2 and made["seed"] == 0


@pytest.mark.parametrize("make", ["read", "lazy"])
def test_a_folder_that_is_not_finished_opens(tmp_path, make):
    results = pcm.open_results(synthetic(tmp_path, unfinished=[1]))
    data = read(tmp_path) if make == "read" else results.data
    assert np.isnan(data["raw"][1]).all() and np.isfinite(data["raw"][2]).all()
    assert len(results.table("top_heads", top=1)) == 2


def test_nothing_stored_becomes_markup_or_moves_the_cursor(tmp_path):
    results = pcm.open_results(synthetic(tmp_path))
    assert "\x1b" not in repr(results) and r"\x1b[2J" in repr(results)
    page = results._repr_html_()
    assert "<b>" not in page and "&lt;b&gt;m" in page and "\x1b" not in page


@pytest.mark.parametrize("what", ["missing", "empty", "file"])
def test_what_is_no_results_folder_is_named(tmp_path, what):
    folder = tmp_path / "out"
    if what == "empty":
        folder.mkdir()
    elif what == "file":
        folder.write_text("")
    with pytest.raises(
        (FileNotFoundError, ValueError), match=r"folder: .*out.*(no folder|holds no results|is a file)|folder: there is no"
    ):
        pcm.open_results(folder)


@pytest.mark.parametrize("kind", ["paper", "attention"])
def test_a_damaged_chunk_is_never_read_as_a_value(kind, request, tmp_path):
    import shutil

    out = shutil.copytree(request.getfixturevalue(f"{kind}_folder"), tmp_path / "out")
    chunk = max((p for p in out.rglob("c/**/*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = chunk.read_bytes()
    for damaged in (data[:-1], data[:9] + bytes([data[9] ^ 4]) + data[10:], None):
        chunk.unlink() if damaged is None else chunk.write_bytes(damaged)
        with pytest.raises(DamagedData, match="cannot be read"):
            results = pcm.open_results(out)
            for name in results.names:
                _ = results[name]


def test_opening_changes_nothing(run_folder):
    before = {p: p.stat().st_mtime_ns for p in run_folder.rglob("*")}
    results = pcm.open_results(run_folder)
    _ = repr(results), results.provenance, results.status(), results.data["raw"].values
    assert {p: p.stat().st_mtime_ns for p in run_folder.rglob("*")} == before


@pytest.mark.slow
def test_ten_thousand_sweeps_open_in_a_second_and_load_in_five(tmp_path):
    """Sweeps of SmolLM2-135M's shape, each an example of its own: the largest number of files for as many sweeps."""
    from pycotmech.runs.store import SweepState
    from pycotmech.runs.variables import DATA

    n, layers, heads = 10_000, 30, 9
    axes = ResultAxes([str(i) for i in range(n)], [0], ["pair"], layers, heads)
    store = SweepStore.create(tmp_path, axes, identity={"model": "m"}, about={})
    for name in DATA:  # as `finish` leaves them, without waiting for the disk 100,000 times
        array = store._arrays[name]
        array[:] = np.random.default_rng(0).normal(size=array.shape).astype(array.dtype)
    store._arrays["state"][:] = int(SweepState.FINISHED)
    opened, loaded = [], []
    for _ in range(3):  # the machine may be busy
        start = time.perf_counter()
        results = pcm.open_results(tmp_path)
        opened.append(time.perf_counter() - start)
        effect = results.data["effect"].values
        loaded.append(time.perf_counter() - start - opened[-1])
        assert effect.shape == (n, 1, layers, heads) and np.isfinite(effect).all()
    print(f"opened in {min(opened):.2f} s, one variable of {effect.nbytes / 1e6:.0f} MB loaded in {min(loaded):.2f} s")
    assert min(opened) < 1 and min(loaded) < 5


# ---- exports --------------------------------------------------------------------------------------------------------------


def test_a_long_table_has_a_row_for_each_cell(tmp_path):
    results = pcm.open_results(synthetic(tmp_path))
    table = results.to_dataframe()
    assert len(table) == 3 * 2 * 4 * 3 and list(table.columns[:6]) == ["example", "name", "step", "kind", "layer", "head"]
    row = table[(table["example"] == 2) & (table["step"] == 9) & (table["layer"] == 3) & (table["head"] == 1)].iloc[0]
    assert row["raw"] == sweep_of(21).raw[3, 1] and row["clean_metric"] == 1.5 and row["name"] == "e2"
    few = results.to_dataframe(variables=["noise_floor"])
    assert len(few) == 6 and list(few.columns) == ["example", "name", "step", "kind", "noise_floor"]


@pytest.mark.parametrize("to", ["csv", "parquet", "json", "safetensors"])
def test_every_format_gives_the_numbers_back(tmp_path, to, monkeypatch):
    monkeypatch.setattr("pycotmech.files.long_table._ROWS", 30)  # many pieces
    results = pcm.open_results(synthetic(tmp_path, unfinished=[1]))
    (file,) = getattr(results, f"to_{to}")(tmp_path / f"all.{to}")
    whole = results.to_dataframe()
    if to == "safetensors":
        from safetensors import safe_open

        with safe_open(file, "np") as found:
            np.testing.assert_array_equal(found.get_tensor("raw"), results.data["raw"])
            np.testing.assert_array_equal(found.get_tensor("step"), [5, 9])
            told = {k: json.loads(v) for k, v in found.metadata().items()}
        assert told["axes"]["raw"] == ["example", "step", "layer", "head"] and told["texts"]["name"] == ["e0", "e1", "e2"]
        assert told["about"]["provenance"]["model"] == NASTY
        return
    if to == "csv":
        again = pd.read_csv(file)
    elif to == "parquet":
        import pyarrow.parquet as pq

        again = pd.read_parquet(file)
        assert json.loads(pq.read_schema(file).metadata[b"pycotmech"])["kind"] == "run"
    else:
        found = json.loads(file.read_text("utf-8"))
        again = pd.DataFrame(found["rows"], columns=found["columns"])
        assert found["about"]["dataset"] == "sweeps"
    assert list(again.columns) == list(whole.columns) and len(again) == len(whole)
    for name in whole:
        if whole[name].dtype.kind in "OTU" or name in ("name", "kind"):
            assert again[name].tolist() == whole[name].tolist()
        else:
            np.testing.assert_array_equal(again[name].to_numpy(whole[name].dtype), whole[name].to_numpy())


def test_axes_that_are_no_part_of_each_other_are_blocks_of_one_table(tmp_path):
    from pycotmech.files.long_table import long_table
    from pycotmech.runs.export import export

    data = xr.Dataset(
        {
            "a": (("step", "head"), np.arange(6.0).reshape(2, 3)),
            "b": ("layer", [1.5, np.inf]),
            "c": 7,
            "d": ("step", ["x", "y"]),
        },
        {"step": [5, 9], "kind": ("step", ["copy", "induction"])},
    )
    table = long_table(data)
    assert len(table) == 8 and table["a"].notna().sum() == 6 and table["b"].notna().sum() == 2
    assert table["d"].tolist()[:6] == ["x"] * 3 + ["y"] * 3 and table["layer"].tolist()[-2:] == [0, 1]
    written = json.loads(export(data, "json", tmp_path / "x.json").read_text())
    rows = written["rows"]
    assert written["columns"] == list(table.columns) and rows[-1][table.columns.get_loc("b")] == "Infinity" and len(rows) == 8


def test_all_analyses_go_to_a_folder_and_one_to_a_file(paper_folder, tmp_path):
    results = pcm.open_results(paper_folder)
    written = results.to_csv(tmp_path / "tables")
    assert [path.name for path in written] == ["copy_heads.csv", "decision_heads.csv"]
    (one,) = results.to_csv(tmp_path / "one.csv", "copy_heads")
    assert one.read_bytes() == written[0].read_bytes() and len(pd.read_csv(one)) > 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"to": "xlsx"}, "to: got 'xlsx'; expected one of parquet, csv, safetensors, json"),
        ({"name": "attention"}, "name: got 'attention'; expected one of sweeps"),
        ({"variables": ["efect"]}, "variables: got 'efect'; expected some of raw"),
        ({"variables": "effect"}, "variables: got the text 'effect'; expected a list"),
    ],
)
def test_wrong_arguments_of_an_export_are_named(tmp_path, given, message):
    results = pcm.open_results(synthetic(tmp_path))
    with pytest.raises(ValueError, match=message):
        results.export(**{"to": "csv", "path": tmp_path / "x.csv", **given})
    assert not (tmp_path / "x.csv").exists()


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"Parquet needs pyarrow, which is not installed: pip install 'pycotmech\[tables\]'"):
        pcm.open_results(synthetic(tmp_path)).to_parquet(tmp_path / "x.parquet")
    assert not (tmp_path / "x.parquet").exists()


def test_the_log_is_no_part_of_what_is_compared(tmp_path):
    synthetic(tmp_path)
    (tmp_path / EVENTS).write_bytes(b"\x00garbage")
    results = pcm.open_results(tmp_path)
    assert results.events().torn == 1 and results.status().finished == 6


def test_no_text_of_an_exported_table_is_a_formula(tmp_path):
    import xarray as xr

    from pycotmech.runs.export import export

    texts = ["=cmd|'/c calc'!A1", "plain", "-"]
    data = xr.Dataset({"effect": ("name", [-1.0, 2.0, 3.0])}, coords={"name": texts})
    export(data, "csv", tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text().splitlines() == ["name,effect", "'=cmd|'/c calc'!A1,-1.0", "plain,2.0", "-,3.0"]
