"""Metrics that many ask for at once are computed once."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from esper.nissa.api import kept_metrics
from esper.nissa.api.kept_metrics import KeptMetrics
from esper.nissa.api.monitor import Monitor
from esper.nissa.runs import RunStore

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def test_one_computes_for_all_who_ask_within_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(kept_metrics, "time", SimpleNamespace(monotonic=lambda: now[0]))
    asked: list[str] = []

    def slow(self: Monitor, accept: str) -> tuple[bytes, str]:
        asked.append(accept)
        time.sleep(0.05)
        return f"{len(asked)}".encode(), accept

    monkeypatch.setattr(Monitor, "metrics", slow)
    monitor = KeptMetrics(RunStore(tmp_path), lambda: [])
    assert monitor.kept_metrics("") is None
    with ThreadPoolExecutor(16) as pool:
        answers = set(pool.map(monitor.metrics, [""] * 100))
    assert answers == {(b"1", "")}
    until, answer = monitor.kept_metrics("text/plain") or (0, None)
    assert answer == (b"1", "")
    assert until == now[0] + kept_metrics.KEPT_SECONDS
    assert monitor.kept_metrics(OPENMETRICS) is None
    assert monitor.metrics(OPENMETRICS) == (b"2", OPENMETRICS)
    now[0] = until
    assert monitor.kept_metrics("") is None
    assert monitor.metrics("") == (b"3", "")
