"""The API over journals: pages that stay put while more comes, filters, health, and how answers are sent."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from nissa_support import RunWriter
from starlette.applications import Starlette
from waiting import until

from esper.errors import TierUnavailable
from esper.messages import CompilationRecord, SeedState, Slot
from esper.nissa import health
from esper.nissa.api import models, monitor
from esper.nissa.api.application import create_app
from esper.nissa.api.endpoints import ENDPOINTS
from esper.nissa.api.monitor import Monitor
from esper.nissa.api.openapi import DESCRIBED
from esper.nissa.journal import JOURNAL_NAME
from esper.nissa.run_outline import RunOutline
from esper.nissa.runs import RunStore


def compilation(number: int, status: Any = "compiled") -> CompilationRecord:
    slot = Slot("features", 1, 1)
    return CompilationRecord(f"b{number}", f"b{number}", slot, "torchscript", status, 0.03, "")


COMPILATIONS = [compilation(number, "failed" if number % 3 == 0 else "compiled") for number in range(10)]


class Api:
    """The application, asked without a connection."""

    def __init__(self, app: Starlette) -> None:
        self._app = app

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as asking:
                return await asking.request(method, path, **more)

        return asyncio.run(ask())

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.request("GET", path, **more)


def client(root: Path, compilations: Sequence[CompilationRecord] = (), **settings: Any) -> Api:
    return Api(create_app(Monitor(RunStore(root), lambda: compilations, **settings)))


def new_run(root: Path, number: int, experiment: str = "resnet") -> RunWriter:
    run = RunWriter(root, f"20261128-1000{number:02}-{experiment}-{number:04}")
    run.started(experiment=experiment)
    return run


def turn(api: Api, path: str, **query: Any) -> list[dict[str, Any]]:
    """Every page, by the header that links to the next one."""
    pages = []
    answer = api.get(path, params=query)
    while True:
        assert answer.status_code == 200, answer.text
        pages.append(answer.json())
        if "next" not in answer.links:
            assert pages[-1]["next"] is None
            return pages
        assert pages[-1]["next"]
        answer = api.get(answer.links["next"]["url"])


# Pages


def test_pages_of_adaptations_stay_put_while_more_come(tmp_path: Path) -> None:
    runs = [new_run(tmp_path, number) for number in range(3)]
    for epoch in range(9):
        runs[epoch % 3].decision(epoch, kernel_id=f"kernel_{epoch}")
        time.sleep(0.001 * (epoch % 2))  # some at the same millisecond
    api = client(tmp_path)
    first = api.get("/api/v1/adaptations?limit=4").json()
    for epoch in range(9, 15):
        runs[0].decision(epoch)
    rest = turn(api, "/api/v1/adaptations", limit=4, cursor=first["next"])
    seen = [item["epoch"] for page in (first, *rest) for item in page["adaptations"]]
    assert sorted(seen) == list(range(9))
    times = [item["at"] for page in (first, *rest) for item in page["adaptations"]]
    assert times == sorted(times, reverse=True)
    assert first["total"] == 9
    assert turn(api, "/api/v1/adaptations", limit=15)[0]["next"] is None
    for run in runs:
        run.close()


def test_adaptations_by_run_layer_kind_outcome_and_time(tmp_path: Path) -> None:
    with new_run(tmp_path, 1) as a, new_run(tmp_path, 2) as b:
        a.decision(1)
        a.trial(2)
        a.decision(3, status="refused", kernel_id=None)
        time.sleep(0.01)
        b.decision(4, seed_idx=1)
        b.trial(5, seed_idx=1, verdict="culled")
        b.decision(6, kernel_id="kernel_b")
    api = client(tmp_path)

    def epochs(**query: Any) -> list[int]:
        answer = api.get("/api/v1/adaptations", params=query).json()
        assert answer["total"] == len(answer["adaptations"])
        return [item["epoch"] for item in answer["adaptations"]]

    assert epochs() == [6, 4, 3, 1]
    assert epochs(run="20261128-100001") == [3, 1]
    assert epochs(layer="stage1") == [6, 4, 3, 1]
    assert epochs(layer="head") == []
    assert epochs(type="add_seed") == [6, 4, 3, 1]
    assert epochs(type="modify_architecture") == []
    assert epochs(outcome="performed") == [6, 4, 1]
    assert epochs(outcome="refused") == [3]
    assert epochs(outcome="kept") == [1]
    assert epochs(outcome="culled") == [4]
    assert epochs(outcome="pending") == [6]
    at = api.get("/api/v1/adaptations?outcome=culled").json()["adaptations"][0]["at"]
    assert epochs(since=at) == [6, 4]
    assert epochs(until=at) == [3, 1]


def test_pages_of_runs_by_status_and_experiment(tmp_path: Path) -> None:
    ended = [new_run(tmp_path, number, "a" if number % 2 else "b") for number in range(7)]
    for run in ended:
        run.close()
    with new_run(tmp_path, 7, "a"):
        api = client(tmp_path)
        pages = turn(api, "/api/v1/runs", limit=3)
        ids = [run["run_id"] for page in pages for run in page["runs"]]
        assert [run_id[-4:] for run_id in ids] == [f"{number:04}" for number in range(7, -1, -1)]
        assert [page["total"] for page in pages] == [8] * 3
        assert "path" not in pages[0]["runs"][0]
        going = api.get("/api/v1/runs?status=running").json()
        assert [run["run_id"][-4:] for run in going["runs"]] == ["0007"]
        both = turn(api, "/api/v1/runs", status="stopped", experiment="b", limit=2)
        ids = [run["run_id"][-4:] for page in both for run in page["runs"]]
        assert ids == ["0006", "0004", "0002", "0000"]


def test_pages_of_compilations_and_how_many_failed(tmp_path: Path) -> None:
    log = list(COMPILATIONS)
    api = client(tmp_path, log)
    first = api.get("/api/v1/compilations?limit=4").json()
    assert first["counts"] == {"compiled": 6, "failed": 4}
    log.append(compilation(10))
    rest = turn(api, "/api/v1/compilations", limit=4, cursor=first["next"])
    ids = [record["blueprint_id"] for page in (first, *rest) for record in page["compilations"]]
    assert ids == [f"b{number}" for number in range(9, -1, -1)]
    failed = turn(api, "/api/v1/compilations", limit=3, status="failed")
    ids = [record["blueprint_id"] for page in failed for record in page["compilations"]]
    assert ids == ["b9", "b6", "b3", "b0"]


# One run


def test_a_run_whole(tmp_path: Path) -> None:
    with new_run(tmp_path, 1) as run:
        run.epoch(0, states=(SeedState.TRAINING, SeedState.DORMANT))
        run.epoch(1, loss=float("nan"))
        run.decision(1)
        run.fault(1)
        run.rollback(1)
        for step in (10, 20):
            run.write("checkpoint", epoch=1, step=step, path=f"/x/step-{step}", seconds=0.1, paused=0.01)
        (tmp_path / run.run_id / "checkpoints" / "step-20").mkdir(parents=True)
        run.write("cache", tiers={"redis": {"hits": 1, "misses": 2, "errors": 3, "state": "open"}})
        run.write("control", request="r", action="pause", outcome="done", reason="", epoch=1, step=20)
        api = client(tmp_path)
        answer = api.get(f"/api/v1/runs/{run.run_id}")
        found = models.Run.model_validate_json(answer.text)
    assert found.status == "paused"
    assert set(found.layers) == {"stage1", "head"}
    assert [checkpoint.name for checkpoint in found.checkpoints] == ["step-20"]
    assert found.adaptation_counts == {}  # what the rollback undid is no more
    assert [rollback.cause for rollback in found.rollbacks] == ["batch"]
    assert [control.request for control in found.controls] == ["r"]
    assert [alert.kind for alert in found.alerts] == ["fault", "rollback", "cache"]
    assert str(tmp_path) not in answer.text
    ended = models.Run.model_validate_json(api.get(f"/api/v1/runs/{run.run_id}").text)
    assert ended.status == "stopped"
    assert ended.alerts[-1].kind == "stopped"


# Health


def test_ready_tells_of_every_component(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise TierUnavailable("Redis does not answer")

    new_run(tmp_path, 1).close()
    good = client(tmp_path, components={"redis": lambda: "it answers"}).get("/health/ready")
    assert good.status_code == 200
    names = [check["name"] for check in good.json()["checks"]]
    assert names == ["runs folder", "journals", "kernel library", "redis", "disk", "newest run"]
    assert "stopped" in good.json()["checks"][-1]["detail"]
    bad = client(tmp_path, components={"redis": fail})
    assert bad.get("/health/ready").status_code == 503
    assert bad.get("/health/ready").json()["reasons"] == ["redis: Redis does not answer"]
    assert bad.get("/health").status_code == 200
    assert bad.get("/health/live").json() == {"status": "ok"}
    monkeypatch.setattr(health, "LEAST_FREE_BYTES", 2**60)
    assert client(tmp_path / "none" / "yet").get("/health/ready").json()["reasons"][0].startswith("disk: ")


def test_while_runs_are_read_for_the_first_time_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(run: RunOutline, **more: bool) -> None:
        if not run.was_read:
            time.sleep(0.1)
        read(run, **more)

    for number in range(5):
        new_run(tmp_path, number).close()
    read = RunOutline.refresh
    monkeypatch.setattr(RunOutline, "refresh", slow)
    monkeypatch.setattr(monitor, "FIRST_SECONDS", 0.15)
    api = client(tmp_path)
    for path in ("/api/v1/runs", "/api/v1/adaptations"):
        busy = api.get(path)
        assert busy.status_code == 503
        assert busy.headers["retry-after"] == "2"
        said = re.fullmatch(r"the runs are read for the first time: (\d) of 5", busy.json()["detail"])
        assert said
        assert 1 <= int(said[1]) <= 4
        assert api.get("/health").status_code == 200
    until(lambda: api.get("/api/v1/adaptations").status_code == 200)
    assert api.get("/api/v1/adaptations").json()["total"] == 0
    assert api.get("/api/v1/runs").json()["total"] == 5


# How answers are sent


def test_what_a_client_has_is_not_sent_again_and_what_is_large_is_compressed(tmp_path: Path) -> None:
    for number in range(20):
        new_run(tmp_path, number).close()
    api = client(tmp_path)
    for path in ("/api/v1/runs", "/api/v1/adaptations", "/api/v1/compilations", "/api/v1/openapi.json"):
        first = api.get(path)
        assert first.headers["cache-control"] == "private, no-cache"
        again = api.get(path, headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert api.get(path, headers={"If-None-Match": 'W/"other"'}).status_code == 200
    assert api.get("/api/v1/runs").headers["content-encoding"] == "gzip"
    plain = api.get("/api/v1/runs", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    before = api.get("/api/v1/runs").headers["etag"]
    new_run(tmp_path, 20).close()
    assert api.get("/api/v1/runs", headers={"If-None-Match": before}).status_code == 200
    assert api.request("HEAD", "/api/v1/runs").content == b""


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: f"{endpoint.method} {endpoint.path}")
def test_every_endpoint_of_the_table_is_there_is_described_and_takes_no_other_method(
    tmp_path: Path, endpoint: Any
) -> None:
    api = client(tmp_path)
    assert endpoint.name in DESCRIBED
    path = endpoint.path.format(run_id="x", kernel_id="x", file="x")
    allowed = {"GET", "HEAD"} if endpoint.method == "GET" else {"POST"}
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        if method not in allowed:
            answer = api.request(method, path)
            assert answer.status_code == 405
            assert set(answer.headers["allow"].split(", ")) == allowed
            assert models.Problem.model_validate_json(answer.text).status == 405


def test_nothing_is_served_that_is_not_in_the_table(tmp_path: Path) -> None:
    routes = create_app(Monitor(RunStore(tmp_path), list)).routes
    served = {(route.path, route.name) for route in routes}  # type: ignore[attr-defined]
    assert served == {(endpoint.path, endpoint.name) for endpoint in ENDPOINTS}
    assert set(DESCRIBED) == {endpoint.name for endpoint in ENDPOINTS}


def test_the_page_on_the_api_has_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    rows = [f"| {each.method} | `{each.path}` | {each.role} | {each.summary} |" for each in ENDPOINTS]
    assert "\n".join(rows) in page


@pytest.mark.parametrize("path", ["/api/v1/kernels", "/api/v1/kernels/x"])
def test_a_server_without_a_library_says_so(tmp_path: Path, path: str) -> None:
    answer = client(tmp_path).get(path)
    assert answer.status_code == 503
    assert answer.json()["detail"] == "this server has no kernel library"


def test_what_a_name_in_a_path_can_be_is_bounded(tmp_path: Path) -> None:
    new_run(tmp_path, 1).close()
    api = client(tmp_path)
    for name in ("%00", "x" * 300, "..%2F..%2Fetc", "%E2%80%AE"):
        assert api.get(f"/api/v1/runs/{name}").status_code == 404
        assert api.request("POST", f"/api/v1/runs/{name}/pause").status_code == 404
    os.truncate(next(tmp_path.glob(f"*/{JOURNAL_NAME}")), 0)
    assert api.get("/api/v1/runs").status_code == 200
