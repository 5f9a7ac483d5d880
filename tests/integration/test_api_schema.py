"""The API keeps what its description promises. The long form: python -m drills.api_schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from drills.api_schema import judge, served

from esper.nissa.api_openapi import openapi


def test_no_answer_is_other_than_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPER_HOME", str(tmp_path))
    with served(tmp_path) as there:
        found = judge(there, there.alive, tmp_path, examples=1, seed=0, phases="coverage")
    assert found["code"] == 0, found["said"]
    statuses = found["statuses"]
    assert "500" not in statuses
    # What cannot be refused is done: of each kind of answer there was one at least.
    assert {"200", "202", "400", "404", "405", "409", "422"} <= set(statuses), statuses
    assert sum(statuses.values()) > 200


def test_the_description_in_the_docs_is_that_of_the_code() -> None:
    stored = json.loads((Path(__file__).parents[2] / "docs" / "openapi.json").read_text())
    assert stored == openapi(), "make it anew: python -m esper.nissa.api_openapi > docs/openapi.json"
