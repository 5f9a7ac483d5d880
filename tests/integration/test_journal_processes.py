"""The journal between processes: a writer that is killed, and readers beside one that writes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drills.journal_kills import drill

from esper.nissa.journal import Journal
from esper.nissa.journal_reader import read_journal

READ = """
import sys, time
from pathlib import Path
from esper.nissa.journal import is_being_written
from esper.nissa.journal_reader import JournalReader
reader = JournalReader(Path(sys.argv[1]))
while True:
    for event in reader.read():
        print(event["n"], flush=True)
        if event["n"] == 10 and sys.argv[2] == "hold":
            time.sleep(1000)  # in the middle of reading, with the file open
    is_being_written(reader.path)
"""
EVENTS = 2000


@contextmanager
def reading(path: Path, how: str) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", READ, str(path), how], stdout=subprocess.PIPE)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def test_no_event_that_was_acknowledged_is_lost_to_a_kill(tmp_path: Path) -> None:
    found = drill(tmp_path, kills=4, seed=int(time.time()))
    assert found.acknowledged >= 4
    assert found.missing == 0


def test_readers_hold_up_nobody_who_writes(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path, fsync=False) as journal:
        for n in range(20):
            journal.write("seed", n=n)
        with reading(path, "go on") as busy, reading(path, "hold") as held:
            for child in (busy, held):
                assert child.stdout is not None
                for n in range(11):
                    assert child.stdout.readline() == b"%d\n" % n
            held.send_signal(signal.SIGSTOP)
            for n in range(20, EVENTS):
                journal.write("seed", n=n)  # which would not return, if it waited for that reader
            held.send_signal(signal.SIGCONT)
            assert busy.stdout is not None
            assert busy.stdout.readline() == b"11\n"  # it has read all the while
    assert [event["n"] for event in read_journal(path)[0]] == list(range(EVENTS))
