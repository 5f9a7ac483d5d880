"""Rehearsed faults: what is survived, and that a part which does not do its work is found out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from esper.assembly.drill import FAULTS
from esper.tolaria.lifecycle import SeedLifecycle
from esper_cli.app import run

SMOKE = ["drill", "+experiment=smoke", "--json"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rehearsed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = run([*SMOKE, *arguments])
    return code, {each.pop("fault"): each for each in json.loads(capsys.readouterr().out)}


def test_every_fault_is_survived_and_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = rehearsed(capsys, "urza.redis=redis://127.0.0.1:1")
    assert {fault: each["survived"] for fault, each in found.items()} == dict.fromkeys(FAULTS, True)
    assert code == 0
    for fault in ("process-killed", "disk-full", "poisoned-batch"):
        assert found[fault]["seconds"] > 0
    assert {path.name for path in tmp_path.iterdir()} <= {".esper"}  # the keys


def test_a_configuration_that_does_not_go_back_is_found_out(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = rehearsed(capsys, "tolaria.recovery.rollbacks=0", "--only", "poisoned-batch")
    assert code == 1
    assert found["poisoned-batch"]["survived"] is False
    assert "0 rollbacks did not help" in found["poisoned-batch"]["detail"]


def test_a_resume_that_forgets_something_is_found_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.optim.Optimizer, "load_state_dict", lambda *_: None)
    code, found = rehearsed(capsys, "--only", "process-killed")
    assert code == 1
    assert "other weights" in found["process-killed"]["detail"]


def test_kernels_that_nobody_takes_out_are_found_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SeedLifecycle, "take_out", lambda *_: None)
    code, found = rehearsed(capsys, "--only", "kernel-raises")
    assert (code, found["kernel-raises"]["survived"]) == (1, False)


def test_what_cannot_come_up_is_said_and_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = rehearsed(capsys, "--only", "redis-gone")
    assert (code, found["redis-gone"]["survived"]) == (0, None)
    assert found["redis-gone"]["detail"] == "not configured: urza.redis is null"


def test_a_fault_that_there_is_none_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*SMOKE, "--only", "flood"]) == 2
    assert "no fault is called flood" in capsys.readouterr().err
