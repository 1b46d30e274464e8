"""Pairs in tables (CSV, Parquet, datasets folders): what is read, what each mistake is called, and what is refused."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pycotmech as pcm
from pycotmech.runs import PromptPair

EAP = """,clean,corrupted,corrupted_hard,correct_idx,incorrect_idx
470,"Then, A
and B","Then, A and C",x,47764,26757

184,a,b,,5.0,
"""
ROWS = {"clean": ["a b", "c d"], "corrupted": ["a c", "c e"], "answer": ["x", None], "wrong": [None, None], "other": [1.5, 2.5]}


class Bomb:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def csv_of(folder: Path, text: str, name: str = "pairs.csv") -> Path:
    (folder / name).write_text(text, "utf-8")
    return folder / name


def parquet_of(folder: Path, table: pa.Table | dict) -> Path:
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), folder / "pairs.parquet")
    return folder / "pairs.parquet"


def dataset_of(folder: Path, table: pa.Table | dict, **state: object) -> Path:
    """A folder as `Dataset.save_to_disk` writes it."""
    table = table if isinstance(table, pa.Table) else pa.table(table)
    path = folder / "dataset"
    path.mkdir()
    with pa.OSFile(str(path / "data-00000-of-00001.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    found = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "0", "_format_type": None, **state}
    (path / "state.json").write_text(json.dumps(found))
    (path / "dataset_info.json").write_text("{}")
    return path


def test_csv_with_the_columns_of_eap_ig(tmp_path):
    path = csv_of(tmp_path, EAP)
    first, second = pcm.read_pairs(path, metric="prob")
    assert first == PromptPair("Then, A\nand B", "Then, A and C", 47764, 26757, "line 2", f"{path}, line 2")
    assert second == PromptPair("a", "b", 5, None, "line 5", f"{path}, line 5")


def test_a_prompt_may_be_longer_than_csv_allows_a_cell(tmp_path):
    limit, prompt = csv.field_size_limit(), "word " * 40_000
    assert len(prompt) > limit
    (pair,) = pcm.read_pairs(csv_of(tmp_path, f"clean,corrupted\n{prompt}a,{prompt}b\n"))
    assert pair.clean == prompt + "a" and pair.corrupted == prompt + "b" and csv.field_size_limit() == limit


def test_csv_with_our_columns_and_tabs_and_a_byte_order_mark(tmp_path):
    path = csv_of(tmp_path, "\ufeffname\tclean\tcorrupted\tanswer\r\nfirst\t7, 8\t[1, 2]\t5\r\n", "pairs.tsv")
    assert pcm.read_pairs(path) == [PromptPair("7, 8", "[1, 2]", "5", None, "first", f"{path}, line 2")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clean\na", "line 1: column 'corrupted' is missing"),
        ("clean,corrupted\na", "line 2: 1 cells under a header of 2 columns"),
        ("clean,corrupted\na,b,c", "line 2: 3 cells under a header of 2 columns"),
        ('clean,corrupted\na,"b', "line 2: not valid CSV"),
        ("clean,corrupted\na,b\n,b", "line 3: field 'clean' is missing"),
        ("clean,corrupted\na,a", "line 2: fields 'clean' and 'corrupted' are the same"),
        ("clean,corrupted,correct_idx\na,b,x", "line 2: field 'correct_idx': expected a token id, got 'x'"),
        ("clean,corrupted,correct_idx\na,b,-1", "line 2: field 'correct_idx': expected a token id, got '-1'"),
        ("clean,corrupted,correct_idx\na,b,²", "line 2: field 'correct_idx': expected a token id"),
        ("clean,corrupted,correct_idx,answer\na,b,1,c", "line 2: fields 'answer' and 'correct_idx' are both given"),
        ("", "holds no pair; expected a header and a row for each pair"),
        ("clean,corrupted\n", "holds no pair"),
    ],
    ids=str,
)
def test_each_mistake_in_a_csv_file_names_the_line(tmp_path, text, message):
    with pytest.raises(ValueError) as caught:
        pcm.read_pairs(csv_of(tmp_path, text))
    assert message in str(caught.value) and "pairs.csv" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("written", [parquet_of, dataset_of])
def test_tables_of_arrow(tmp_path, written):
    path = written(tmp_path, ROWS)
    first, second = pcm.read_pairs(path)
    assert first == PromptPair("a b", "a c", "x", None, "row 1", f"{path}, row 1")
    assert second.answer is None and second.name == "row 2"
    with pytest.raises(ValueError, match="row 2: field 'answer' is missing; metric 'prob' needs it"):
        pcm.read_pairs(path, metric="prob")


def test_token_ids_and_numbers_as_pandas_writes_them(tmp_path):
    ids = {"clean": [[1, 2], [3, 4]], "corrupted": [[1, 3], [3, 5]], "correct_idx": [5.0, None], "incorrect_idx": [7, 8]}
    first, second = pcm.read_pairs(parquet_of(tmp_path, ids))
    assert (first.clean, first.answer, first.wrong) == ([1, 2], 5, 7) and (second.answer, second.wrong) == (None, 8)


@pytest.mark.parametrize("written", [parquet_of, dataset_of])
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"clean": ["a"]}, "column 'corrupted' is missing"),
        ({"clean": ["a"], "corrupted": [b"b"]}, "column 'corrupted' has the type binary; expected text, token ids"),
        ({"clean": ["a"], "corrupted": [{"b": 1}]}, "column 'corrupted' has the type struct"),
        ({"clean": ["a"], "corrupted": [3]}, "row 1: field 'corrupted': expected text or a list of token ids, got 3"),
        ({"clean": ["a"], "corrupted": [[1, None]]}, "row 1: field 'corrupted': expected text or a list of token ids"),
        (
            {"clean": ["a"], "corrupted": ["b"], "correct_idx": [0.5]},
            "row 1: field 'correct_idx': expected a token id, got 0.5",
        ),
        (
            {"clean": pa.array([], pa.string()), "corrupted": pa.array([], pa.string())},
            "holds no pair; expected a row for each",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,  # the text of an array holds its address
)
def test_each_mistake_in_a_table_names_the_row_or_column(tmp_path, written, columns, message):
    with pytest.raises(ValueError) as caught:
        pcm.read_pairs(written(tmp_path, columns))
    assert message in str(caught.value)


# ---- strangers' files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [parquet_of, dataset_of])
def test_nothing_in_the_metadata_is_unpickled(tmp_path, written):
    marks = [tmp_path / name for name in ("field", "pandas", "schema")]
    field, pandas, schema = (pickle.dumps(Bomb(mark)) for mark in marks)
    extension = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": field}
    fields = [pa.field("clean", pa.string(), metadata=extension), pa.field("corrupted", pa.string())]
    metadata = {b"pandas": pandas, b"huggingface": schema}
    table = pa.table({"clean": ["a"], "corrupted": ["b"]}, schema=pa.schema(fields, metadata=metadata))
    with pytest.raises(ValueError, match=r"column 'clean' has the type .*; expected text"):
        pcm.read_pairs(written(tmp_path, table))
    assert not any(mark.exists() for mark in marks)


def test_pickled_metadata_beside_plain_columns_is_passed_over(tmp_path):
    metadata = {b"pandas": pickle.dumps(Bomb(tmp_path / "ran"))}
    table = pa.table({"clean": ["a"], "corrupted": ["b"]}).replace_schema_metadata(metadata)
    assert len(pcm.read_pairs(parquet_of(tmp_path, table))) == 1 and not (tmp_path / "ran").exists()


def test_a_dataset_with_a_script_is_refused(tmp_path):
    path = dataset_of(tmp_path, ROWS)
    (path / "dataset.py").write_text("raise SystemExit")
    with pytest.raises(ValueError, match=r"holds Python code \(dataset.py\), which is not run"):
        pcm.read_pairs(path)


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/hostname", "..", "", "a\\b", "a\0b", 7, None])
def test_a_dataset_names_files_inside_itself_only(tmp_path, name):
    path = dataset_of(tmp_path, ROWS)
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    (path / "data-00000-of-00001.arrow").rename(tmp_path / "secret.arrow")
    with pytest.raises(ValueError, match=r"names the data file .*; expected a file in the folder"):
        pcm.read_pairs(path)


def test_a_link_in_a_dataset_is_not_followed(tmp_path):
    path = dataset_of(tmp_path, ROWS)
    data = path / "data-00000-of-00001.arrow"
    data.rename(tmp_path / "outside.arrow")
    data.symlink_to(tmp_path / "outside.arrow")
    with pytest.raises(ValueError, match="is not a file in the folder"):
        pcm.read_pairs(path)


def test_folders_that_are_no_dataset(tmp_path):
    with pytest.raises(
        ValueError, match=r"is a folder, but not one that datasets.Dataset.save_to_disk wrote \(it has no state"
    ):
        pcm.read_pairs(tmp_path)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(ValueError, match="holds the splits train, test; give the folder of one of them"):
        pcm.read_pairs(tmp_path)
    (tmp_path / "state.json").write_text("[" * 5000)
    with pytest.raises(ValueError, match=r"state.json is not valid JSON"):
        pcm.read_pairs(tmp_path)
    (tmp_path / "state.json").write_text('{"_indices_files": [1]}')
    with pytest.raises(ValueError, match="chooses its rows by indices"):
        pcm.read_pairs(tmp_path)


@pytest.mark.parametrize("written", [parquet_of, dataset_of])
@pytest.mark.parametrize("place", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_damaged_files_are_refused_in_one_line(tmp_path, written, place):
    path = written(tmp_path, {"clean": [f"a {i}" for i in range(200)], "corrupted": [f"b {i}" for i in range(200)]})
    file = path if path.is_file() else path / "data-00000-of-00001.arrow"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * place)])
    with pytest.raises(ValueError, match=r"is not a readable (Parquet file|datasets folder)"):
        pcm.read_pairs(path)


def test_offsets_that_point_outside_a_buffer_are_not_followed(tmp_path):
    path = dataset_of(tmp_path, {"clean": ["aaaa", "bbbb"], "corrupted": ["cccc", "dddd"]})
    file = path / "data-00000-of-00001.arrow"
    data = bytearray(file.read_bytes())
    at = data.find((4).to_bytes(4, "little") + (8).to_bytes(4, "little"), len(data) // 3)
    assert at > 0
    data[at + 4 : at + 8] = (1 << 30).to_bytes(4, "little")
    file.write_bytes(data)
    with pytest.raises(ValueError, match="is not a readable datasets folder"):
        pcm.read_pairs(path)


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch):
    import sys

    path = parquet_of(tmp_path, ROWS)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(
        ImportError, match=r"a Parquet file needs pyarrow, which is not installed: pip install 'pycotmech\[tables\]'"
    ):
        pcm.read_pairs(path)
