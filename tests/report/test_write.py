"""Where the page is written, and what for."""

from __future__ import annotations

import pytest

import pycotmech as pcm
from pycotmech.report import FILE, page_of, write_report
from tests.report.made import run_folder


def test_a_folder_or_opened_results(tmp_path):
    folder = run_folder(tmp_path / "run", hostile="plain")
    first = write_report(folder)
    assert first == folder / FILE
    again = pcm.open_results(folder).report(tmp_path / "page.html")
    assert again == tmp_path / "page.html" and again.read_bytes() == first.read_bytes()


def test_what_is_there_is_replaced_and_never_followed(tmp_path):
    folder = run_folder(tmp_path / "run")
    (tmp_path / "outside").write_text("precious")
    (folder / FILE).symlink_to(tmp_path / "outside")
    pcm.write_report(folder)
    assert (tmp_path / "outside").read_text() == "precious" and not (folder / FILE).is_symlink()


def test_a_folder_at_home(tmp_path, monkeypatch):
    run_folder(tmp_path / "run")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert write_report("~/run") == tmp_path / "run" / FILE
    assert write_report("~/run", "~/page.html").read_bytes() == (tmp_path / "run" / FILE).read_bytes()


def test_bad_arguments(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        write_report(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="holds no results"):
        write_report(tmp_path)
    with pytest.raises(TypeError, match=r"expected a folder, or what pycotmech.open_results gives"):
        page_of(3)  # pyright: ignore
    with pytest.raises(TypeError, match=r"results: got int; expected a folder, or what pycotmech.open_results gives"):
        write_report(3)  # pyright: ignore
    folder = run_folder(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="path: there is no folder"):
        write_report(folder, tmp_path / "missing" / "page.html")
