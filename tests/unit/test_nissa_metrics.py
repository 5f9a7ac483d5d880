"""The metrics: fixed names, types that Prometheus's own tools accept, values as the runs wrote them."""

from __future__ import annotations

import math
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nissa_support import RunWriter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from esper.messages import CompilationRecord, SeedState, Slot
from esper.nissa.metrics import LATENCY_BUCKETS, MAX_ENDED_RUNS, RunCollector, render
from esper.nissa.run_records import CacheTier
from esper.nissa.runs import RunStore

RUN = "20261123-181502-resnet-3f2a"
OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"


def compilation(seconds: float, status: Any = "compiled") -> CompilationRecord:
    return CompilationRecord("blueprint_a", "a", Slot("features", 1, 1), "torchscript", status, seconds, "")


COMPILATIONS = [compilation(seconds) for seconds in (0.003, 0.01, 0.04, 0.3, 7.0)] + [
    compilation(0.1, "failed")
]


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    with RunWriter(tmp_path, RUN) as journal:
        journal.started(experiment='odd "name"\\\n')
        journal.epoch(1, loss=0.9)
        journal.decision(1)
        journal.decision(1, status="refused", seed_idx=1, kernel_id=None)
        journal.seed(1, SeedState.GERMINATED)
        journal.epoch(2, loss=0.25, states=(SeedState.BLENDING, SeedState.EMBARGOED))
        journal.trial(2, verdict="culled")
        journal.fault(2)
        journal.rollback(3)
        tiers = {"memory": CacheTier(3, 1), "redis": CacheTier(0, 1, 4, "open"), "sql": CacheTier(1, 0)}
        journal.write("cache", tiers=tiers)
        journal.write("checkpoint", epoch=1, path="old")  # of an older Esper
        for seconds in (9.0, 0.5):
            journal.write("checkpoint", epoch=2, step=20, path="new", seconds=seconds, paused=0.01)
        sink = {"written": 7, "dropped": 2, "lost": 1, "errors": 3, "behind": 10, "state": "down"}
        journal.write("telemetry", sinks={"redis": sink, "later": {}})
        journal.write("run_finished", summary={})
    return RunStore(tmp_path)


def samples(text: str) -> dict[tuple[Any, ...], float]:
    return {
        (sample.name, *sorted((k, v) for k, v in sample.labels.items() if k != "run")): sample.value
        for family in parse_text(text)
        for sample in family.samples
    }


def scrape(store: RunStore, compilations: Sequence[CompilationRecord] | None = COMPILATIONS) -> str:
    return render(RunCollector(store.views(), compilations))[0].decode()


def test_values_are_those_of_the_run(store: RunStore) -> None:
    values = samples(scrape(store))
    assert values[("esper_training_loss",)] == 0.25
    assert values[("esper_held_out_loss",)] == 0.35
    assert values[("esper_held_out_accuracy",)] == 0.52
    assert values[("esper_epoch",)] == 2
    assert values[("esper_epochs_planned",)] == 10
    assert values[("esper_samples_per_second",)] == 1000
    assert values[("esper_adaptation_count", ("type", "add_seed"))] == 1
    assert values[("esper_adaptations_refused_total",)] == 1
    assert values[("esper_seed_trials_total", ("verdict", "culled"))] == 1
    assert values[("esper_seed_trials_total", ("verdict", "kept"))] == 0
    assert values[("esper_seed_active_count", ("layer", "stage1"))] == 1
    assert values[("esper_seed_active_count", ("layer", "head"))] == 0
    assert values[("esper_kernel_faults_total", ("kind", "raised"))] == 1
    assert values[("esper_rollbacks_total", ("cause", "batch"))] == 1
    assert values[("esper_rollbacks_total", ("cause", "adaptation"))] == 0
    assert values[("esper_recovery_seconds_count",)] == 1
    assert values[("esper_recovery_seconds_sum",)] == 0.25
    assert values[("esper_checkpoint_seconds",)] == 0.5
    assert values[("esper_checkpoint_paused_seconds",)] == 0.01
    assert time.time() - values[("esper_checkpoint_timestamp_seconds",)] < 60
    assert values[("esper_kernel_cache_hits", ("tier", "memory"))] == 3
    assert values[("esper_kernel_cache_misses", ("tier", "memory"))] == 1
    assert values[("esper_kernel_cache_hits", ("tier", "sql"))] == 1
    assert values[("esper_kernel_cache_errors_total", ("tier", "redis"))] == 4
    assert values[("esper_kernel_cache_errors_total", ("tier", "sql"))] == 0
    assert values[("esper_run_state", ("state", "finished"))] == 1
    assert values[("esper_run_state", ("state", "running"))] == 0
    assert values[("esper_run_info", ("experiment", 'odd "name"\\\n'), ("task", "fashion"))] == 1
    assert values[("esper_library_up",)] == 1
    told = ("written", 7), ("dropped", 2), ("lost", 1), ("errors", 3)
    for what, count in told:
        assert values[(f"esper_telemetry_{what}_total", ("sink", "redis"))] == count
        assert values[(f"esper_telemetry_{what}_total", ("sink", "later"))] == 0


@pytest.mark.parametrize(("state", "up"), [("up", 1), ("down", 0)])
def test_whether_a_sink_takes_messages_is_shown_while_its_run_goes_on(
    tmp_path: Path, state: str, up: float
) -> None:
    names = [(f"esper_telemetry_{what}", ("sink", "redis")) for what in ("sink_up", "behind_bytes")]
    with RunWriter(tmp_path, RUN) as journal:
        journal.write("telemetry", sinks={"redis": {"state": state, "behind": 10}})
        values = samples(scrape(RunStore(tmp_path)))
    assert [values[name] for name in names] == [up, 10]
    assert not set(names) & set(samples(scrape(RunStore(tmp_path))))


@pytest.mark.parametrize(("state", "shown"), [("closed", 0), ("half-open", 1), ("open", 1)])
def test_the_circuit_of_a_tier_is_shown_while_its_run_goes_on(
    tmp_path: Path, state: str, shown: float
) -> None:
    name = ("esper_kernel_cache_circuit_open", ("tier", "redis"))
    with RunWriter(tmp_path, RUN) as journal:
        journal.write("cache", tiers={"memory": CacheTier(3, 1), "redis": CacheTier(0, 1, 4, state)})
        values = samples(scrape(RunStore(tmp_path)))
    assert values[name] == shown
    assert ("esper_kernel_cache_circuit_open", ("tier", "memory")) not in values
    assert name not in samples(scrape(RunStore(tmp_path)))


def test_compilation_latency_is_a_histogram(store: RunStore) -> None:
    values = samples(scrape(store))
    labels = (("status", "compiled"), ("target", "torchscript"))
    buckets = [
        values[("esper_compilation_latency_bucket", ("le", bound), *labels)]
        for bound in (*map(str, LATENCY_BUCKETS), "+Inf")
    ]
    assert buckets == [2, 2, 3, 3, 3, 4, 4, 4, 4, 5]
    assert values[("esper_compilation_latency_count", *labels)] == 5
    assert values[("esper_compilation_latency_sum", *labels)] == pytest.approx(7.353)
    failed = (("status", "failed"), ("target", "torchscript"))
    assert values[("esper_compilation_latency_count", *failed)] == 1


def test_a_kernel_that_failed_counts_until_it_is_compiled(store: RunStore) -> None:
    name = ("esper_compilation_failed_kernels", ("target", "torchscript"))
    failed = [compilation(1.0, "failed"), compilation(1.0, "failed")]
    other = replace(failed[0], slot=Slot("features", 2, 2))
    assert samples(scrape(store, failed))[name] == 1  # two attempts at one kernel
    assert samples(scrape(store, [*failed, other]))[name] == 2
    assert samples(scrape(store, [*failed, other, compilation(1.0)]))[name] == 1


def test_a_latency_that_is_not_finite_spoils_nothing(store: RunStore) -> None:
    values = samples(scrape(store, [compilation(math.nan), compilation(1.0)]))
    assert values[("esper_compilation_latency_sum", ("status", "compiled"), ("target", "torchscript"))] == 1.0


def test_a_library_that_cannot_be_read_is_shown(store: RunStore) -> None:
    text = scrape(store, None)
    assert samples(text)[("esper_library_up",)] == 0
    assert "esper_compilation_latency" not in text


def test_a_loss_that_is_not_finite_is_shown_as_it_is(tmp_path: Path) -> None:
    with RunWriter(tmp_path, RUN) as journal:
        journal.epoch(1, loss=math.nan)
    assert math.isnan(samples(scrape(RunStore(tmp_path)))[("esper_training_loss",)])


@pytest.mark.parametrize("accept", ["", "text/plain", "*/*", "application/json", "text/plain;version=x"])
def test_the_text_format_is_the_default(store: RunStore, accept: str) -> None:
    body, content_type = render(RunCollector(store.views(), COMPILATIONS), accept)
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    types = {family.name: family.type for family in parse_text(body.decode())}
    assert types["esper_training_loss"] == "gauge"
    assert types["esper_adaptation_count"] == "unknown"
    assert types["esper_compilation_latency"] == "histogram"


def test_openmetrics_for_those_who_ask(store: RunStore) -> None:
    body, content_type = render(RunCollector(store.views(), COMPILATIONS), OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    families = {family.name: family for family in parse_openmetrics(body.decode())}
    assert families["esper_adaptation_count"].samples[0].value == 1
    assert families["esper_compilation_latency"].type == "histogram"


def test_a_scrape_before_the_first_run_has_every_family(tmp_path: Path) -> None:
    names = {family.name for family in parse_text(scrape(RunStore(tmp_path / "runs"), []))}
    assert names >= {
        "esper_training_loss",
        "esper_adaptation_count",
        "esper_kernel_cache_hits",
        "esper_kernel_cache_misses",
        "esper_kernel_cache_errors",
        "esper_kernel_cache_circuit_open",
        "esper_seed_active_count",
        "esper_compilation_latency",
    }


def test_old_runs_leave_and_those_that_go_on_stay(tmp_path: Path) -> None:
    with RunWriter(tmp_path, "20200101-000000-old-0000") as going:
        going.started()
        for index in range(MAX_ENDED_RUNS + 3):
            with RunWriter(tmp_path, f"20261123-{index:06d}-resnet-0000") as journal:
                journal.started()
                journal.write("run_finished", summary={})
        families = {family.name: family for family in parse_text(scrape(RunStore(tmp_path)))}
        runs = {sample.labels["run"] for sample in families["esper_run_info"].samples}
    assert len(runs) == MAX_ENDED_RUNS + 1
    assert "20200101-000000-old-0000" in runs


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_say(store: RunStore) -> None:
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=scrape(store), capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")
