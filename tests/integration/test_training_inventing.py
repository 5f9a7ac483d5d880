"""Training with karn=on: invented kernels are tried, and whoever ends first leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import forked
import pytest
from servers.redis import RedisServer
from waiting import until

from esper.assembly.background import BackgroundInventor
from esper.assembly.storage import build_library
from esper.assembly.training import build_training
from esper.errors import ConfigError
from esper.nissa.api.monitor import Monitor
from esper.nissa.runs import RunStore
from esper.tolaria.run import Run
from esper.urza import KernelQuery
from esper_cli import app
from esper_cli.config import compose

SHORT = [
    "+experiment=smoke",
    "karn=on",
    "tamiyo=never",  # so that nothing but inventions is tried
    "tolaria.epochs=10",
    "karn.trials.after=0",
    "karn.trials.quiet_tail=0",
    "karn.trials.min_rate_share=0",
    "karn.generator.sample=6",
    "karn.generator.pool=16",
    "karn.batch=2",
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPER_HOME", str(tmp_path))
    return tmp_path


def training(*overrides: str, at_epoch: Callable[[Run, int], None]) -> Run:
    """A run that calls ``at_epoch`` at the end of each, before it decides anything."""
    built: list[Run] = []

    def listener(event: str, fields: Mapping[str, Any]) -> None:
        if event == "epoch":
            at_epoch(built[0], fields["packet"]["epoch"])

    built.append(build_training(compose([*SHORT, *overrides]), listeners=[listener]))
    return built[0]


def inventor(run: Run) -> BackgroundInventor:
    (found,) = (each for each in run.trainer.recorder.listeners if isinstance(each, BackgroundInventor))
    return found


def pid_of(run: Run) -> int:
    process = inventor(run)._process
    assert process is not None
    return process.pid


def events(run: Run, name: str) -> list[dict[str, Any]]:
    lines = (run.info.folder / "journal.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


def wait_for_its_end(run: Run, epoch: int) -> None:
    if epoch == 2:
        inventor(run)._reader.join()


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.fixture(params=["sqlite", "full"])
def stored(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The library in a file, and in PostgreSQL with Redis before it."""
    if request.param == "full":
        server: RedisServer = request.getfixturevalue("redis_server")
        monkeypatch.setenv("ESPER_REDIS_URL", server.url)
        monkeypatch.setenv("ESPER_POSTGRES_URL", request.getfixturevalue("postgres_url"))
    return f"urza={request.param}"


def test_an_invented_kernel_is_tried_and_shown_with_its_lineage_and_fate(stored: str, capsys: Any) -> None:
    pids: list[int] = []
    depths: list[int] = []
    server = Monitor(RunStore(Path("runs")), lambda: ())

    def told_depth() -> bool:
        """Whether the queue has been seen to rise, and is empty again, by the API."""
        (queue,) = server.status()["compile_queue"]["runs"].values()
        depths.append(0 if queue is None else queue.waiting + queue.compiling)
        return depths[-1] == 0 < max(depths)

    def wait_for_inventions(run: Run, epoch: int) -> None:
        if epoch == 1:
            pids.append(pid_of(run))
            assert os.getpriority(os.PRIO_PROCESS, pids[0]) >= os.getpriority(os.PRIO_PROCESS, 0)
            library = run.trainer.orchestrator.library
            until(told_depth)
            assert library.query(KernelQuery(tags=("invented",)))
            metrics = server.metrics("")[0].decode()
            assert f'esper_compilation_queue_workers{{run="{run.info.run_id}"}} 1.0' in metrics

    run = training(stored, at_epoch=wait_for_inventions)
    summary = run.run()
    assert is_gone(pids[0])
    tried = [report for report in summary["adaptations"] if "invented" in report["tags"]]
    assert tried
    view = RunStore(Path("runs")).open("latest")
    (record, *_) = (each for each in view.inventions.values() if each.kernel_id == tried[0]["kernel_id"])
    assert record.parents
    assert app.run(["runs", "show", "latest"]) == 0
    shown = capsys.readouterr().out
    assert f"invented {record.kernel_id}" in shown
    assert record.parents[0] in shown
    assert record.reason in shown
    assert tried[0]["verdict"] in shown.split(f"invented {record.kernel_id}")[1]
    assert app.run(["runs", "show", "latest", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["inventions"]
    with build_library(compose([stored])) as library:
        (trial, *_) = library.trials(record.kernel_id)
    assert trial.report.task == "digits/1197, 10 classes, MLP"
    assert (trial.report.depth, trial.report.layers) in ((0, 2), (1, 2))
    assert trial.report.gradient_norm is not None
    assert trial.report.seconds is not None
    assert trial.report.seconds > 0


def test_training_goes_on_when_the_process_is_killed_and_says_so_once(capsys: Any) -> None:
    def kill(run: Run, epoch: int) -> None:
        if epoch == 2:
            pid = pid_of(run)
            os.kill(pid, signal.SIGKILL)
            inventor(run)._reader.join()

    run = training(at_epoch=kill)
    assert run.run()["epochs"] == 10
    assert [event["reason"] for event in events(run, "inventing_ended")] == ["exit code -9"]
    assert app.run(["runs", "show", "latest"]) == 0
    assert "inventing ended before the run: exit code -9" in capsys.readouterr().out


def test_a_process_that_fails_says_why(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_LIBRARY", f"sqlite:///{home}/kernels.db")
    run = training("urza.url=env:MY_LIBRARY", at_epoch=wait_for_its_end)
    monkeypatch.setenv("MY_LIBRARY", "nowhere")  # training has opened it already
    assert run.run()["epochs"] == 10
    (ended,) = events(run, "inventing_ended")
    assert ended["reason"].startswith("that is not a library's URL")


def test_it_ends_when_training_is_killed(home: Path) -> None:
    # Its budget spent, it writes nothing any more: a broken pipe is not what ends it.
    long = ["tolaria.epochs=100000", "karn.budget=1", "karn.batch=1"]
    with forked.command("train", *SHORT, *long) as process:
        process.until("the budget of 1 inventions is spent")
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert "background_process" in Path(f"/proc/{child}/cmdline").read_text()
        os.kill(process.pid, signal.SIGKILL)
    until(lambda: is_gone(int(child)))


@pytest.mark.parametrize("wrong", ["karn.nice=20", "karn.budget=0", "karn.batch=0"])
def test_settings_out_of_bounds_are_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=f"{wrong.partition('=')[0]} must be between"):
        build_training(compose([*SHORT, wrong]))


def test_a_library_in_memory_is_refused_before_anything_is_made(home: Path) -> None:
    with pytest.raises(ConfigError, match="cannot see a library in this one's memory") as caught:
        build_training(compose([*SHORT, "urza=memory"]))
    assert "urza=sqlite" in str(caught.value.hint)
    assert not (home / "runs").exists()
