"""A results folder: who may write into it, and what is said of one that cannot be used."""

from __future__ import annotations

import errno
import os

import pytest

from pycotmech.runs import open_folder
from pycotmech.runs.folder import LOCK, refuse_other_settings
from tests.reference.forked import ended, start


def test_one_process_at_a_time(tmp_path):
    with open_folder(tmp_path), pytest.raises(BlockingIOError, match="another process is writing"), open_folder(tmp_path):
        pass
    with open_folder(tmp_path):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a POSIX system")
def test_the_lock_ends_with_its_process(tmp_path):
    out = tmp_path / "out"

    def die() -> None:
        with open_folder(out):
            os._exit(3)

    assert ended(start(die, tmp_path / "errors"), 60) == 3
    with open_folder(out):
        pass


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("precious")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / LOCK).symlink_to(outside)
    with pytest.raises(ValueError, match="is a symbolic link, which is not followed"), open_folder(folder):
        pass
    assert outside.read_text() == "precious"


def test_a_lock_file_keeps_what_it_holds(tmp_path):
    (tmp_path / LOCK).write_text("somebody's")
    with open_folder(tmp_path):
        pass
    assert (tmp_path / LOCK).read_text() == "somebody's"


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_is_no_folder(name):
    with pytest.raises(ValueError, match="out: the name is empty"), open_folder(name):
        pass


@pytest.mark.parametrize("name", ["n" * 300, "/".join(["folder" * 8] * 90)])
def test_names_that_are_too_long_are_said_in_one_line(tmp_path, name):
    message = r"out: nothing can be written in .*name too long.*another folder"
    with pytest.raises(PermissionError, match=message) as caught, open_folder(tmp_path / name):
        pass
    assert len(str(caught.value)) < 300


def test_a_full_disk_names_the_folder_and_what_to_do(tmp_path):
    message = f"the disk of {tmp_path} is full .*Make room, and the same command continues"
    with pytest.raises(OSError, match=message), open_folder(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_differences_are_named_and_their_text_is_printable(tmp_path):
    refuse_other_settings(tmp_path, None, {"seed": 0})
    refuse_other_settings(tmp_path, {"seed": 0, "weights": "a"}, {"seed": 0})  # weights are not known yet
    with pytest.raises(ValueError, match=r"model was m\\x1b\[2J, now n; seed was 0, now 1"):
        refuse_other_settings(tmp_path, {"model": "m\x1b[2J", "seed": 0}, {"model": "n", "seed": 1})
