"""Whatever journals hold, and however they grow: pages say what a naive reading of them does."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.nissa_support import LAYERS, packet, report

from esper.messages import SeedState
from esper.nissa import journal_reader, run_list
from esper.nissa.api.monitor import Monitor
from esper.nissa.api.queries import AdaptationsQuery, RunsQuery
from esper.nissa.api.run_pages import result_of, run_item
from esper.nissa.journal import JOURNAL_NAME, dumps
from esper.nissa.metrics import RunCollector, render
from esper.nissa.queue_metrics import broker_families
from esper.nissa.run_list import start_key
from esper.nissa.run_outline import RunOutline
from esper.nissa.run_view import RunView
from esper.nissa.runs import RunStore

BEGAN = datetime(2026, 11, 28, 23, 59, 58, tzinfo=UTC)


@pytest.fixture(autouse=True)
def short_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few lines take many of them."""
    monkeypatch.setattr(journal_reader, "_FIRST_BLOCK", 128)
    monkeypatch.setattr(journal_reader, "_BLOCK", 4000)
    monkeypatch.setattr(journal_reader, "_buffers", [])


def fields_of(random: Random, event: str) -> dict[str, Any]:
    """What such an event holds."""
    epoch, idx = random.randrange(6), random.randrange(2)
    states = (random.choice(list(SeedState)), SeedState.DORMANT)
    kernel = random.choice(["a", "b"])
    decision = {"adaptation_type": "add_seed", "target_component": "stage1", "parameters": {"seed_idx": idx}}
    status = random.choice(["grafted", "grafted", "grown", "refused"])
    fields: dict[str, dict[str, Any]] = {
        "preparing": {"experiment": "p", "total_epochs": 9},
        "run_started": {
            "experiment": random.choice("xy"),
            "task": "t",
            "total_epochs": 10,
            "resumed_from_epoch": random.choice([None, 0, 1, 2, 3]),
            "layers": LAYERS,
        },
        "epoch": {"packet": packet(epoch, random.random(), states), "seconds": 1.5},
        "decision": {
            "epoch": epoch,
            "decision": decision,
            "outcome": {"status": status, "kernel_id": kernel, "reason": "why"},
        },
        "trial": {
            "report": asdict(report(epoch, idx, kernel, verdict=random.choice(["kept", "culled", "failed"])))
        },
        "seed": {
            "epoch": epoch,
            "layer": "stage1",
            "seed_idx": idx,
            "kernel_id": kernel,
            "from_state": "DORMANT",
            "to_state": random.choice(list(SeedState)),
        },
        "cache": {"tiers": {"memory": {"hits": epoch, "misses": 1, "errors": 0, "state": None}}},
        "telemetry": {"sinks": {"redis": {"written": epoch}}},
        "compile_queue": {"waiting": epoch, "compiling": 1, "workers": 2},
        "checkpoint": {"path": "c", "seconds": epoch / 10, "paused": 0.1, "epoch": epoch, "step": 3},
        "fault": {"epoch": epoch, "layer": "stage1", "seed_idx": idx, "kind": "raised"},
        "rollback": {
            "cause": "batch",
            "target": "",
            "kind": "k",
            "detail": "d",
            "epoch": epoch,
            "from_step": 9,
            "to_step": 1,
            "to_epoch": random.randrange(4),
            "seconds": 1,
            "seeds": [],
            "skipped": None,
        },
        "control": {
            "request": str(random.random()),
            "action": random.choice(["pause", "resume"]),
            "outcome": random.choice(["done", "refused"]),
            "epoch": 1,
            "step": 2,
        },
        "run_finished": {"summary": {"steps": 1}},
        "run_interrupted": {"epoch": 1},
        "run_failed": {"error": "e"},
        "of_a_later_version": {},
    }
    return fields[event]


OFTEN = ("epoch",) * 14 + ("cache", "checkpoint", "seed") * 5 + ("decision", "trial") * 4
OFTEN += ("telemetry", "compile_queue") * 3
RARELY = ("preparing", "run_started", "rollback", "control", "fault", "of_a_later_version")
ENDS = ("run_finished", "run_interrupted", "run_failed")


def lines(random: Random, count: int, at: datetime) -> Iterator[bytes]:
    """Lines as Esper writes them, or some as others might, torn, empty, or of nothing that is understood, and
    with a clock that is set back.
    """
    whole, in_order = random.random() < 0.5, random.random() < 0.5
    for number in range(count):
        event = random.choice(OFTEN if random.random() < 0.85 else RARELY + ENDS[: random.randrange(4)])
        if number == 0 and random.random() < 0.9:
            event = "run_started"
        at += timedelta(milliseconds=random.choice([0, 1, 7, 900, 4000]))
        if random.random() < 0.04 and not in_order:
            at -= timedelta(seconds=3)
        said: Any = at.isoformat(timespec="milliseconds")
        fields = fields_of(random, event)
        if whole:
            yield dumps({"event": event, "at": said, **fields}).encode() + b"\n"
            continue
        if fields and random.random() < 0.06:
            fields[random.choice(list(fields))] = random.choice([None, [1], "x", -1])
        if random.random() < 0.05:
            said = random.choice([at.isoformat(), f"{at:%Y-%m-%dT%H:%M:%SZ}", "2026-13-40", None, "x"])
        said_of = {"event": event, "at": said, **fields}
        line = dumps(said_of)
        kind = random.random()
        if kind < 0.03:
            line = json.dumps(dict(reversed(said_of.items())), default=str)
        elif kind < 0.05:
            line = line[: random.randrange(len(line))]
        elif kind < 0.07:
            line = random.choice(
                ["", "[]", '{"event":"epoch","at":3}', '{"event":"epoch","at":"2026', "\x00"]
            )
        yield line.encode() + b"\n"


def naive_views(root: Path) -> list[RunView]:
    """Every run read whole from its beginning, the one started last first."""
    views = [RunView(folder).refresh() for folder in root.iterdir()]
    return sorted(views, key=start_key, reverse=True)


def every_run(monitor: Monitor, **query: Any) -> list[dict[str, Any]]:
    found, page = [], monitor.runs(RunsQuery(**query))
    while True:
        found += page["runs"]
        if page["next"] is None:
            return found
        page = monitor.runs(RunsQuery(**query, cursor=page["next"]))


def every_adaptation(monitor: Monitor, **query: Any) -> list[dict[str, Any]]:
    found, page = [], monitor.adaptations(AdaptationsQuery(**query))
    while True:
        found += page["adaptations"]
        if page["next"] is None:
            assert len(found) == page["total"]
            return found
        page = monitor.adaptations(AdaptationsQuery(**query, cursor=page["next"]))


def naive_adaptations(views: list[RunView]) -> list[dict[str, Any]]:
    found = [
        ((item.at, view.run_id, place), view.experiment, item)
        for view in views
        for place, item in enumerate(view.adaptations)
    ]
    found.sort(key=lambda entry: entry[0], reverse=True)
    return [
        {"run_id": place[1], "experiment": experiment, **item.to_json(), "result": result_of(item)}
        for place, experiment, item in found
    ]


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), limit=st.integers(1, 4), room=st.sampled_from([0, 30_000, 2**30]))
def test_pages_of_runs_that_grow_are_those_of_a_naive_reading(seed: int, limit: int, room: int) -> None:
    random = Random(seed)
    with tempfile.TemporaryDirectory() as path, pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_list, "KEPT_BYTES", room)
        root = Path(path)
        monitor = Monitor(RunStore(root, keep_packets=False), list)
        for _ in range(3):
            for name in random.sample("abcd", random.randint(1, 4)):
                (root / name).mkdir(exist_ok=True)
                at = BEGAN + timedelta(seconds=random.randrange(-2, 5))
                text = b"".join(lines(random, random.choice([0, 1, 3, 30]), at))
                torn = random.choice([b"", b"", b'{"event":"ep', b'{"event":"decision","at":"20'])
                with (root / name / JOURNAL_NAME).open("ab") as file:
                    file.write(text + torn)
                    if random.random() < 0.05:
                        file.truncate(0)
            views = naive_views(root)
            if random.random() < 0.7:
                naive = RunCollector(views, [], broker_families(None, known=False))
                assert monitor.metrics("") == render(naive)
            items = [run_item(view) for view in views]
            if random.random() < 0.7:
                assert every_run(monitor, limit=limit) == items
            if random.random() < 0.7:
                assert every_adaptation(monitor, limit=3 * limit) == naive_adaptations(views)
            wanted = random.choice(items)
            assert every_run(monitor, limit=limit, status=wanted["status"], experiment="x") == [
                item for item in items if (item["status"], item["experiment"]) == (wanted["status"], "x")
            ]
            outcome: Any = random.choice(["kept", "culled", "pending", "refused"])
            assert every_adaptation(monitor, limit=limit, outcome=outcome) == [
                item for item in naive_adaptations(views) if item["result"] == outcome
            ]


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_an_outline_says_what_a_view_does_and_decodes_less(seed: int) -> None:
    random = Random(seed)
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        outline = RunOutline(folder)
        for _ in range(3):
            with (folder / JOURNAL_NAME).open("ab") as file:
                file.writelines(lines(random, random.choice([1, 5, 60]), BEGAN))
            view = RunView(folder).refresh()
            outline.measure()
            last = None if view.last is None else dataclasses.replace(view.last, packet={})
            assert (outline.last, outline.seconds) == (last, view.seconds)
            assert (outline.updated_at, outline.started_at) == (view.updated_at, view.started_at)
            assert (outline.trials, outline.fault_counts) == (view.trials, view.fault_counts)
