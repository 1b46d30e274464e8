"""Which reader is chosen, and what the columns of a table may be."""

from __future__ import annotations

import pytest

from pycotmech.runs.pair_files.choose import CSV, DATASETS, JSONL, PARQUET, digest_of, reader_of
from pycotmech.runs.pair_files.record import chosen_columns


@pytest.mark.parametrize(
    ("name", "content", "reader"),
    [
        ("a.jsonl", b"clean,corrupted\n", JSONL),
        ("a.CSV", b"{}", CSV),
        ("a.tsv", b"", CSV),
        ("a.parquet", b"", PARQUET),
        ("pairs", b"PAR1\x00", PARQUET),
        ("pairs", b"\xef\xbb\xbfclean,corrupted\na,b", CSV),
        ("pairs.txt", b'{"clean": "a", "corrupted": "b"}', JSONL),
        ("pairs", b"", JSONL),
    ],
)
def test_the_ending_decides_and_otherwise_the_content(tmp_path, name, content, reader):
    (tmp_path / name).write_bytes(content)
    assert reader_of(tmp_path / name) is reader
    assert reader_of(tmp_path) is DATASETS


def test_columns_of_the_fields_own_files_are_chosen():
    eap = ["", "clean", "corrupted", "corrupted_hard", "correct_idx", "incorrect_idx"]
    assert chosen_columns(eap, "f") == ["clean", "corrupted", "correct_idx", "incorrect_idx"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["clean", "label"], "f: column 'corrupted' is missing; it has the columns 'clean', 'label'"),
        (["clean", "corrupted", "clean"], "f: column 'clean' occurs 2 times"),
        (["clean", "corrupted", "anser"], "f: unknown column 'anser'; expected 'answer'"),
        (["clean", "corupted"], "f: unknown column 'corupted'; expected 'corrupted'"),
        ([], "it has the columns none"),
    ],
)
def test_mistakes_in_columns_are_named(columns, message):
    with pytest.raises(ValueError) as caught:
        chosen_columns(columns, "f")
    assert message in str(caught.value)


def test_the_digest_of_a_folder_follows_its_files(tmp_path):
    (tmp_path / "a").write_text("1")
    before = digest_of(tmp_path)
    assert digest_of(tmp_path) == before and len(before) == 64
    (tmp_path / "a").write_text("2")
    assert digest_of(tmp_path) != before
