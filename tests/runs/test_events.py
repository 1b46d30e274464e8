"""The log of a results folder: only appended to, never through a link, and readable after a death in the middle of a line."""

from __future__ import annotations

import pytest

from pycotmech.runs import open_folder
from pycotmech.runs.events import EVENTS, EventLog, read_events, seconds_of


def test_events_come_back_in_order_with_time_and_pid(tmp_path):
    log = EventLog(tmp_path)
    log.begin("start", "run", pending=3)
    log.write("finished", example=0, steps=[1], seconds=0.5, name="a\x1b[2J")
    found = read_events(tmp_path)
    assert [e["event"] for e in found.events] == ["start", "finished"] and found.torn == 0
    assert found.events[1]["name"] == "a\x1b[2J" and found.events[0]["kind"] == "run" and found.events[0]["host"]
    assert seconds_of(found.events[0]) <= seconds_of(found.events[1])


def test_a_torn_last_line_is_tolerated_and_ended(tmp_path):
    log = EventLog(tmp_path)
    log.write("start")
    with (tmp_path / EVENTS).open("ab") as file:
        file.write(b'{"time": "2026-11-27T12:00:00Z", "event": "fini')
    assert [e["event"] for e in read_events(tmp_path).events] == ["start"] and read_events(tmp_path).torn == 1
    before = (tmp_path / EVENTS).read_bytes()
    log.write("resume")
    assert (tmp_path / EVENTS).read_bytes().startswith(before)
    assert [e["event"] for e in read_events(tmp_path).events] == ["start", "resume"] and read_events(tmp_path).torn == 1


@pytest.mark.parametrize(
    "line", [b"\xff\xfe", b"[1]", b"null", b'{"event": 3}', b'{"event": "x", "time": "soon"}', b"[" * 9000]
)
def test_lines_that_are_no_events_are_counted(tmp_path, line):
    (tmp_path / EVENTS).write_bytes(line + b"\n\n")
    assert read_events(tmp_path) == ([], 1)


def test_a_folder_without_a_log_has_no_events(tmp_path):
    assert read_events(tmp_path) == ([], 0)


def test_nothing_is_written_through_a_link(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("precious")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / EVENTS).symlink_to(outside)
    with pytest.raises(ValueError, match=r"events\.jsonl is a symbolic link, which is not followed"):
        EventLog(folder).write("start")
    assert outside.read_text() == "precious" and read_events(folder) == ([], 0)


@pytest.mark.parametrize(
    ("raised", "why"), [(None, "done"), (KeyboardInterrupt(), "interrupted"), (ValueError("seed: wrong"), "error")]
)
def test_the_end_of_a_process_is_recorded(tmp_path, raised, why):
    try:
        with open_folder(tmp_path) as folder:
            EventLog(folder).write("start")
            if raised is not None:
                raise raised
    except (KeyboardInterrupt, ValueError):
        pass
    last = read_events(tmp_path).events[-1]
    assert last["event"] == "stop" and last["why"] == why and last.get("error", "") == str(raised or "")


def test_a_refusal_leaves_no_trace(tmp_path):
    with pytest.raises(ValueError), open_folder(tmp_path):
        raise ValueError("out: other settings")
    assert not (tmp_path / EVENTS).exists()


def test_a_changed_byte_in_a_line_is_no_event(tmp_path):
    log = EventLog(tmp_path)
    log.write("finished", example=3, seconds=1.25, why="crc32 é")
    data = log.path.read_bytes()
    (event,) = read_events(tmp_path).events
    for at in range(len(data)):
        log.path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        for found in read_events(tmp_path).events:  # at most the name of the checksum, or white space, is another
            assert {k: v for k, v in found.items() if k in event and k != "crc32"} == {
                k: v for k, v in event.items() if k != "crc32"
            }
