"""The API over a run that trains, one that ended, and a library. Long form: python -m drills.api_schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from drills.api_schema import Served, judge, served
from waiting import LONG

from esper.nissa.api import models
from esper.nissa.api.openapi import openapi


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("api")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ESPER_HOME", str(folder))
        with served(folder) as found:
            yield found


@pytest.fixture
def api(there: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=there.url, timeout=LONG) as client:
        yield client


def test_no_answer_is_other_than_described(there: Served, tmp_path: Path) -> None:
    found = judge(there, there.alive, tmp_path, examples=1, seed=0, phases="coverage")
    assert found["code"] == 0, found["said"]
    statuses = found["statuses"]
    assert "500" not in statuses
    # What cannot be refused is done: of each kind of answer there was one at least.
    assert {"200", "202", "400", "404", "405", "409", "422"} <= set(statuses), statuses
    assert sum(statuses.values()) > 200


def test_the_description_in_the_docs_is_that_of_the_code() -> None:
    stored = json.loads((Path(__file__).parents[2] / "docs" / "openapi.json").read_text())
    assert stored == openapi(), "make it anew: python -m esper.nissa.api.openapi > docs/openapi.json"


def test_answers_are_the_models_that_describe_them(there: Served, api: httpx.Client) -> None:
    run = models.Run.model_validate_json(api.get(f"/api/v1/runs/{there.ended}").text)
    assert (run.status, run.epochs) == ("finished", 8)
    assert run.result is not None
    assert run.latest is not None
    assert run.checkpoints
    assert sum(run.adaptation_counts.values()) > 0
    page = models.Kernels.model_validate_json(api.get("/api/v1/kernels?sort=name&limit=1").text)
    assert page.next is not None
    more = api.get("/api/v1/kernels", params={"sort": "name", "limit": 1, "cursor": page.next})
    assert models.Kernels.model_validate_json(more.text).kernels[0] != page.kernels[0]
    assert api.get("/api/v1/kernels", params={"sort": "rank", "cursor": page.next}).status_code == 400
    kernel = models.Kernel.model_validate_json(api.get(f"/api/v1/kernels/{there.kernel}").text)
    assert kernel.blueprint["name"] == kernel.kernel.name
    assert kernel.results, "the run tried it"
    status = models.Status.model_validate_json(api.get("/api/v1/status").text)
    assert status.run_counts["finished"] == 1
    assert "memory" in status.library
    models.Adaptations.model_validate_json(api.get("/api/v1/adaptations").text)
    models.Compilations.model_validate_json(api.get("/api/v1/compilations").text)


def test_a_run_does_what_it_is_asked_and_says_so(there: Served, api: httpx.Client) -> None:
    path = f"/api/v1/runs/{there.alive}"
    api.post(f"{path}/pause?wait=10")
    again = api.post(f"{path}/pause?wait=10")
    assert again.status_code == 409
    assert again.json()["detail"] == "the run refused: the run is paused already"
    assert api.get(path).json()["status"] == "paused"
    resumed = models.Requested.model_validate_json(api.post(f"{path}/resume?wait=10").text)
    assert resumed.outcome is not None
    assert resumed.outcome.done
    back = api.post(f"{path}/rollback?wait=10")
    assert back.status_code == 200, back.text
    assert models.Requested.model_validate_json(back.text).outcome is not None
    none = api.post(f"{path}/rollback?wait=10", json={"step": 0})
    assert none.status_code == 409
    assert "there is no such checkpoint; there are: step" in none.json()["detail"]
    asked = api.post(f"{path}/pause")
    assert asked.status_code == 202
    assert asked.headers["location"] == asked.json()["look"] == path
    for body, status in {
        b"{": 400,
        b"[]": 422,
        b'{"epoch": -1}': 422,
        b'{"epoch": 1, "step": 1}': 422,
    }.items():
        headers = {"content-type": "application/json"}
        assert api.post(f"{path}/rollback", content=body, headers=headers).status_code == status
    assert api.post(f"{path}/rollback", content=b"{}").status_code == 415
    assert api.post(f"{path}/rollback", json={"step": [0] * 50_000}).status_code == 413


def test_a_run_that_has_ended_can_be_asked_nothing(there: Served, api: httpx.Client) -> None:
    for action in ("pause", "resume", "rollback"):
        answer = api.post(f"/api/v1/runs/{there.ended}/{action}?wait=5")
        assert answer.status_code == 409
        assert answer.json()["hint"] == f"to train on: esper train --resume {there.ended}"
    assert api.post("/api/v1/runs/none/pause").status_code == 404


def test_tags_are_given_and_taken_by_many_at_once(there: Served, api: httpx.Client) -> None:
    path = f"/api/v1/kernels/{there.kernel}"
    before = api.get(path).json()["kernel"]["tags"]
    new = [f"new{number}" for number in range(20)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda tag: api.post(f"{path}/tags", json={"add": [tag]}), new))
    assert [answer.status_code for answer in answers] == [200] * 20
    assert sorted(api.get(path).json()["kernel"]["tags"]) == sorted([*before, *new])
    assert api.post(f"{path}/tags", json={"remove": new, "add": []}).json()["tags"] == before
    assert api.post(f"{path}/tags", json={"add": ["no space"]}).status_code == 422
    assert api.post("/api/v1/kernels/none/tags", json={"add": ["a"]}).status_code == 404
    tagged = api.get("/api/v1/kernels", params={"tag": before[:1], "no_tag": "new1"}).json()
    assert there.kernel in [item["kernel"]["kernel_id"] for item in tagged["kernels"]]
