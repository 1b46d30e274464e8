"""Files are replaced as a whole, and links are never followed."""

from __future__ import annotations

import os

import pytest

from pycotmech.files import write
from pycotmech.files.write import replacing, subfolder, write_text


def test_a_link_is_replaced_and_its_target_stays(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("precious")
    link = tmp_path / "summary.md"
    link.symlink_to(outside)
    write_text(link, "new")
    assert outside.read_text() == "precious" and link.read_text() == "new" and not link.is_symlink()


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_new_files_have_the_rights_of_any_other(tmp_path):
    write_text(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert os.stat(tmp_path / "a").st_mode == os.stat(tmp_path / "b").st_mode


def test_folders_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="is a folder; expected a file"):
        write_text(tmp_path, "x")
    (tmp_path / "outside").mkdir()
    (tmp_path / "tables").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="tables is a symbolic link"):
        subfolder(tmp_path, "tables")


def test_data_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def seen(descriptor):
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), (tmp_path / "a").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", seen)
    write_text(tmp_path / "a", "x")
    (first, named), (second, _) = synced
    assert first.startswith(str(tmp_path / ".pycotmech-")) and not named and second == str(tmp_path)


def test_lines_end_as_they_were_given(tmp_path):
    write_text(tmp_path / "a", "one\ntwo\r\n")
    assert (tmp_path / "a").read_bytes() == b"one\ntwo\r\n"


@pytest.mark.parametrize(("windows", "refused", "raises"), [(True, 3, False), (True, 99, True), (False, 1, True)])
def test_a_name_that_a_reader_holds_is_tried_again_on_windows(tmp_path, monkeypatch, windows, refused, raises):
    tries, replace = [], os.replace

    def replace_unless_read(source, target):
        tries.append(source)
        if len(tries) <= refused:
            raise PermissionError(13, "The process cannot access the file because it is being used by another process")
        replace(source, target)

    monkeypatch.setattr(write, "_WINDOWS", windows)
    monkeypatch.setattr(write, "_PAUSE", 0.0)
    monkeypatch.setattr(os, "replace", replace_unless_read)
    if raises:
        with pytest.raises(PermissionError):
            write_text(tmp_path / "a", "new")
        assert list(tmp_path.iterdir()) == []
    else:
        write_text(tmp_path / "a", "new")
        assert (tmp_path / "a").read_text() == "new" and len(tries) == refused + 1
