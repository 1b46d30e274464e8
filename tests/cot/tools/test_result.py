"""What every analysis shares: how a result is kept and shown."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import xarray as xr

from pycotmech.cot.tools.result import Analysis
from pycotmech.files.arrays import DamagedData

EVIL = "<script>alert(1)</script>"


class Shown(Analysis):
    """A result with markup in every text."""

    name = "shown"
    title = EVIL

    def findings(self):
        return [EVIL]

    def table(self):
        return pd.DataFrame({EVIL: [EVIL]})


@pytest.fixture
def result():
    return Shown(xr.Dataset({"kind": ("example", [EVIL])}), {"model": EVIL, "source": EVIL})


def test_markup_is_text_in_a_notebook(result):
    assert "<script" not in result._repr_html_() and "&lt;script&gt;" in result._repr_html_()


def test_what_is_saved_is_loaded_and_damage_is_found(result, tmp_path):
    path = result.save(tmp_path)
    again = Shown.load(tmp_path)
    assert again.data["kind"].values.tolist() == [EVIL] and again.about == result.about
    for chunk in [p for p in path.rglob("*") if p.is_file() and p.name != "zarr.json"]:
        chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(DamagedData):
        Shown.load(tmp_path)
    metadata = path / "zarr.json"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "attributes": {}}))
    with pytest.raises(DamagedData):
        Shown.load(tmp_path)
