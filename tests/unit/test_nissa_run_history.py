"""A run's history: whole, in pieces, after a way back, and only of runs that are there."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from page_support import MadeRun

from esper.errors import RunError
from esper.nissa.api.history import History
from esper.nissa.api.run_history import KEPT, RunHistories
from esper.nissa.journal import JOURNAL_NAME, dumps

RUN = "20261128-100000-made-0001"
FACTS = (
    "run",
    "layers",
    "growths",
    "faults",
    "fault_counts",
    "rollbacks",
    "checkpoint",
    "cache",
    "inventions",
    "cursor",
)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[MadeRun]:
    made = MadeRun(tmp_path, RUN, layers=3, seeds=2, total=40, every=4)
    yield made
    made.close()


@pytest.fixture
def histories(tmp_path: Path) -> RunHistories:
    return RunHistories(tmp_path)


def plain(history: dict[str, Any]) -> dict[str, Any]:
    told = json.loads(dumps(history))
    History.model_validate(told)  # as the OpenAPI says
    return dict(told)


def merged(known: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    """What whoever has ``known`` knows after ``told``; the page does the same."""
    first = told["from_epoch"]
    kept = sum(epoch < first for epoch in known["epochs"]["epoch"])
    whole = {**known, **{name: told[name] for name in FACTS}}
    whole["epochs"] = {name: known["epochs"][name][:kept] + told["epochs"][name] for name in told["epochs"]}
    for name in ("sizes", "states"):
        whole[name] = [each for each in known[name] if each[0] < first] + told[name]
    adaptations = {} if first == 0 else {each["index"]: each for each in known["adaptations"]}
    adaptations.update({each["index"]: each for each in told["adaptations"]})
    whole["adaptations"] = list(adaptations.values())
    return whole


def test_whoever_asks_for_what_came_since_knows_as_much_as_who_asks_for_all(
    run: MadeRun, histories: RunHistories
) -> None:
    known = plain(histories.history(RUN))
    told = 0
    for steps in ((1,), (1,), (3,), (4,), (1,), (0,), (7,), (-3,), (2,), (5,), (-9, 11), (1,), (6,)):
        for epochs in steps:
            if epochs < 0:
                run.rollback(run.epoch + epochs)
            else:
                run.epochs(epochs)
        since = plain(histories.history(RUN, known["cursor"]))
        known = merged(known, since)
        whole = plain(histories.history(RUN))
        assert known == {**whole, "from_epoch": known["from_epoch"]}
        told += len(since["epochs"]["epoch"]) < max(2, len(whole["epochs"]["epoch"]) / 2)
    assert told >= 6  # the pieces are pieces
    assert len(known["rollbacks"]) == 2
    assert known["epochs"]["epoch"] == list(range(run.epoch))


def test_what_is_decided_after_an_epoch_is_told_to_who_knows_the_epoch(
    run: MadeRun, histories: RunHistories
) -> None:
    run.epochs(3)
    run._epoch()
    known = plain(histories.history(RUN))
    assert known["adaptations"] == known["states"] == []
    run._decide()
    known = merged(known, plain(histories.history(RUN, known["cursor"])))
    assert [each["epoch"] for each in known["adaptations"]] == [3]
    assert [each[3] for each in known["states"]] == ["GERMINATED"]


def test_what_the_network_was_is_told_as_what_changed(run: MadeRun, histories: RunHistories) -> None:
    run.epochs(24)
    history = plain(histories.history(RUN))
    layers = [layer["name"] for layer in history["layers"]]
    assert layers == ["stage1.0", "stage1.1", "stage1.2"]
    for place, layer in enumerate(layers):
        sizes = [parameters for _, at, parameters in history["sizes"] if at == place]
        assert sizes[-1] == run.sizes[layer]
        for index, state in enumerate(run.states[layer]):
            told = [each[3] for each in history["states"] if each[1:3] == [place, index]]
            assert (told or ["DORMANT"])[-1] == state
    (widened,) = (each for each in history["adaptations"] if each["outcome"]["status"] == "grown")
    assert set(widened["impact"]) == {"after", "before", "epochs"}
    kept = [each for each in history["adaptations"] if each["trial"] and each["trial"]["verdict"] == "kept"]
    assert kept
    assert kept[0]["impact"] == {"expected": 0.02, "realised": pytest.approx(0.021 / 0.48)}
    start, end = history["run"]["parameters_at_start"], history["epochs"]["parameters"][-1]
    assert history["epochs"]["parameters"][0] == start
    assert end == start + history["growths"][0]["parameters"] + 220 * len(kept)


def test_a_loss_that_is_no_number_is_told_as_it_is(run: MadeRun, histories: RunHistories) -> None:
    run.journal.write("epoch", packet={"epoch": 0, "loss": math.nan, "accuracy": 0.1, "layer_metrics": {}})
    assert plain(histories.history(RUN))["epochs"]["loss"] == ["NaN"]


def test_a_layer_without_seeds_and_a_growth_that_cannot_be_understood_hold_nothing_up(
    run: MadeRun, histories: RunHistories
) -> None:
    run.epochs(1)
    told = {"epoch": 1, "loss": 1, "accuracy": 0.1, "layer_metrics": {"head": {"parameters": 10}}}
    run.journal.write("epoch", packet=told)
    for report in (None, {}, {"epoch": "x", "parameters": 1}, {"epoch": 1, "parameters": None}):
        run.journal.write("growth", report=report)
    history = plain(histories.history(RUN))
    assert history["layers"][-1] == {"name": "head", "kind": "", "seeds": 0}
    assert history["sizes"][-1] == [1, 3, 10]
    assert history["growths"] == []
    assert history["run"]["damaged_lines"] == 4


def test_what_was_invented_beside_the_run_is_told(run: MadeRun, histories: RunHistories) -> None:
    run.invent("child", failure="build: too large")
    run.run_id = "another"
    run.invent("older")
    (told,) = plain(histories.history(RUN))["inventions"]
    assert (told["blueprint_name"], told["failure"]) == ("child", "build: too large")
    assert (told["predicted_impact"], told["uncertainty"]) == (0.012, 0.006)


def test_where_runs_lie_is_not_told(run: MadeRun, histories: RunHistories, tmp_path: Path) -> None:
    run.epochs(2)
    run.journal.write("checkpoint", epoch=2, step=20, path=str(tmp_path / "x"), paused=0.1, seconds=0.2)
    told = dumps(histories.history(RUN))
    assert '"checkpoint":{' in told
    assert str(tmp_path) not in told


def test_only_runs_that_are_there_have_a_history(run: MadeRun, histories: RunHistories) -> None:
    assert histories.history("latest")["run"]["run_id"] == RUN
    for name in ("", "nothing", "..", f"../{RUN}", f"{RUN}/", "\0"):
        with pytest.raises(RunError):
            histories.history(name)
    for cursor in ("", "x", "0.0", "0.0.-2", "0.1.2.3", "-1.0.3", "0.0.१", "0.0." + "1" * 10):
        with pytest.raises(ValueError, match="not a cursor"):
            histories.history(RUN, cursor)
    run.epochs(3)
    known = histories.history(RUN)["cursor"]
    assert histories.history(RUN, known)["from_epoch"] == 2
    started, generation, epoch = known.split(".")
    for stranger in (f"1.{generation}.{epoch}", f"{started}.7.{epoch}", f"{started}.{generation}.9"):
        assert histories.history(RUN, stranger)["from_epoch"] == 0  # of another history


def test_a_journal_that_was_replaced_is_told_from_its_beginning(
    run: MadeRun, histories: RunHistories, tmp_path: Path
) -> None:
    run.epochs(9)
    cursor = histories.history(RUN)["cursor"]
    run.close()
    shutil.rmtree(tmp_path / RUN)
    again = MadeRun(tmp_path, RUN, layers=1, total=40)
    again.epochs(10)
    again.close()
    told = plain(histories.history(RUN, cursor))
    assert told["from_epoch"] == 0
    assert len(told["layers"]) == 1
    assert len(told["epochs"]["epoch"]) == 10


def test_many_at_once_are_told_the_same_and_only_some_are_kept(tmp_path: Path) -> None:
    histories = RunHistories(tmp_path)
    for number in range(KEPT + 4):
        made = MadeRun(tmp_path, f"20261128-1000{number:02}-made-0001", layers=2, total=20)
        made.epochs(6)
        made.close()
    names = sorted(path.parent.name for path in tmp_path.glob(f"*/{JOURNAL_NAME}"))
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda name: dumps(histories.history(name)), names * 4))
    assert told[: len(names)] * 4 == told
    assert len(histories._timelines) == KEPT
