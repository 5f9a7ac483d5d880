"""Inventing for a library: once, with lineage, alike from alike reports, retired and restored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from urza_support import report

from esper.assembly.inventing import Inventing, build_inventor
from esper.assembly.kernels import build_pipeline
from esper.assembly.storage import build_library
from esper.karn.invention import Place
from esper.messages import InventionRecord, Slot
from esper.tezzeret.budget import Budget
from esper_cli import app
from esper_cli.config import compose

Output = pytest.CaptureFixture[str]
SLOT = Slot("features", 6, 6)
PLACES = [Place(SLOT, "linear")]
FEW = ("karn.generator.sample=6", "karn.generator.pool=16", "tezzeret.nice=0")
NAMED = ("--slot", "features:6:6", *FEW)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPER_HOME", str(tmp_path))
    monkeypatch.delenv("COLUMNS", raising=False)
    return tmp_path


@contextmanager
def inventing(*overrides: str, **settings: Any) -> Iterator[Inventing]:
    cfg = compose(["urza=memory", *FEW, *overrides])
    paths = [Path(path) for path in cfg.karn.paths]
    with build_library(cfg) as library:
        yield Inventing(library, build_pipeline(cfg), build_inventor(cfg), paths, **settings)


def of(records: list[InventionRecord]) -> list[InventionRecord]:
    return [replace(record, at="") for record in records]


def test_an_invention_is_stored_with_what_it_was_made_of_and_never_made_again() -> None:
    with inventing(only_new=True, run_id="run-1") as made:
        told: list[InventionRecord] = []
        first = made.invent(PLACES, 3, told.append)
        assert first == told == made.library.inventions()
        assert len(first) == 3
        for record in first:
            assert record.kernel_id is not None
            kernel = made.library.fetch(record.kernel_id).metadata
            assert kernel.slot == SLOT
            assert {"invented", "validated"} <= set(kernel.tags)
            assert (kernel.run_id, kernel.parent_blueprint) == ("run-1", record.parents[0])
            assert record.reason.startswith(kernel.decision[:100])
        second = made.invent(PLACES, 3)
        graphs = {record.graph_id for record in (*first, *second)}
        assert len(graphs) == 6
        assert len(made.library.compilations()) == 6


def test_the_same_reports_give_the_same_inventions() -> None:
    results = []
    for _ in range(2):
        with inventing(only_new=True) as made:
            first = of(made.invent(PLACES, 2))
            trial = report(slot=SLOT, layer_kind="linear", kernel_id=first[0].kernel_id, task="digits")
            made.library.record_trial(replace(trial, blueprint_id=first[0].blueprint_id), "run-1")
            results.append((first, of(made.invent(PLACES, 2))))
    assert results[0] == results[1]


def test_what_cannot_be_compiled_is_on_record_with_its_reason_and_not_tried_again() -> None:
    failures = []
    with inventing(only_new=True, on_failure=failures.append) as made:
        starved = replace(made, pipeline=replace(made.pipeline, budget=Budget(parameters=1)))
        (failed,) = starved.invent(PLACES, 1)
        assert failed.kernel_id is None
        assert "parameters" in str(failed.failure)
        assert [record.blueprint_id for record in failures] == [failed.blueprint_id]
        (other,) = made.invent(PLACES, 1)
        assert other.graph_id != failed.graph_id


def test_places_that_have_least_come_first() -> None:
    others = [Place(Slot("features", 6, n), "linear") for n in (6, 7, 8)]
    with inventing(only_new=True) as made:
        slots = [record.slot.out_features for _ in range(3) for record in made.invent(others, 1)]
    assert sorted(slots) == [6, 7, 8]


def test_what_keeps_losing_is_retired_until_it_is_restored(home: Path, capsys: Output) -> None:
    with inventing("urza=sqlite", only_new=True) as made:
        loser, other = made.invent(PLACES, 2)
        for epoch in range(4):
            trial = report(slot=SLOT, layer_kind="linear", verdict="culled", started_epoch=epoch, gain=-0.01)
            ids = {"kernel_id": loser.kernel_id, "blueprint_id": loser.blueprint_id}
            made.library.record_trial(replace(trial, **ids), "run-1")
            found = made.retire()
            assert (loser.kernel_id in found) is (epoch == 3)
        assert "its last 4 trials in linear layers were lost" in found[str(loser.kernel_id)]
        offered = [kernel.kernel_id for kernel in made.library.find(SLOT)]
        assert loser.kernel_id not in offered
        assert other.kernel_id in offered
        assert made.retire() == {}
        for epoch in range(40):  # it rests while others are tried
            trial = report(slot=SLOT, layer_kind="linear", started_epoch=10 + epoch)
            ids = {"kernel_id": other.kernel_id, "blueprint_id": other.blueprint_id}
            made.library.record_trial(replace(trial, **ids), "run-2")
        made.retire()
        assert loser.kernel_id in [kernel.kernel_id for kernel in made.library.find(SLOT)]
        assert app.run(["karn", "retire", loser.blueprint_id]) == 0
        made.retire()  # by hand stays by hand
        assert made.library.get(str(loser.kernel_id)).status == "retired"
        assert app.run(["karn", "restore", loser.blueprint_name]) == 0
        assert made.library.get(str(loser.kernel_id)).status == "validated"
    out = capsys.readouterr().out
    assert f"brought back {loser.kernel_id}" in out
    assert app.run(["karn", "ls"]) == 0
    assert "kept in 0 of 4 trials" in capsys.readouterr().out


def test_without_trials_and_slots_it_says_where_to_begin(capsys: Output) -> None:
    assert app.run(["karn", "run", "--budget", "5"]) == 0
    assert "esper train +experiment=resnet karn=on" in capsys.readouterr().out
    assert app.run(["karn", "ls"]) == 0
    assert "esper karn run --budget 50" in capsys.readouterr().out
    assert app.run(["karn", "retire", "nothing"]) != 0
    assert "List them with: esper karn ls" in capsys.readouterr().err


def test_the_command_invents_for_a_slot_within_its_budget_in_workers_too(capsys: Output) -> None:
    for more in ([], ["--workers", "1"]):
        assert app.run(["karn", "run", "--budget", "2", *NAMED, "--json", *more]) == 0
        made = json.loads(capsys.readouterr().out)
        assert len(made["inventions"]) == 2
        assert all(record["kernel_id"] for record in made["inventions"])
    assert app.run(["karn", "ls", "--json"]) == 0
    assert len({record["graph_id"] for record in json.loads(capsys.readouterr().out)}) == 4


def test_ctrl_c_keeps_what_is_stored(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Inventing.invent

    def interrupted(self: Inventing, places: Any, count: int, tell: Any) -> Any:
        def and_stop(record: InventionRecord) -> None:
            tell(record)
            raise KeyboardInterrupt

        return store(self, places, count, and_stop)

    monkeypatch.setattr(Inventing, "invent", interrupted)
    assert app.run(["karn", "run", "--budget", "5", *NAMED]) == 130
    assert "stopped: 1 invention stored" in capsys.readouterr().err
    assert app.run(["karn", "ls", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1


def test_the_doctor_says_whether_a_run_could_invent(capsys: Output) -> None:
    found = {}
    for place in ("urza=sqlite", "urza=memory"):
        app.run(["doctor", "--json", "+experiment=smoke", "karn=on", place])
        parts = {finding["part"]: finding for finding in json.loads(capsys.readouterr().out)}
        found[place] = parts["inventing"]["good"], parts["inventing"]["detail"]
    assert found["urza=sqlite"][0]
    assert "up to 24 inventions a run" in found["urza=sqlite"][1]
    assert not found["urza=memory"][0]
    assert "cannot see a library in this one's memory" in found["urza=memory"][1]
