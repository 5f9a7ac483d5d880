"""``esper reports``: lists in pages, filters, one report whole, and what an empty library says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from urza_support import artefact, never_load, report

from esper.security import Envelope, FileKeys, StoredKeys
from esper.urza import open_library
from esper_cli import app

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPER_HOME", str(tmp_path))
    monkeypatch.delenv("COLUMNS", raising=False)
    return tmp_path


def fill(home: Path) -> None:
    envelope = Envelope(StoredKeys(FileKeys(str(home / "keys.json"))))
    with open_library(f"sqlite:///{home}/kernels.db", never_load, envelope=envelope) as library:
        library.put(artefact("a"))
        measured = {"depth": 1, "layers": 3, "gradient_norm": 0.25, "health": 0.9, "seconds": 2.5}
        library.record_trial(report(started_epoch=0, **measured), "run-1")
        library.record_trial(
            report(started_epoch=1, verdict="failed", gain=float("nan"), layer_kind="linear"), "run-2"
        )


def esper(capsys: Output, *args: str) -> tuple[int, str, str]:
    code = app.run(["reports", *args])
    out, err = capsys.readouterr()
    return code, out, err


def test_an_empty_library_says_what_to_do(capsys: Output) -> None:
    code, out, _ = esper(capsys, "ls")
    assert (code, out.count("\n")) == (0, 1)
    assert "esper train +experiment=resnet tamiyo=eager" in out


def test_lists_narrow_and_go_on_where_they_ended(home: Path, capsys: Output) -> None:
    fill(home)
    _, out, err = esper(capsys, "ls", "--limit", "1", "--json")
    (newest,) = json.loads(out)
    assert (newest["run_id"], newest["verdict"], newest["gain"], newest["name"]) == (
        "run-2",
        "failed",
        None,
        "a",
    )
    cursor = err.split("--after ")[1].strip()
    _, out, err = esper(capsys, "ls", "--limit", "1", "--after", cursor, "--json")
    assert ([each["run_id"] for each in json.loads(out)], err) == (["run-1"], "")
    for narrowed in (("--kind", "linear"), ("--verdict", "failed"), ("--run", "run-2")):
        assert [each["run_id"] for each in json.loads(esper(capsys, "ls", *narrowed, "--json")[1])] == [
            "run-2"
        ]
    assert esper(capsys, "ls", "--blueprint", "other")[1] == "No report matches.\n"
    assert esper(capsys, "ls", "--verdict", "good")[0] == 2


def test_one_report_says_where_what_and_at_what_cost(home: Path, capsys: Output) -> None:
    fill(home)
    code, out, _ = esper(capsys, "show", "1")
    assert code == 0
    for words in (
        "layer 2 of 3",
        "gradient norm 0.25, health 0.9",
        "2.5 s on trial",
        "2.00 % expected, 5.96 %",
    ):
        assert words in out
    code, _, err = esper(capsys, "show", "9")
    assert code != 0
    assert "there is no report 9. List them with: esper reports ls" in err
