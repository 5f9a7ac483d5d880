"""Training in two processes through the real command: started, killed, restarted, interrupted."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from forked import Forked, command, esper
from waiting import until

from esper.nissa.journal import JOURNAL_NAME, Event
from esper.nissa.journal_reader import read_journal

SMOKE = ("train", "+experiment=smoke", "tamiyo=never", "urza=memory")


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPER_HOME", str(tmp_path / "home"))
    return tmp_path


@contextmanager
def training(*overrides: str) -> Iterator[Forked]:
    """A run of two processes, past its first epoch."""
    with command(*SMOKE, "tolaria=ddp", "tolaria.epochs=2000", "--quiet", *overrides) as process:
        while_it_runs(process, lambda: newest_step() > 0)
        yield process


def while_it_runs(process: Forked, come: Callable[[], bool]) -> None:
    """Wait until what is asked for has ``come``."""

    def has_come() -> bool:
        assert process.poll() is None, process.said
        return come()

    until(has_come)


def newest_step() -> int:
    names = [path.parent.name for path in Path("runs").glob("*/checkpoints/step-*/manifest.json")]
    return max((int(name.removeprefix("step-")) for name in names), default=0)


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


def started() -> list[Event]:
    return [event for event in journal() if event["event"] == "run_started"]


def test_killed_it_goes_on_by_itself_as_often_as_it_may_and_then_says_who_was() -> None:
    with training("tolaria.restarts=1") as process:
        os.kill(of_rank(process.pid, 0), signal.SIGKILL)
        while_it_runs(process, lambda: len(started()) == 2)
        resumed_from = started()[1]["resumed_from_step"]
        assert resumed_from >= 19
        while_it_runs(process, lambda: newest_step() > resumed_from)
        os.kill(of_rank(process.pid, 1), signal.SIGKILL)
        done = process.wait()
    assert done.returncode == 7
    *others, last = done.stderr.splitlines()
    assert last.startswith("esper: error: process 1 of 2 was ended by SIGKILL.")
    # The first process misses the other at once, or is asked to end before it has come to that.
    assert (journal()[-1]["event"], len(others)) in (("run_failed", 0), ("run_interrupted", 1))
    assert [event["resumed_from_step"] for event in started()] == [None, resumed_from]


def test_interrupted_it_saves_and_says_how_to_go_on() -> None:
    with training() as process:
        process.send(signal.SIGINT)
        done = process.wait()
    assert done.returncode == 130
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("esper: interrupted; saved; go on with: esper train --resume ")
    assert journal()[-1]["event"] == "run_interrupted"
    ended = newest_step() // 19 + 1
    resumed = esper(
        "train", "--resume", "latest", "tolaria.processes=1", f"tolaria.epochs={ended}", "--quiet"
    )
    assert resumed.returncode == 0, resumed.stderr
    assert journal()[-1]["summary"]["epochs"] == ended
