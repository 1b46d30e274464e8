"""`pycotmech figures`."""

from __future__ import annotations

import json


def test_figures_are_listed_and_written(finished, shell, tmp_path):
    code, out, _ = shell("figures", finished, "--list")
    names = [line.split()[0] for line in out.splitlines()]
    assert code == 0 and names[0] == "overview" and names[1:] == [f"step_{n.removeprefix('step_')}" for n in names[1:]]
    code, out, _ = shell("figures", finished, "--list", "--json")
    assert code == 0 and list(json.loads(out)["figures"]) == names and json.loads(out)["missing"] == {}
    code, out, _ = shell(
        "figures", finished, "--out", tmp_path / "out", "--only", names[1], "--format", "svg,png", "--dpi", "40"
    )
    assert code == 0 and "2 files of 1 figures" in out and (tmp_path / "out" / f"{names[1]}.svg").is_file()
    code, out, _ = shell("figures", finished, "--out", tmp_path / "out", "--only", names[1], "--json")
    found = json.loads(out)
    assert code == 0 and list(found["files"]) == [names[1]] and found["failures"] == {}
    assert found["captions"] == str(tmp_path / "out" / "captions.md")


def test_mistakes_are_one_line(finished, shell, tmp_path):
    for words, message in (
        (("--format", "gif"), "formats: got 'gif'; expected"),
        (("--only", "E99"), "only: got 'E99'; expected some of overview"),
        (("--dpi", "5"), "dpi: got 5.0; expected 20 to 1200"),
    ):
        code, _, err = shell("figures", finished, "--out", tmp_path / "out", *words)
        assert code == 2 and message in err and not (tmp_path / "out").exists()
    code, _, err = shell("figures", tmp_path / "nothing")
    assert code == 2 and "folder: there is no folder" in err
