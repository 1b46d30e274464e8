"""Pairs from a folder that the Hugging Face library `datasets` saved with `Dataset.save_to_disk`.

The folder is read as what it is, Arrow tables and JSON, without the library: nothing that the folder names (features, formats,
files elsewhere) is looked up.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pycotmech.runs.pair_files.arrow import chosen_fields, import_arrow, records_of
from pycotmech.runs.pair_files.record import Record

_STATE, _SPLITS = "state.json", "dataset_dict.json"


def read(folder: Path) -> Iterator[Record]:
    """Yields the rows of a saved dataset.

    Raises ImportError without pyarrow; ValueError naming the folder, the row and the column, also for a folder that holds
    several splits, Python code, or files elsewhere.
    """
    arrow = import_arrow("pyarrow", f"{folder}: a datasets folder")
    files = _data_files(folder)

    def batches() -> Iterator[Any]:
        for file in files:
            with file.open("rb") as stream:
                table = arrow.ipc.open_stream(stream)
                chosen = chosen_fields(table.schema, str(file))
                for batch in table:
                    yield batch.select(chosen)

    try:
        yield from records_of(batches(), str(folder))
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"pairs: {folder} is not a readable datasets folder ({error})") from error


def _data_files(folder: Path) -> list[Path]:
    if scripts := sorted(path.name for path in folder.glob("*.py")):
        raise ValueError(f"pairs: {folder} holds Python code ({scripts[0]}), which is not run; save the data alone")
    if (folder / _SPLITS).is_file() and not (folder / _STATE).is_file():
        splits = _loaded(folder / _SPLITS).get("splits")
        names = ", ".join(map(str, splits)) if isinstance(splits, list) else "unknown"
        raise ValueError(f"pairs: {folder} holds the splits {names:.200}; give the folder of one of them")
    if not (folder / _STATE).is_file():
        raise ValueError(
            f"pairs: {folder} is a folder, but not one that datasets.Dataset.save_to_disk wrote (it has no {_STATE}); "
            "expected such a folder, or a JSONL, CSV or Parquet file"
        )
    state = _loaded(folder / _STATE)
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise ValueError(f"pairs: {folder} chooses its rows by indices; save the dataset with a newer version of datasets")
    entries = state.get("_data_files")
    names = [e.get("filename") if isinstance(e, dict) else e for e in entries] if isinstance(entries, list) else [None]
    for name in names:
        if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name or "\\" in name or "\0" in name:
            raise ValueError(f"pairs: {folder / _STATE} names the data file {name!r:.100}; expected a file in the folder")
        if (folder / name).is_symlink() or not (folder / name).is_file():
            raise ValueError(f"pairs: {folder / _STATE} names the data file {name!r:.100}, which is not a file in the folder")
    return [folder / str(name) for name in names]


def _loaded(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"pairs: {path} is not valid JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"pairs: {path} must hold an object, got {type(found).__name__}")
    return found
