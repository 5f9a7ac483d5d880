"""``esper watch`` in a real terminal, beside a process that writes the run's journal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_support import LIVE_ONLY, RUN_ID, events
from waiting import LONG

from esper.nissa.journal import JOURNAL_NAME, Journal

ALTERNATE, NORMAL = b"\x1b[?1049h", b"\x1b[?1049l"
SHOWN, HIDDEN = b"\x1b[?25h", b"\x1b[?25l"
"""What is said to a terminal about its screen, and about its cursor."""


class Terminal:
    """A command in a terminal of 80 columns and 24 lines."""

    def __init__(self, pid: int, terminal: int) -> None:
        self.pid, self.terminal, self.seen = pid, terminal, b""

    def press(self, keys: bytes) -> None:
        os.write(self.terminal, keys)

    def read_until(self, *words: bytes, since: int = 0) -> None:
        deadline = time.monotonic() + LONG
        while not all(word in self.seen[since:] for word in words):
            assert time.monotonic() < deadline, self.seen[-2000:]
            self._read(0.1)

    def _read(self, seconds: float) -> bool:
        if not select.select([self.terminal], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.terminal, 65536)
        except OSError:  # the other side is closed
            return False
        self.seen += data
        return bool(data)

    def exit_code(self) -> int:
        deadline = time.monotonic() + LONG
        while self._read(0.1):
            assert time.monotonic() < deadline, self.seen[-2000:]
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@contextmanager
def watching(folder: Path) -> Iterator[Terminal]:
    command = [sys.executable, "-m", "esper_cli", "watch"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execve(command[0], command, {**os.environ, "TERM": "xterm-256color"})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    try:
        yield Terminal(pid, terminal)
    finally:
        os.close(terminal)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """Of a run that goes on, with three epochs done."""
    folder = tmp_path / "runs" / RUN_ID
    folder.mkdir(parents=True)
    with Journal(folder / JOURNAL_NAME, fsync=False) as made:
        write(made, epochs=range(3))
        yield made


def write(journal: Journal, epochs: range) -> None:
    """What ``cli_support``'s run says in these epochs, its start and end included."""
    for name, fields in events():
        number = fields.get("packet", fields.get("report", fields)).get("epoch", fields.get("epoch"))
        begins, ends = name == "run_started" and 0 in epochs, name == "run_finished" and 11 in epochs
        if name not in LIVE_ONLY and (number in epochs or begins or ends):
            journal.write(name, **fields)


def test_the_picture_follows_the_run_and_stays_when_it_ends(journal: Journal, tmp_path: Path) -> None:
    with watching(tmp_path) as terminal:
        terminal.read_until(ALTERNATE, b"epoch 3/12", b"running")
        before = len(terminal.seen)
        write(journal, epochs=range(3, 11))
        terminal.read_until(b"epoch 11/12", since=before)
        write(journal, epochs=range(11, 12))
        assert terminal.exit_code() == 0
    left = terminal.seen[terminal.seen.rindex(NORMAL) :]
    assert b"epoch 12/12" in left
    assert f"run {RUN_ID}: finished".encode() in left


def test_keys_go_back_through_the_epochs_and_hold_the_end_until_they_are_left(
    journal: Journal, tmp_path: Path
) -> None:
    with watching(tmp_path) as terminal:
        terminal.read_until(b"epoch 3/12", b"home: the first")
        for keys, words in (
            (b"\x1b[D", b"after epoch 3"),
            (b"h\x1b[D", b"after epoch 1"),  # two at once
            (b"\x1b[D", b"epoch 1/12"),  # there is none before
            (b"\x1b[C", b"after epoch 2"),
        ):
            before = len(terminal.seen)
            terminal.press(keys)
            terminal.read_until(words, since=before)
        write(journal, epochs=range(3, 12))
        before = len(terminal.seen)
        terminal.press(b"\x1b[H")
        terminal.read_until(b"after epoch 1", since=before)
        terminal.press(b"\x1b[F")
        assert terminal.exit_code() == 0
    assert b"epoch 12/12" in terminal.seen[terminal.seen.rindex(NORMAL) :]


def test_q_leaves_a_run_that_goes_on(journal: Journal, tmp_path: Path) -> None:
    with watching(tmp_path) as terminal:
        terminal.read_until(b"epoch 3/12")
        terminal.press(b"x\x1b[Zq")  # two that mean nothing, and the one
        assert terminal.exit_code() == 0
    assert b"running" in terminal.seen[terminal.seen.rindex(NORMAL) :]


def test_ctrl_c_leaves_the_terminal_as_it_was(journal: Journal, tmp_path: Path) -> None:
    with watching(tmp_path) as terminal:
        terminal.read_until(b"epoch 3/12")
        os.kill(terminal.pid, signal.SIGINT)
        assert terminal.exit_code() == 130
    assert terminal.seen.rindex(SHOWN) > terminal.seen.rindex(HIDDEN)
    assert terminal.seen.rindex(NORMAL) > terminal.seen.rindex(ALTERNATE)
    assert b"Traceback" not in terminal.seen
