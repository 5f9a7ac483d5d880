"""A run that is asked to pause, to go on and to go back while it trains."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig
from waiting import LONG, until

from esper.assembly.training import build_training
from esper.errors import RunError
from esper.nissa.control import CONTROL_NAME, Action, ask
from esper.nissa.journal import JOURNAL_NAME
from esper.nissa.journal_reader import read_journal
from esper.nissa.run_records import RunStatus
from esper.nissa.runs import RunStore
from esper.tolaria.run import Run
from esper_cli.app import run as command
from esper_cli.config import compose
from esper_cli.progress import describe

GROWING = (
    "tamiyo=eager",
    "tamiyo.first_epoch=2",
    "karn.paths=[blueprints/low_rank.yaml]",
    "tamiyo.min_confidence=0.0",
    "tamiyo.detector.window=3",
)


def config(runs: Path, *overrides: str) -> DictConfig:
    base = ["+experiment=smoke", "urza=memory", "tamiyo=never", "tolaria.epochs=4", f"runs={runs}"]
    return compose([*base, *overrides])


class Asking:
    """A listener that asks something of the run when an event happens for the n-th time."""

    def __init__(self, event: str, times: int, act: Callable[[Path], object]) -> None:
        self.event, self.left, self.act = event, times, act
        self.folder = Path()

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        if event == self.event:
            self.left -= 1
            if self.left == 0:
                self.act(self.folder)


def run_with(cfg: DictConfig, *asking: Asking) -> tuple[Run, dict[str, Any]]:
    run = build_training(cfg, listeners=asking)
    for each in asking:
        each.folder = run.info.folder
    return run, run.run()


def events_of(run: Run, *names: str) -> list[dict[str, Any]]:
    events, _ = read_journal(run.info.folder / JOURNAL_NAME)
    return [event for event in events if event["event"] in names]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The summary of a run that nobody asked anything."""
    return build_training(config(tmp_path_factory.mktemp("whole"))).run()


def asks(action: Action, **bounds: int) -> Callable[[Path], object]:
    return lambda folder: ask(folder, action, **bounds)


def test_a_paused_run_waits_and_goes_on_as_if_nothing_had_been(whole: dict[str, Any], tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def later(folder: Path) -> None:
        store = RunStore(folder.parent)
        until(lambda: store.open(folder.name).status is RunStatus.PAUSED)
        view = store.open(folder.name)
        before = len(view.epochs), view.seconds
        time.sleep(0.6)
        view = store.open(folder.name)
        seen["still"] = view.status is RunStatus.PAUSED and (len(view.epochs), view.seconds) == before
        with pytest.raises(RunError, match="does not go on"):
            ask(tmp_path / "nothing", "resume")
        ask(folder, "resume")

    def pause(folder: Path) -> None:
        ask(folder, "pause")
        threading.Thread(target=later, args=(folder,)).start()

    run, summary = run_with(config(tmp_path), Asking("step", 3, pause))
    assert seen["still"]
    assert summary["weights_sha256"] == whole["weights_sha256"]
    paused, resumed = events_of(run, "control")
    assert (paused["action"], paused["outcome"]) == ("pause", "done")
    assert (resumed["action"], resumed["outcome"]) == ("resume", "done")
    assert paused["step"] == resumed["step"] == len(run.trainer.batches) + 16, "it was to be amid an epoch"
    # It can go on from where it was paused, whatever becomes of the process meanwhile.
    saved = [event["step"] for event in events_of(run, "checkpoint") if event["at"] <= paused["at"]]
    assert paused["step"] in saved
    view = RunStore(tmp_path).open(run.info.run_id)
    assert view.status is RunStatus.FINISHED
    assert view.started_at is not None
    assert view.updated_at is not None
    # What it waited is time that it has not worked.
    assert view.seconds < (view.updated_at - view.started_at).total_seconds() - 0.5
    assert summary["seconds"] < view.seconds
    assert "paused, as was asked for" in str(describe("control", paused))


def test_a_run_that_has_become_unstable_goes_back_before_it_pauses(tmp_path: Path) -> None:
    def spoil(folder: Path) -> None:
        next(run.trainer.model.parameters()).data.fill_(float("nan"))
        ask(folder, "pause")

    def resume(folder: Path) -> None:
        ask(folder, "resume")

    asking = [Asking("step", 3, spoil), Asking("control", 1, resume)]
    run = build_training(config(tmp_path), listeners=asking)
    for each in asking:
        each.folder = run.info.folder
    run.run()
    told = events_of(run, "rollback", "control")
    assert [each.get("action", each["event"]) for each in told] == ["rollback", "pause", "resume"]
    assert [each["outcome"] for each in told[1:]] == ["done", "done"]


def test_a_run_goes_back_to_an_epoch_and_what_grew_since_rests(tmp_path: Path) -> None:
    growing = (*GROWING, "tolaria.epochs=8", "tolaria.keep_checkpoints=100")
    run, summary = run_with(config(tmp_path, *growing), Asking("epoch", 5, asks("rollback", epoch=1)))
    (asked,) = events_of(run, "control")
    (rollback,) = events_of(run, "rollback")
    assert (asked["outcome"], asked["epoch"]) == ("done", 1)
    assert (rollback["cause"], rollback["to_epoch"]) == ("request", 1)
    assert rollback["to_step"] == len(run.trainer.batches) == asked["step"]
    assert "caused by request" in str(describe("rollback", rollback))
    assert summary["epochs"] == 8
    assert [epoch.epoch for epoch in RunStore(tmp_path).open(run.info.run_id).epochs] == list(range(8))
    # What had grown is culled, and rests.
    grafted = [e["decision"] for e in events_of(run, "decision") if e["at"] < rollback["at"]]
    places = [[d["target_component"], d["parameters"]["seed_idx"]] for d in grafted]
    assert places
    assert sorted(places) == sorted(rollback["seeds"])
    moved = [e for e in events_of(run, "seed") if e["at"] >= rollback["at"]]
    assert [e["to_state"] for e in moved[:2]] == ["CULLED", "EMBARGOED"]
    assert moved[0]["evidence"]["reason"] == "rolled back: it was asked for"


def test_growth_of_the_host_is_undone_and_not_tried_again_at_once(tmp_path: Path) -> None:
    cfg = config(tmp_path, "tamiyo=widen_early", "tolaria.epochs=6")
    run, _ = run_with(cfg, Asking("growth", 1, asks("rollback", epoch=1)))
    assert len(events_of(run, "rollback")) == 1
    decided = [(e["epoch"], e["outcome"]["status"]) for e in events_of(run, "decision")]
    assert decided[0][1] == "grown"
    refused = [e for e in events_of(run, "decision") if e["outcome"]["status"] == "refused"]
    assert any("it was rolled back" in e["outcome"]["reason"] for e in refused), decided


def test_a_run_goes_back_to_the_newest_checkpoint_or_to_a_step_while_it_is_paused(tmp_path: Path) -> None:
    def while_paused(folder: Path) -> None:
        ask(folder, "pause")
        ask(folder, "rollback")
        ask(folder, "rollback", step=0)
        ask(folder, "resume")

    cfg = config(tmp_path, "tolaria.keep_checkpoints=100", "tolaria.epochs=3")
    run, summary = run_with(cfg, Asking("epoch", 2, while_paused))
    done = events_of(run, "control")
    assert [(e["action"], e["outcome"]) for e in done] == [
        ("pause", "done"),
        ("rollback", "done"),
        ("rollback", "done"),
        ("resume", "done"),
    ]
    steps = len(run.trainer.batches)
    assert [e["step"] for e in done] == [2 * steps, steps, 0, 0]
    assert (summary["epochs"], summary["steps"]) == (3, 3 * steps)


def test_what_cannot_be_done_is_refused_with_the_reason(tmp_path: Path) -> None:
    def impossible(folder: Path) -> None:
        ask(folder, "resume")
        ask(folder, "rollback", epoch=0)
        with (folder / CONTROL_NAME).open("ab") as file:
            file.write(b'{"request": 1}\nnonsense\n[]\n')
        ask(folder, "pause")
        ask(folder, "pause")
        ask(folder, "resume")

    cfg = config(tmp_path, "tolaria.keep_checkpoints=1")
    run, summary = run_with(cfg, Asking("epoch", 3, impossible), Asking("epoch", 4, asks("rollback")))
    assert summary["epochs"] == 4
    refused = [e for e in events_of(run, "control") if e["outcome"] == "refused"]
    assert [(e["action"], e["reason"].partition(";")[0]) for e in refused] == [
        ("resume", "the run is not paused"),
        ("rollback", "there is no such checkpoint"),
        ("pause", "the run is paused already"),
        ("rollback", "the training has ended"),
    ]
    assert f"there are: step {3 * len(run.trainer.batches)} (epoch 3)" in refused[1]["reason"]
    with pytest.raises(RunError, match="does not go on"):
        ask(run.info.folder, "pause")


def test_a_paused_run_takes_ctrl_c_and_resumes_from_there(whole: dict[str, Any], tmp_path: Path) -> None:

    def pause(folder: Path) -> None:
        def later() -> None:
            until(lambda: RunStore(tmp_path).open(folder.name).status is RunStatus.PAUSED)
            time.sleep(0.2)
            signal.raise_signal(signal.SIGINT)

        ask(folder, "pause")
        threading.Thread(target=later).start()

    with pytest.raises(KeyboardInterrupt):
        run_with(config(tmp_path), Asking("step", 3, pause))
    store = RunStore(tmp_path)
    (view,) = store.views()
    assert view.status is RunStatus.INTERRUPTED
    paused = next(iter(view.controls.values()))
    resumed = build_training(config(tmp_path), resume=view.run_id)
    assert resumed.trainer.progress.global_step == paused.step
    ask(view.folder, "resume")  # of the process that is there now, which is not paused
    summary = resumed.run()
    assert summary["weights_sha256"] == whole["weights_sha256"]
    assert store.open(view.run_id).status is RunStatus.FINISHED
    assert [c.reason for c in view.refresh().controls.values()][-1] == "the run is not paused"


def test_the_command_line_asks_and_says_what_became_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []

    def later(run_id: str) -> None:
        for arguments in (["pause", run_id, "--json"], ["resume", run_id], ["resume", "latest"]):
            codes.append(command(["runs", *arguments, "--wait", str(LONG), f"runs={tmp_path}"]))
            if arguments[0] == "pause":
                codes.append(command(["runs", "ls", f"runs={tmp_path}"]))
                codes.append(command(["runs", "show", run_id, f"runs={tmp_path}"]))

    threads: list[threading.Thread] = []

    def start(folder: Path) -> None:
        threads.append(threading.Thread(target=later, args=(folder.name,)))
        threads[0].start()

    # The run ends once it was asked everything.
    cfg = config(tmp_path, "tolaria.epochs=100000")
    run = build_training(cfg, listeners=[asking := Asking("epoch", 1, start)])
    asking.folder = run.info.folder
    training = threading.Thread(target=lambda: stop_when(run, lambda: bool(threads) and len(codes) == 5))
    training.start()
    training.join()
    threads[0].join()
    captured = capsys.readouterr()
    assert codes == [0, 0, 0, 0, 7]
    asked = json.loads(captured.out[: captured.out.index("}\n}") + 3])
    assert asked["outcome"]["action"] == "pause"
    assert "paused" in captured.out[len(json.dumps(asked)) :]
    assert f"it goes on with: esper runs resume {run.info.run_id}" in captured.out
    assert f"{run.info.run_id} goes on, after" in captured.out
    assert "refused: the run is not paused" in captured.err
    assert command(["runs", "rollback", "latest", "--epoch", "1", "--step", "1"]) == 2


class Enough(Exception):
    """Ends a run from within."""


def stop_when(run: Run, holds: Callable[[], bool]) -> None:
    def look(event: str, fields: Mapping[str, Any]) -> None:
        if event == "epoch" and holds():
            raise Enough

    run.trainer.recorder.listeners += (look,)
    with contextlib.suppress(Enough):
        run.run()


def test_requests_at_once_are_each_whole(tmp_path: Path) -> None:
    asked: list[str] = []

    def many(folder: Path) -> None:
        with ThreadPoolExecutor(8) as pool:
            asked.extend(r.request for r in pool.map(lambda _: ask(folder, "resume"), range(40)))

    run, _ = run_with(config(tmp_path), Asking("epoch", 1, many))
    assert sorted(e["request"] for e in events_of(run, "control")) == sorted(asked)
