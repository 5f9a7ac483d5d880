"""Runs are read back as they were written: status, history, resumes, names."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import pytest
from nissa_support import RunWriter, report

from esper.errors import RunError, StorageError
from esper.messages import SeedState
from esper.nissa.journal import JOURNAL_NAME
from esper.nissa.run_records import CacheTier, RunStatus
from esper.nissa.run_view import MAX_FAULTS_KEPT, RunView
from esper.nissa.runs import RunStore, new_run_id

RUN = "20261123-181502-resnet-3f2a"
ROLLBACK = ["cause", "target", "kind", "detail", "epoch", "from_step", "to_step", "to_epoch", "seconds"]


def view_of(journal: RunWriter) -> RunView:
    return RunView(journal.path.parent).refresh()


def test_a_run_reads_back_as_it_was_lived(tmp_path: Path) -> None:
    with RunWriter(tmp_path, RUN) as journal:
        journal.started()
        journal.epoch(1, loss=0.9)
        journal.decision(1)
        journal.seed(1, SeedState.GERMINATED)
        journal.decision(1, status="refused", seed_idx=1, kernel_id=None)
        journal.epoch(2, loss=math.nan, states=(SeedState.TRAINING, SeedState.DORMANT))
        journal.trial(2)
        redis = {"hits": 2, "misses": 1, "errors": 4, "state": "open"}
        journal.write("cache", tiers={"memory": CacheTier(3, 1), "redis": redis})
        journal.write("checkpoint", epoch=2, path="checkpoints/2")
        journal.write("run_finished", summary={"accuracy": 0.52})
    view = view_of(journal)
    assert (view.run_id, view.experiment, view.task, view.seed) == (RUN, "resnet", "fashion", 7)
    assert (view.parameters, view.flops_per_sample, view.total_epochs) == (19810, 1.5e6, 10)
    assert view.status is RunStatus.FINISHED
    assert view.summary == {"accuracy": 0.52}
    assert view.epochs[0].loss == 0.9
    assert math.isnan(view.epochs[1].loss)
    assert (view.epochs[1].seconds, view.epochs[1].samples_per_second) == (1.5, 1000.0)
    assert "history" not in view.epochs[1].packet
    assert view.epochs[1].packet["layer_metrics"]["stage1"]["seed_health"] == [0.9, 0.8]
    performed, refused = view.adaptations
    assert (performed.performed, performed.kernel_id, performed.trial) == (True, "kernel_a", report(2))
    assert (refused.performed, refused.kernel_id, refused.trial) == (False, None, None)
    assert performed.decision["confidence"] == 0.87
    assert refused.reason == "no kernel fits"
    assert [(seed.state, seed.kernel_id, seed.since_epoch) for seed in view.seeds["stage1"]] == [
        ("TRAINING", "kernel_a", 2),
        ("DORMANT", None, 0),
    ]
    assert [seed.active for seed in view.seeds["stage1"] + view.seeds["head"]] == [True, False, False]
    assert view.transitions[0].evidence == {"gain": 0.03}
    assert view.trials == [report(2)]
    assert view.cache == {"memory": CacheTier(3, 1), "redis": CacheTier(2, 1, errors=4, state="open")}
    assert (view.damaged, view.torn) == (0, 0)


def test_status_follows_the_last_word_and_the_process(tmp_path: Path) -> None:
    with RunWriter(tmp_path, RUN) as journal:
        journal.started()
        view = view_of(journal)
        assert view.status is RunStatus.RUNNING
    assert view.refresh().status is RunStatus.STOPPED
    with RunWriter(tmp_path, RUN) as journal:
        journal.write("run_interrupted", epoch=1)
    assert view.refresh().status is RunStatus.INTERRUPTED
    with RunWriter(tmp_path, RUN) as journal:
        journal.started(resumed_from_epoch=1)
        assert view.refresh().status is RunStatus.RUNNING
        journal.write("run_failed", error="disk full")
        assert view.refresh().status is RunStatus.FAILED
    assert view.refresh().error == "disk full"


def test_what_a_resume_threw_away_leaves_the_view(tmp_path: Path) -> None:
    with RunWriter(tmp_path, RUN) as journal:
        journal.started()
        journal.epoch(1)
        journal.decision(1)
        journal.seed(1, SeedState.GERMINATED)
        journal.epoch(2, states=(SeedState.GERMINATED, SeedState.DORMANT))
        journal.decision(2, seed_idx=1, kernel_id="kernel_b")
        journal.seed(2, SeedState.GERMINATED, seed_idx=1, kernel_id="kernel_b")
        journal.trial(3)
        journal.write("cache", tiers={"memory": (5, 2), "redis": CacheTier(4, 3, 2, "open")})
    view = view_of(journal)
    assert (len(view.adaptations), len(view.trials)) == (2, 1)
    with RunWriter(tmp_path, RUN) as journal:
        journal.started(resumed_from_epoch=1)
        journal.write("cache", tiers={"memory": CacheTier(1, 1), "redis": CacheTier(1, 0, 1, "closed")})
        view.refresh()
    assert [epoch.epoch for epoch in view.epochs] == [1]
    assert [item.kernel_id for item in view.adaptations] == ["kernel_a"]
    assert view.adaptations[0].trial is None
    assert view.trials == []
    assert [seed.kernel_id for seed in view.seeds["stage1"]] == ["kernel_a", None]
    assert view.cache == {"memory": CacheTier(6, 3), "redis": CacheTier(5, 3, 3, "closed")}
    assert view.resumes == 1


def test_a_journal_with_pairs_of_hits_and_misses_is_still_read(tmp_path: Path) -> None:
    with RunWriter(tmp_path, RUN) as journal:
        journal.write("cache", tiers={"memory": [5, 2], "sql": [2, 0]})
    view = view_of(journal)
    assert view.cache == {"memory": CacheTier(5, 2), "sql": CacheTier(2, 0)}
    assert view.damaged == 0


def test_an_epoch_lived_again_after_a_rollback_replaces_the_first(tmp_path: Path) -> None:
    with RunWriter(tmp_path, RUN) as journal:
        for epoch in (1, 2, 3, 2):
            journal.epoch(epoch, loss=epoch / 10)
    assert [epoch.epoch for epoch in view_of(journal).epochs] == [1, 2]


def test_what_a_rollback_threw_away_leaves_the_view(tmp_path: Path) -> None:
    with RunWriter(tmp_path, RUN) as journal:
        journal.started()
        journal.epoch(1)
        journal.decision(1)
        journal.seed(1, SeedState.GERMINATED)
        journal.epoch(2, states=(SeedState.GERMINATED, SeedState.DORMANT))
        journal.decision(2, seed_idx=1, kernel_id="kernel_b")
        journal.seed(2, SeedState.GERMINATED, seed_idx=1, kernel_id="kernel_b")
        journal.rollback(2)
        journal.seed(2, SeedState.CULLED)
        view = view_of(journal)
    assert [epoch.epoch for epoch in view.epochs] == [1]
    assert [item.kernel_id for item in view.adaptations] == ["kernel_a"]
    assert [seed.state for seed in view.seeds["stage1"]] == ["CULLED", "DORMANT"]
    (rollback,) = view.rollbacks
    assert (rollback.cause, rollback.skipped, rollback.seeds) == ("batch", (3, 4), (("stage1", 0),))
    assert view.resumes == view.damaged == 0


def test_the_packet_has_the_last_word_on_a_seed(tmp_path: Path) -> None:
    with RunWriter(tmp_path, RUN) as journal:
        journal.seed(1, SeedState.TRAINING)
        journal.epoch(2)
    assert view_of(journal).seeds["stage1"][0].state == "DORMANT"


def test_pauses_between_processes_are_not_working_time(tmp_path: Path) -> None:
    folder = tmp_path / RUN
    folder.mkdir()
    times = [("run_started", "00"), ("cache", "05"), ("run_started", "30"), ("cache", "31"), ("cache", "20")]
    lines = [f'{{"event":"{event}","at":"2026-11-23T10:00:{second}Z"}}\n' for event, second in times]
    (folder / JOURNAL_NAME).write_text("".join(lines).replace('"cache"', '"later_event"'))
    view = RunView(folder).refresh()
    assert view.seconds == 6.0
    assert view.started_at == datetime(2026, 11, 23, 10, tzinfo=UTC)
    assert view.damaged == 0


def test_events_and_fields_of_a_newer_version_are_ignored(tmp_path: Path) -> None:
    with RunWriter(tmp_path, RUN) as journal:
        journal.write("telescope", anything=[1])
        journal.write("trial", report={**asdict(report(2)), "colour": "red"})
    view = view_of(journal)
    assert view.trials == [report(2)]
    assert view.damaged == 0


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        ("epoch", {"packet": 3}),
        ("epoch", {"packet": {"epoch": 1, "loss": "high", "accuracy": 1, "layer_metrics": {}}}),
        ("epoch", {}),
        ("decision", {"epoch": 1, "decision": {}, "outcome": "grafted"}),
        ("seed", {"epoch": 1, "layer": "a", "seed_idx": 10**9, "from_state": "A", "to_state": "B"}),
        ("seed", {"epoch": 1, "layer": "a", "seed_idx": -1, "from_state": "A", "to_state": "B"}),
        ("trial", {"report": {"slot": None}}),
        ("fault", {"epoch": "x"}),
        ("cache", {"tiers": {"memory": [1]}}),
        ("cache", {"tiers": {"memory": [1, 1], "redis": {"hits": 1, "misses": 1}}}),
        ("cache", {"tiers": [1]}),
        ("run_started", {"layers": [1]}),
        ("rollback", {**dict.fromkeys(ROLLBACK, 1), "seeds": [], "skipped": [1]}),
    ],
)
def test_an_event_that_cannot_be_understood_is_counted_and_changes_nothing(
    tmp_path: Path, event: str, fields: dict[str, object]
) -> None:
    with RunWriter(tmp_path, RUN) as journal:
        journal.started()
        journal.epoch(1)
        before = view_of(journal)
        journal.write(event, **fields)
        after = view_of(journal)
    assert after.damaged == 1
    assert (after.epochs, after.seeds, after.adaptations) == (before.epochs, before.seeds, before.adaptations)
    assert (after.trials, after.faults, after.cache) == ([], [], {})
    assert after.resumes == 0


def test_all_faults_are_counted_and_the_latest_kept(tmp_path: Path) -> None:
    with RunWriter(tmp_path, RUN) as journal:
        for count in range(MAX_FAULTS_KEPT + 5):
            journal.fault(count)
        journal.fault(9, kind="non-finite")
    view = view_of(journal)
    assert view.fault_counts == {"raised": MAX_FAULTS_KEPT + 5, "non-finite": 1}
    assert len(view.faults) == MAX_FAULTS_KEPT
    assert view.faults[-1].kind == "non-finite"


def test_a_view_follows_a_run_and_can_drop_old_packets(tmp_path: Path) -> None:
    with RunWriter(tmp_path, RUN) as journal:
        view = RunView(journal.path.parent, keep_packets=False).refresh()
        for epoch in (1, 2):
            journal.epoch(epoch)
            view.refresh()
        assert [bool(epoch.packet) for epoch in view.epochs] == [False, True]


def test_a_replaced_journal_starts_the_view_over(tmp_path: Path) -> None:
    with RunWriter(tmp_path, RUN) as journal:
        journal.started()
        journal.epoch(1)
        view = view_of(journal)
    journal.path.write_text("")
    view.refresh()
    assert (view.epochs, view.experiment, view.started_at) == ([], "", None)


# The store


def test_a_run_id_sorts_by_time_and_says_what_it_ran() -> None:
    run_id = new_run_id("My ResNet/../x", datetime(2026, 11, 23, 18, 15, 2, tzinfo=UTC))
    stem, suffix = run_id.rsplit("-", 1)
    assert stem == "20261123-181502-my-resnet-x"
    assert len(suffix) == 4
    assert int(suffix, 16) >= 0
    assert new_run_id("///").split("-")[2] == "run"


def test_many_processes_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: RunStore(tmp_path / "runs").create("smoke"), range(200)))
    assert len(set(folders)) == 200
    assert all(folder.is_dir() for folder in folders)


def three_runs(root: Path) -> RunStore:
    for run_id in (
        "20261123-181502-resnet-3f2a",
        "20261123-181502-smoke-77aa",
        "20261124-090000-resnet-0001",
    ):
        with RunWriter(root, run_id) as journal:
            journal.started(experiment=run_id.split("-")[2])
            journal.epoch(1)
    (root / "not-a-run").mkdir()
    (root / "notes.txt").write_text("")
    return RunStore(root)


def test_runs_are_listed_and_opened_by_id_prefix_and_latest(tmp_path: Path) -> None:
    store = three_runs(tmp_path)
    summaries = store.list()
    assert summaries[0].run_id == "20261124-090000-resnet-0001"
    assert len(summaries) == 3
    assert summaries[0].to_json() == {
        **summaries[0].to_json(),
        "experiment": "resnet",
        "status": "stopped",
        "epochs": 2,
        "total_epochs": 10,
        "loss": 0.5,
        "accuracy": 0.51,
        "adaptations": 0,
        "path": str(tmp_path / "20261124-090000-resnet-0001"),
    }
    assert store.open("20261124").run_id == "20261124-090000-resnet-0001"
    assert store.open("20261123-181502-smoke-77aa").experiment == "smoke"
    assert store.open("latest").run_id == "20261124-090000-resnet-0001"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("20261123", "is the beginning of 2 runs: 20261123-181502-resnet-3f2a, 20261123-181502-smoke-77aa"),
        ("20261124-090000-resnet-0002", "nearest: 20261124-090000-resnet-0001"),
        ("../secrets", "no run '../secrets'"),
        ("", "no run ''"),
        ("not-a-run", "no run 'not-a-run'"),
    ],
)
def test_a_name_that_is_no_run_names_the_nearest(tmp_path: Path, name: str, message: str) -> None:
    store = three_runs(tmp_path)
    with pytest.raises(RunError) as caught:
        store.open(name)
    assert message in caught.value.message
    assert caught.value.hint


def test_no_runs_at_all(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    assert store.list() == []
    with pytest.raises(RunError, match="no runs in") as caught:
        store.open("latest")
    assert "esper train" in str(caught.value.hint)


def test_a_runs_folder_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    store = RunStore(tmp_path / "runs")
    with pytest.raises(StorageError, match="cannot read the runs in"):
        store.list()
    with pytest.raises(StorageError, match="cannot create a run in"):
        store.create("smoke")


def test_one_unreadable_journal_does_not_hide_the_others(tmp_path: Path) -> None:
    store = three_runs(tmp_path)
    broken = tmp_path / "20261125-000000-broken-0000" / JOURNAL_NAME
    broken.mkdir(parents=True)
    assert len(store.list()) == 3
    assert list(store.problems) == ["20261125-000000-broken-0000"]
    assert store.open("latest").run_id == "20261124-090000-resnet-0001"
    with pytest.raises(StorageError, match=r"Is a directory|not a regular file"):
        store.open("20261125")


def test_a_deleted_run_is_forgotten(tmp_path: Path) -> None:
    store = three_runs(tmp_path)
    assert len(store.views()) == 3
    (tmp_path / "20261124-090000-resnet-0001" / JOURNAL_NAME).unlink()
    assert len(store.views()) == 2


def test_the_latest_run_is_the_one_that_began_last_whatever_it_is_called(tmp_path: Path) -> None:
    with RunWriter(tmp_path, "z-began-first") as first:
        first.started()
    with RunWriter(tmp_path, "a-began-last") as last:
        last.write("later_version", note="before its start")
        last.started()
    with RunWriter(tmp_path, "z-has-no-start"):
        pass
    store = RunStore(tmp_path)
    journal = tmp_path / "z-began-first" / JOURNAL_NAME
    first_line = journal.read_text()
    journal.write_text(first_line.replace(first_line.split('"at":"')[1][:10], "2001-01-01"))
    assert store.find("latest") == store.views()[0].run_id == "a-began-last"
    assert store.find("z-b") == "z-began-first"
