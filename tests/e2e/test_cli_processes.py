"""Training in two processes through the real command: started, killed, restarted, interrupted."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from esper.nissa.journal import JOURNAL_NAME, Event, read_journal

COMMAND = (sys.executable, "-m", "esper_cli", "train", "+experiment=smoke", "tamiyo=never", "urza=memory")
WITHIN = 60.0
"""Seconds to wait for what takes a few; other tests run beside these."""


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPER_HOME", str(tmp_path / "home"))
    return tmp_path


@contextmanager
def training(*overrides: str) -> "Iterator[subprocess.Popen[str]]":
    """A run of two processes, past its first epoch."""
    command = [*COMMAND, "tolaria=ddp", "--quiet", *overrides]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + WITHIN
            while not list(Path("runs").glob("*/checkpoints/step-*19")):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield process
        finally:
            process.kill()


def of_rank(parent: int, rank: int) -> int:
    """The process of that rank that ``parent`` started."""
    children = [
        int(child)
        for task in Path(f"/proc/{parent}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    told = f"RANK={rank}".encode()
    (found,) = [pid for pid in children if told in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]
    return found


def journal() -> list[Event]:
    (run,) = Path("runs").glob("2*")
    return read_journal(run / JOURNAL_NAME)[0]


def test_one_that_is_killed_ends_the_run_with_a_line_that_says_so() -> None:
    with training("tolaria.epochs=2000") as process:
        os.kill(of_rank(process.pid, 1), signal.SIGKILL)
        _, said = process.communicate(timeout=WITHIN)
    assert process.returncode == 7
    assert said.startswith("esper: error: process 1 of 2 was ended by SIGKILL.")
    assert len(said.splitlines()) == 1
    assert journal()[-1]["event"] == "run_failed"


def test_killed_it_starts_again_by_itself_and_goes_on_from_the_newest_checkpoint() -> None:
    with training("tolaria.epochs=12", "tolaria.restarts=1") as process:
        os.kill(of_rank(process.pid, 0), signal.SIGKILL)
        _, said = process.communicate(timeout=2 * WITHIN)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    first, second = [event for event in journal() if event["event"] == "run_started"]
    assert first["resumed_from_step"] is None
    assert second["resumed_from_step"] >= 19
    assert journal()[-1]["event"] == "run_finished"
    assert journal()[-1]["summary"]["epochs"] == 12


def test_interrupted_it_saves_and_says_how_to_go_on() -> None:
    with training("tolaria.epochs=2000") as process:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=WITHIN)
    assert process.returncode == 130
    assert len(said.splitlines()) == 1
    assert said.startswith("esper: interrupted; saved; go on with: esper train --resume ")
    assert journal()[-1]["event"] == "run_interrupted"
