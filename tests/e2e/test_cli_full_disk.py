"""A disk that takes no more while a run goes on: nothing is lost, the message says what and where."""

from __future__ import annotations

import json
import resource
import subprocess
from functools import partial
from pathlib import Path

import forked
import pytest

WIDE = ("train", "+experiment=smoke", "tamiyo=never", "urza=memory", "model.hidden=[256,256]", "--json")
LIMIT = 200_000
"""Bytes that a file may have: fewer than those of the tensors, more than those of the journal."""


def esper(*args: str, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    limited = None if limit is None else partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    return forked.esper(*args, before=limited)


def test_the_checkpoint_before_stays_and_the_run_goes_on_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    first = esper(*WIDE, "tolaria.epochs=1")
    assert first.returncode == 0, first.stderr
    full = esper("train", "--resume", "latest", "tolaria.epochs=2", limit=LIMIT)
    assert full.returncode == 10
    (run,) = (tmp_path / "runs").glob("2*")
    said = full.stderr.splitlines()[-1]
    assert said.startswith(f"esper: error: cannot write the checkpoint runs/{run.name}/checkpoints/step-")
    assert "File too large" in said
    assert "Traceback" not in full.stderr
    left = json.loads(esper("checkpoints", "verify", "--all", "--json").stdout)
    assert [(row["name"], row["error"]) for row in left] == [
        ("step-000000019", None),
        ("step-000000000", None),
    ]
    again = esper("train", "--resume", "auto", "tolaria.epochs=2", "--json")
    assert json.loads(again.stdout)["epochs"] == 2
