"""The journal: whole lines, strict JSON, one writer, readers that bear what a crash leaves."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from esper.errors import RunError, StorageError
from esper.messages import FieldReport, SeedState, Slot, SystemStatePacket
from esper.nissa.journal import Journal, dumps, is_being_written, number
from esper.nissa.journal_reader import JournalReader, read_journal

REPORT = FieldReport(
    layer="stage1",
    layer_kind="conv2d",
    seed_idx=0,
    slot=Slot("channels", 4, 4),
    site="series",
    kernel_id="kernel_a",
    blueprint_id="blueprint_a",
    started_epoch=1,
    ended_epoch=2,
    verdict="kept",
    reason="",
    expected_impact=0.1,
    gain=math.nan,
    gain_error=math.inf,
    threshold=-math.inf,
    loss_before=1.0,
    loss_after=0.9,
    accuracy_before=0.5,
    accuracy_after=0.6,
    parameters=10,
)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def test_an_event_comes_back_with_its_name_its_time_and_its_fields(path: Path) -> None:
    with Journal(path) as journal:
        journal.write("fault", epoch=3, message='line\nbreak "quoted" \u2028 \x00 é', path=Path("/a"))
    events, offset = read_journal(path)
    assert len(events) == 1
    assert events[0]["event"] == "fault"
    assert events[0]["at"].endswith("+00:00")
    assert events[0]["message"] == 'line\nbreak "quoted" \u2028 \x00 é'
    assert events[0]["path"] == "/a"
    assert offset == path.stat().st_size
    assert path.read_bytes().count(b"\n") == 1


def test_records_are_written_field_for_field(path: Path) -> None:
    packet = SystemStatePacket(epoch=1, global_step=2, loss=0.5, accuracy=0.5, layer_metrics={})
    with Journal(path) as journal:
        journal.write("epoch", packet=packet)
        journal.write("seed", to_state=SeedState.TRAINING)
    events, _ = read_journal(path)
    assert events[0]["packet"] == json.loads(json.dumps(packet.to_json()))
    assert events[1]["to_state"] == "TRAINING"


def test_numbers_that_json_lacks_are_written_as_strings(path: Path) -> None:
    with Journal(path) as journal:
        journal.write("trial", report=REPORT, more=[{"x": -math.inf}, (math.nan,)])

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    event = json.loads(path.read_text(), parse_constant=refuse)
    assert event["report"]["gain"] == "NaN"
    assert event["report"]["slot"] == {"layout": "channels", "in_features": 4, "out_features": 4, "stride": 1}
    assert event["more"] == [{"x": "-Infinity"}, ["NaN"]]
    assert math.isnan(number(event["report"]["gain"]))
    assert number(event["report"]["gain_error"]) == math.inf
    assert number(event["report"]["threshold"]) == -math.inf


@pytest.mark.parametrize("value", [None, True, "nan", "1.5", [], {}])
def test_number_refuses_what_is_none(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        number(value)


def test_what_is_not_plain_data_is_refused_and_nothing_is_written(path: Path) -> None:
    with Journal(path) as journal:
        with pytest.raises(TypeError, match="object"):
            journal.write("epoch", packet=object())
        with pytest.raises(ValueError, match="'at'"):
            journal.write("epoch", at="now")
        journal.write("checkpoint", epoch=1)
    assert [event["event"] for event in read_journal(path)[0]] == ["checkpoint"]


def test_a_closed_journal_says_so(path: Path) -> None:
    journal = Journal(path)
    journal.close()
    journal.close()
    with pytest.raises(ValueError, match="closed"):
        journal.write("epoch")


def test_threads_write_whole_lines(path: Path) -> None:
    with Journal(path) as journal:

        def write(thread: int) -> None:
            for count in range(200):
                journal.write("seed", thread=thread, count=count, filler="x" * 5000)

        threads = [threading.Thread(target=write, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    reader = JournalReader(path)
    events = list(reader.read())
    assert (len(events), reader.damaged, reader.torn) == (800, 0, 0)
    for thread_idx in range(4):
        assert [event["count"] for event in events if event["thread"] == thread_idx] == list(range(200))


def test_a_reader_goes_on_where_it_stopped_and_waits_for_the_rest_of_a_line(path: Path) -> None:
    reader = JournalReader(path)
    path.write_bytes(b'{"event":"a"}\n{"eve')
    assert [event["event"] for event in reader.read()] == ["a"]
    assert reader.torn == len(b'{"eve')
    with path.open("ab") as file:
        file.write(b'nt":"b"}\n')
    assert [event["event"] for event in reader.read()] == ["b"]
    assert (reader.torn, reader.damaged) == (0, 0)
    assert list(reader.read()) == []


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[1]",
        b'{"at":"now"}',
        b'{"event":1}',
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"event":"a","n":' + b"9" * 5000 + b"}",
    ],
)
def test_a_damaged_line_is_counted_and_left_out(path: Path, line: bytes) -> None:
    path.write_bytes(b'{"event":"a"}\n' + line + b'\n\n{"event":"b"}\n')
    reader = JournalReader(path)
    assert [event["event"] for event in reader.read()] == ["a", "b"]
    assert reader.damaged == 1


def test_a_nan_of_another_writer_reads_like_one_of_ours(path: Path) -> None:
    path.write_text('{"event":"epoch","loss":NaN,"low":-Infinity}\n')
    event = read_journal(path)[0][0]
    assert (event["loss"], event["low"]) == ("NaN", "-Infinity")


def test_a_journal_that_was_replaced_or_cut_is_read_again(path: Path) -> None:
    path.write_bytes(b'{"event":"a"}\n{"event":"b"}\n')
    reader = JournalReader(path)
    assert len(list(reader.read())) == 2
    path.write_bytes(b'{"event":"c"}\n')
    assert [event["event"] for event in reader.read()] == ["c"]
    other = path.with_suffix(".new")
    other.write_bytes(b'{"event":"d"}\n{"event":"e"}\n')
    other.replace(path)
    assert [event["event"] for event in reader.read()] == ["d", "e"]
    assert reader.restarts == 2


def test_a_missing_journal_and_a_pipe_are_errors_that_name_the_path(path: Path) -> None:
    with pytest.raises(StorageError, match=r"journal\.jsonl: No such file"):
        read_journal(path)
    os.mkfifo(path)
    with pytest.raises(StorageError, match="not a regular file"):
        read_journal(path)


def test_a_line_cut_off_by_a_crash_is_ended_before_the_next(path: Path) -> None:
    path.write_bytes(b'{"event":"a"}\n{"event":"b","x":')
    with Journal(path) as journal:
        journal.write("c")
    reader = JournalReader(path)
    assert [event["event"] for event in reader.read()] == ["a", "c"]
    assert reader.damaged == 1


def test_a_full_disk_is_one_clear_error() -> None:
    with (
        Journal(Path("/dev/full")) as journal,
        pytest.raises(StorageError, match="No space left") as caught,
    ):
        journal.write("epoch")
    assert caught.value.hint is not None
    assert "free some space" in caught.value.hint


def test_after_a_part_of_a_line_was_written_the_next_line_is_whole(path: Path) -> None:
    with Journal(path) as journal:
        journal.write("a")
        size = path.stat().st_size
        with file_size_limit(size + 20), pytest.raises(StorageError, match="File too large"):
            journal.write("b", filler="x" * 100)
        assert path.stat().st_size == size + 20
        journal.write("c")
        journal.write("d")
    reader = JournalReader(path)
    assert [event["event"] for event in reader.read()] == ["a", "c", "d"]
    assert reader.damaged == 1


def test_no_folder_for_the_journal_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot open the journal"):
        Journal(tmp_path / "missing" / "journal.jsonl")


def test_a_second_writer_is_refused_until_the_first_is_done(path: Path) -> None:
    assert not is_being_written(path)
    with Journal(path):
        assert is_being_written(path)
        with pytest.raises(RunError, match="being written by another process"):
            Journal(path)
    assert not is_being_written(path)
    Journal(path).close()


def test_asking_who_writes_does_not_keep_a_writer_out(path: Path) -> None:
    Journal(path).close()
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            is_being_written(path)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(100):
            Journal(path).close()
    finally:
        done.set()
        for thread in threads:
            thread.join()


CRASH = """
import os, sys, time
from pathlib import Path
from esper.nissa.journal import Journal
journal = Journal(Path(sys.argv[1]))
journal.write("run_started")
if sys.argv[2] == "fork" and os.fork() == 0:
    try:
        journal.write("epoch")
    except ValueError:
        print(os.getpid(), flush=True)
    time.sleep(60)
    os._exit(0)
if sys.argv[2] == "wait":
    print("ready", flush=True)
    time.sleep(60)
sys.stdin.read()
os._exit(1)
"""


def crashing(path: Path, how: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CRASH, str(path), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_the_lock_of_a_killed_process_is_gone(path: Path) -> None:
    with crashing(path, "wait") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert is_being_written(path)
        process.kill()
        process.wait()
        assert not is_being_written(path)
    assert [event["event"] for event in read_journal(path)[0]] == ["run_started"]


def test_a_forked_worker_neither_writes_nor_holds_the_lock(path: Path) -> None:
    with crashing(path, "fork") as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        try:
            assert is_being_written(path)
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
            assert not is_being_written(path)
        finally:
            os.kill(worker, signal.SIGKILL)


def test_dumps_is_one_line_of_ascii() -> None:
    assert dumps({"a": "é\n", "b": (1, 2.5, None, True)}) == '{"a":"\\u00e9\\n","b":[1,2.5,null,true]}'
