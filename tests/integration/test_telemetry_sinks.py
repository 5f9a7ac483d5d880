"""The sinks that other projects' libraries write: what those libraries then read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from servers.otlp import OtlpReceiver

from esper.errors import SinkUnavailable, StorageError
from esper.messages import SeedState
from esper.nissa.telemetry.health_record import pack
from esper.nissa.telemetry.messages import Message
from esper.nissa.telemetry.mlflow import RUN_TAG, Mlflow
from esper.nissa.telemetry.otlp import Otlp
from esper.nissa.telemetry.tensorboard import TensorBoard

RUN = "20261128-120000-test-0001"
VALUES = np.array([[1, 2, 3, 0.5, 0, 0.25], [1, 2, 3, 0.5, 0, 0.75]], np.float32)
PACKET = {"loss": 0.5, "held_out_loss": "NaN", "accuracy": 0.9, "learning_rate": 0.1, "global_step": 20}
DECISION = {"epoch": 1, "decision": {"target_component": "stage1"}}


def event(place: int, name: str, **fields: object) -> Message:
    return Message("event", name, 1_000_000_000.5, place, fields)


BATCH = [
    event(10, "run_started", experiment="smoke", seed=3, total_epochs=2, layers={}),
    Message("step", "step", 1_000_000_000.0, 10, {"epoch": 1, "step": 8, "steps": 10, "loss": 0.75}),
    Message("health", "health", 1e9, 10, record=pack("stage1", 1, 8, 2, [SeedState.DORMANT] * 2, VALUES)),
    event(20, "epoch", packet=PACKET, samples_per_second=100.0),
    event(30, "decision", **DECISION),
    event(40, "run_finished", summary={}),
]


def test_tensorboard_reads_curves_and_texts(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for batch in (BATCH[:4], BATCH[4:]):  # a run that goes on adds to it
        sink = TensorBoard(tmp_path / "board", RUN)
        sink.write(batch)
        sink.close()
    assert all(f".{RUN}." in path.name for path in (tmp_path / "board").iterdir())  # and not the host's name
    found = EventAccumulator(str(tmp_path / "board")).Reload()
    scalars = {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    assert scalars["train/step_loss"] == [(18, 0.75)]
    assert scalars["train/loss"] == [(20, 0.5)]
    assert scalars["seed/health/stage1/1"] == [(18, 0.75)]
    assert found.Scalars("held_out/accuracy")[0].wall_time == 1_000_000_000.5
    assert "events/decision/text_summary" in found.Tags()["tensors"]
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write to"):
        TensorBoard(tmp_path / "file", RUN)


@pytest.fixture
def otlp_receiver() -> Iterator[OtlpReceiver]:
    receiver = OtlpReceiver()
    yield receiver
    receiver.close()


@pytest.fixture
def mlflow_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database takes it seconds to make
    return f"file://{tmp_path}/store"


def test_mlflow_has_one_run_for_each_of_ours(mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for batch in (BATCH[:3], BATCH[3:]):
        Mlflow(mlflow_uri, "of a test", RUN).write(batch)
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_uri)
    experiment = client.get_experiment_by_name("of a test")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"experiment": "smoke", "seed": "3", "total_epochs": "2"}
    assert run.data.metrics["train/loss"] == 0.5
    assert np.isnan(run.data.metrics["held_out/loss"])
    (point,) = client.get_metric_history(run.info.run_id, "train/step_loss")
    assert (point.step, point.value, point.timestamp) == (18, 0.75, 1_000_000_000_000)
    assert run.data.tags[RUN_TAG] == run.info.run_name == RUN
    assert "stage1" in run.data.tags["esper.decision.30"]
    assert set(run.data.tags) == {RUN_TAG, "mlflow.runName", "esper.decision.30"}  # no host, no user, no path
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_mlflow_that_does_not_answer_is_unavailable() -> None:
    with pytest.raises(SinkUnavailable, match="failed with exception"):
        Mlflow("http://127.0.0.1:9", "x", RUN).write(BATCH)


def test_a_collector_of_opentelemetry_gets_gauges_and_log_records(otlp_receiver: OtlpReceiver) -> None:
    sink = Otlp(otlp_receiver.url, RUN)
    sink.write(BATCH)
    sink.close()
    (metrics,) = otlp_receiver.metrics[0].resource_metrics
    (logs,) = otlp_receiver.logs[0].resource_logs
    for resource in (metrics.resource, logs.resource):
        attributes = {item.key: item.value.string_value for item in resource.attributes}
        assert attributes == {"service.name": "esper", "service.instance.id": RUN}
    gauges = {metric.name: metric.gauge.data_points for metric in metrics.scope_metrics[0].metrics}
    (loss,) = gauges["esper.train.step_loss"]
    assert (loss.as_double, loss.time_unix_nano) == (0.75, 1_000_000_000 * 10**9)
    assert [point.as_double for point in gauges["esper.seed.health"]] == [0.25, 0.75]
    labels = {item.key: item.value.string_value for item in gauges["esper.seed.health"][1].attributes}
    assert labels == {"layer": "stage1", "seed": "1"}
    records = logs.scope_logs[0].log_records
    assert [record.event_name for record in records] == [
        "esper.run_started",
        "esper.epoch",
        "esper.decision",
        "esper.run_finished",
    ]
    assert '"target_component":"stage1"' in records[2].body.string_value
    assert records[2].time_unix_nano == 1_000_000_000_500_000_000


def test_a_collector_that_is_ill_or_gone_is_unavailable(
    otlp_receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esper.nissa.telemetry.otlp.CALL_SECONDS", 0.5)
    otlp_receiver.ill = True
    for url in (otlp_receiver.url, "http://127.0.0.1:9"):
        sink = Otlp(url, RUN)
        with pytest.raises(SinkUnavailable, match="took no metrics"):
            sink.write(BATCH)
        sink.close()
    assert not otlp_receiver.metrics
