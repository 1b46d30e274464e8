"""Files that are checked by their text, their CRCs or a digest: one changed byte, wherever it is, is found."""

from __future__ import annotations

import json

import matplotlib.pyplot as plt
import pytest

from pycotmech.files.arrays import DamagedData
from pycotmech.files.whole import holds_text, is_whole_png, read_sealed, write_sealed

FACTS = {"identity": {"model": "m", "seed": 0}, "costs": {"a": {"seconds": 1.25}}, "steps": (1, 2)}


def test_json_comes_back_and_no_changed_byte_is_read_as_a_value(tmp_path):
    path = tmp_path / "facts.json"
    write_sealed(path, FACTS)
    plain = json.loads(json.dumps(FACTS))
    assert read_sealed(path) == plain
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 2]) + data[at + 1 :])
        try:
            found = read_sealed(path)
        except DamagedData:
            continue
        assert {name: found.get(name) for name in plain} == plain, at  # white space, or the digest's own name
    for length in range(0, len(data) - 2, 7):
        path.write_bytes(data[:length])
        with pytest.raises(DamagedData):
            read_sealed(path)


def test_json_without_a_digest_is_read_and_an_empty_list_is_not(tmp_path):
    path = tmp_path / "facts.json"
    path.write_text('{"a": 1}')
    assert read_sealed(path) == {"a": 1}
    path.write_text("[]")
    with pytest.raises(DamagedData, match="does not hold a JSON object"):
        read_sealed(path)


def test_a_figure_is_whole_or_not(tmp_path):
    path = tmp_path / "a.png"
    figure, _ = plt.subplots(figsize=(1, 1))
    figure.savefig(path)
    plt.close(figure)
    assert is_whole_png(path)
    data = path.read_bytes()
    for at in [*range(0, len(data), 37), *range(len(data) - 20, len(data))]:
        path.write_bytes(data[:at] + bytes([data[at] ^ 8]) + data[at + 1 :])
        assert not is_whole_png(path), at
        path.write_bytes(data[:at])
        assert not is_whole_png(path), at
    path.write_bytes(data + b" ")
    assert not is_whole_png(path) and not is_whole_png(tmp_path / "nowhere.png")
    (tmp_path / "target.png").write_bytes(data)
    (tmp_path / "link.png").symlink_to(tmp_path / "target.png")
    assert not is_whole_png(tmp_path / "link.png")


def test_a_text_is_held_or_not(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n", "utf-8")
    assert holds_text(path, "a,b\n1,2\n") and not holds_text(path, "a,b\n1,3\n") and not holds_text(tmp_path, "")
