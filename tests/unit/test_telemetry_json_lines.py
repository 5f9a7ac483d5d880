"""JSON lines where they cannot be written: a full disk, a pipe that nobody empties, standard output."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from telemetry_support import everything

from esper.errors import StorageError
from esper.nissa.journal import Journal
from esper.nissa.telemetry.json_lines import JsonLines
from esper.nissa.telemetry.messages import Message
from esper.nissa.telemetry.telemetry import Telemetry


def step(n: int) -> Message:
    return Message("step", "step", 1e9, 5, {"n": n, "loss": float("nan")})


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_line_is_an_object(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "lines", "run_a")
    sink.write([step(1)])
    sink.close()
    assert json.loads((tmp_path / "lines").read_text()) == {
        "kind": "step",
        "name": "step",
        "at": "2001-09-09T01:46:40.000+00:00",
        "run": "run_a",
        "place": 5,
        "fields": {"n": 1, "loss": "NaN"},
    }


def test_a_line_that_a_full_disk_cut_off_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    sink = JsonLines(path, "run_a")
    with file_size_limit(100), pytest.raises(OSError, match="large"):
        sink.write([step(1)])
    sink.write([step(1), step(2)])
    sink.close()
    cut, *whole = path.read_text().splitlines()
    assert cut == json.dumps(json.loads(whole[0]), separators=(",", ":"))[: len(cut)]
    assert [json.loads(line)["fields"]["n"] for line in whole] == [1, 2]


def test_a_file_knows_what_it_has_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    sink = JsonLines(path, "run_a")
    assert sink.position() == 0
    sink.write([Message("event", "seed", 1e9, 70, {}), Message("step", "step", 1e9, 90, {"n": 1})])
    JsonLines(path, "run_b").write([Message("event", "seed", 1e9, 800, {})])
    with path.open("ab") as file:
        file.write(b'no line of ours\n[]\n{"run":"run_a","kind":"event","place":9000')  # cut off
    assert sink.position() == 70
    assert JsonLines(path, "run_b").position() == 800
    other = JsonLines(path, "run_c")
    assert other.position() is None
    other.write([step(1)])
    assert json.loads(path.read_text().splitlines()[-1])["run"] == "run_c"  # on a line of its own
    with path.open("ab") as file:
        file.write(b"x" * 2**20)
    assert sink.position() is None
    sink.close()


def test_a_run_whose_process_was_killed_lacks_no_event_in_its_file(tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    for n in range(3):
        with Journal(tmp_path / "journal.jsonl", fsync=False) as journal:
            sink = JsonLines(lines, "run_a")
            telemetry = Telemetry([sink], journal.path, lambda: journal.end, allow=everything)
            journal.write("seed", n=2 * n)
            telemetry.close()
            journal.write("seed", n=2 * n + 1)  # nobody told the sink any more
    told = [json.loads(line)["fields"]["n"] for line in lines.read_text().splitlines()]
    assert told == [0, 1, 2, 3, 4]


def test_standard_output_is_a_sink_too(capfd: pytest.CaptureFixture[str]) -> None:
    sink = JsonLines(None, "run_a")
    sink.write([step(1)])
    sink.close()
    assert json.loads(capfd.readouterr().out)["fields"]["n"] == 1
    os.write(1, b"still open")
    assert capfd.readouterr().out == "still open"


def test_a_file_that_cannot_be_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write to"):
        JsonLines(tmp_path / "none" / "lines", "run_a")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="cannot write to"):  # and not waited for
        JsonLines(tmp_path / "pipe", "run_a")


def test_a_pipe_that_nobody_empties_holds_up_nobody(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    with Journal(tmp_path / "journal.jsonl", fsync=False) as journal:
        sink = JsonLines(pipe, "run_a")
        telemetry = Telemetry([sink], journal.path, lambda: journal.end, allow=everything)
        for n in range(1000):
            journal.write("seed", n=n)
            telemetry.step({"n": n})
        telemetry.close(0.3)
        assert telemetry.counts()["jsonl"].behind == journal.end
        os.close(reader)  # the writer's thread ends: the pipe is broken
        time.sleep(0.1)
