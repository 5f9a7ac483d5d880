"""A run whose Redis server dies or stops in the middle ends with the very weights of a run without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from servers.redis import RedisServer, be_patient

from esper.assembly.training import build_training
from esper.nissa.journal import JOURNAL_NAME
from esper.nissa.journal_reader import read_journal
from esper.nissa.run_records import CacheTier
from esper.nissa.run_view import RunView
from esper_cli.config import compose

FAULT_AT = 2
"""After this many decisions, of seven."""


def trained(folder: Path, library: str, fault: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """The summary of a run in ``folder`` whose every kernel comes from beyond memory."""
    decisions = 0

    def listen(event: str, _: dict[str, Any]) -> None:
        nonlocal decisions
        decisions += event == "decision"
        if event == "decision" and decisions == FAULT_AT:
            fault()

    places = [f"runs={folder}/runs", f"urza.url=sqlite:///{folder}/kernels.db"]
    growth = ["tamiyo=schedule", "tamiyo.at=[0.1,0.2,0.3,0.4,0.5,0.6,0.7]"]
    overrides = [f"urza={library}", "urza.memory_bytes=0", f"security.path={folder}/keys.json"]
    cfg = compose(["+experiment=smoke", *places, *growth, *overrides])
    summary = build_training(cfg, listeners=[listen]).run()
    assert decisions == 7
    return summary


@pytest.fixture(scope="module")
def weights_without(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a run that has no Redis server."""
    summary = trained(tmp_path_factory.mktemp("without"), "sqlite")
    assert "redis" not in summary["cache"]
    weights: str = summary["weights_sha256"]
    return weights


@pytest.mark.parametrize("fault", [RedisServer.kill, RedisServer.pause], ids=["killed", "stopped"])
def test_training_goes_on_without_redis(
    tmp_path: Path,
    own_redis: RedisServer,
    weights_without: str,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[RedisServer], None],
) -> None:
    monkeypatch.setenv("ESPER_REDIS_URL", own_redis.url)
    be_patient(monkeypatch, seconds=2)
    summary = trained(tmp_path, "redis", lambda: fault(own_redis))
    assert summary["weights_sha256"] == weights_without
    folder = Path(summary["folder"])
    events, _ = read_journal(folder / JOURNAL_NAME)
    redis = [CacheTier(**event["tiers"]["redis"]) for event in events if event["event"] == "cache"]
    assert (redis[0].errors, redis[0].state) == (0, "closed")
    assert redis[-1].hits > 0  # from before
    assert redis[-1].errors > 0
    assert "open" in {tier.state for tier in redis}
    assert redis[-1].state != "closed"  # it may just be trying the server
    assert RunView(folder).refresh().cache["redis"] == redis[-1]
