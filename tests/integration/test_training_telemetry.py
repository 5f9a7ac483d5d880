"""A run whose messages go to two sinks at once: what arrives, what stays, and that nothing else changes."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from servers.redis import RedisServer, free_port

from esper.assembly.checks import examine
from esper.assembly.telemetry import prepare_telemetry
from esper.assembly.training import build_training
from esper.errors import ConfigError
from esper.nissa.journal import JOURNAL_NAME
from esper.nissa.journal_reader import read_journal
from esper.nissa.telemetry.health_record import SCHEMA, unpack
from esper.nissa.telemetry.redis_stream import keys_of
from esper_cli.config import compose


def trained(folder: Path, *overrides: str, resume: str | None = None) -> dict[str, Any]:
    places = [
        f"runs={folder}/runs",
        f"urza.url=sqlite:///{folder}/kernels.db",
        f"security.path={folder}/keys.json",
    ]
    cfg = compose(["+experiment=smoke", "tolaria.epochs=3", *places, *overrides])
    return build_training(cfg, resume=resume).run()


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return trained(tmp_path_factory.mktemp("without"))


def test_a_run_tells_its_sinks_everything_but_places_and_is_the_same_run(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, without: dict[str, Any]
) -> None:
    monkeypatch.setenv("ESPER_REDIS_URL", redis_server.url)
    place = tmp_path / "canary-folder"
    place.mkdir()
    summary = trained(place, "nissa/sinks=[redis,jsonl]")
    assert summary["weights_sha256"] == without["weights_sha256"]
    folder = Path(summary["folder"])
    journal, _ = read_journal(folder / JOURNAL_NAME)
    lines = [json.loads(line) for line in (folder / "telemetry.jsonl").read_text().splitlines()]
    events = [line for line in lines if line["kind"] == "event"]
    told = [event["event"] for event in journal]
    assert [line["name"] for line in events] == told
    newest_first = told[::-1]
    assert newest_first.index("telemetry") < newest_first.index("epoch")
    assert told.count("epoch") == 3
    tiers = [event["tiers"] for event in journal if event["event"] == "cache"]
    assert 0 < len(tiers) < 3  # of one epoch nothing was looked for
    (last,) = [event for event in journal if event["event"] == "telemetry"][-1:]
    assert {sink["state"] for sink in last["sinks"].values()} == {"up"}
    for line, event in zip(events, journal, strict=True):
        assert line["at"] == event["at"].replace("Z", "+00:00")
        if event["event"] == "epoch":
            assert line["fields"]["packet"]["held_out_loss"] == event["packet"]["held_out_loss"]
    steps = [line for line in lines if line["kind"] == "step"]
    health = [line for line in lines if line["kind"] == "health"]
    layers = next(event["layers"] for event in journal if event["event"] == "run_started")
    assert len(health) == len(layers) * len(steps) > 0
    assert {line["schema"] for line in health} == {SCHEMA}
    record = unpack(base64.b64decode(health[0]["record"]))
    assert record.layer == health[0]["layer"]
    assert len(record.signals()) == layers[record.layer]["seeds"]
    streams = keys_of("esper:", folder.name)
    with redis_server.client() as client:
        names = [fields[b"name"].decode() for _, fields in client.xrange(streams[0])]
        raw = b"".join(
            value
            for stream in streams[:2]
            for _, fields in client.xrange(stream)
            for value in fields.values()
        )
        assert client.xlen(streams[1]) == len(steps) + len(health)
    assert names == told
    for text in (raw, (folder / "telemetry.jsonl").read_bytes()):
        assert b"canary" not in text


def test_going_on_appends_to_what_a_sink_has(tmp_path: Path) -> None:
    first = trained(tmp_path, "nissa/sinks=jsonl", "nissa.sinks.jsonl.path=../../all.jsonl")
    run_id = Path(first["folder"]).name
    trained(
        tmp_path,
        "nissa/sinks=jsonl",
        "nissa.sinks.jsonl.path=../../all.jsonl",
        "tolaria.epochs=4",
        resume=run_id,
    )
    names = [json.loads(line)["name"] for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [name for name in names if name.startswith("run_")] == ["run_started", "run_finished"] * 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (["+nissa.sinks.kafka.url=x"], "no such sink"),
        (["nissa/sinks=redis"], "ESPER_REDIS_URL"),
        (["nissa/sinks=jsonl", "nissa.buffer=0"], "nissa.buffer must be at least 1"),
        (["nissa/sinks=jsonl", "nissa.signals_every=-1"], "nissa.signals_every must be a number of seconds"),
        (["nissa/sinks=jsonl", "nissa.buffer=100000000000"], "at most 16777216"),
        (["nissa/sinks=otlp", "nissa.sinks.otlp.endpoint=5"], "endpoint must be a URL"),
        (["nissa/sinks=[jsonl,rediss]"], "did you mean redis?"),
    ],
)
def test_a_sink_that_cannot_be_is_said_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: list[str], said: str
) -> None:
    monkeypatch.delenv("ESPER_REDIS_URL", raising=False)
    with pytest.raises(ConfigError, match=said):
        trained(tmp_path, *override)
    assert not list(tmp_path.glob("runs/*"))


def test_sinks_are_looked_at_before_a_run_needs_them(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = f"nissa.sinks.otlp.endpoint=http://127.0.0.1:{free_port()}"
    sinks = ["nissa/sinks=[redis,jsonl,tensorboard,otlp]", nowhere]
    monkeypatch.setenv("ESPER_REDIS_URL", redis_server.url)
    found = {each.part: each for each in examine(compose(["+experiment=smoke", *sinks]))}
    assert found["sink redis"].detail == f"127.0.0.1:{redis_server.port} can be reached"
    assert found["sink jsonl"].detail == "writes to telemetry.jsonl"
    assert found["sink tensorboard"].good
    assert not found["sink otlp"].good
    assert "cannot be reached" in found["sink otlp"].detail


def test_a_sink_whose_package_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esper.assembly.telemetry.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"esper-morph\[mlflow\]"):
        prepare_telemetry(compose(["nissa/sinks=mlflow"]))
