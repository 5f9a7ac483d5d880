"""``esper kernels`` over a real library, and the shapes that ``esper compile`` reads."""

import json
import sqlite3
from pathlib import Path

import pytest
from urza_support import artefact, never_load, report

from esper.errors import ConfigError
from esper.messages import Slot
from esper.security import Envelope, FileKeys, StoredKeys
from esper.urza import open_library
from esper.urza.tiers import digest_of
from esper_cli import app
from esper_cli.compile import parse_shape

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPER_HOME", str(tmp_path))
    monkeypatch.delenv("COLUMNS", raising=False)
    path = tmp_path / "kernels.db"
    envelope = Envelope(StoredKeys(FileKeys(str(tmp_path / "keys.json"))))  # where the command looks for them
    with open_library(f"sqlite:///{path}", never_load, envelope=envelope) as library:
        library.put(artefact("aa11", tags=("linear", "mlp"), performance_score=0.9, input_shape=(128,)))
        library.put(artefact("aa22", tags=("linear",), output_shape=(16,), parameters=12345))
        library.put(artefact("bb33", tags=("conv",), layout="channels", stride=2))
        library.record_trial(report(kernel_id="kernel_aa11"), "run-1", "digits")
    return path


def esper(capsys: Output, *args: str) -> tuple[int, str, str]:
    code = app.run(["kernels", *args])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], ["aa11", "aa22", "bb33"]),
        (["--tag", "linear"], ["aa11", "aa22"]),
        (["--tag", "linear", "--tag", "mlp"], ["aa11"]),
        (["--input", "128"], ["aa11"]),
        (["--output", "16"], ["aa22"]),
        (["--layout", "channels"], ["bb33"]),
        (["--name", "AA"], ["aa11", "aa22"]),
        (["--sort", "name", "--limit", "2"], ["aa11", "aa22"]),
        (["--status", "retired"], []),
    ],
)
def test_kernels_are_listed_by_what_is_asked_for(
    args: list[str], expected: list[str], capsys: Output
) -> None:
    code, out, _ = esper(capsys, "ls", "--json", *args)
    assert code == 0
    assert sorted(kernel["name"] for kernel in json.loads(out)) == expected


def test_the_table_has_whole_ids_in_a_pipe_and_short_ones_in_80_columns(
    capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out, _ = esper(capsys, "ls")
    assert "kernel_aa22" in out
    assert "12.3k" in out
    assert "channels 8->8/2" in out
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = esper(capsys, "ls")
    assert "kernel_" not in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_an_empty_library_says_how_to_fill_it(capsys: Output, tmp_path: Path) -> None:
    _, out, _ = esper(capsys, "ls", f"urza.url=sqlite:///{tmp_path}/other.db")
    assert "esper compile" in out
    assert esper(capsys, "ls", "--tag", "none")[1] == "No kernel matches.\n"


@pytest.mark.parametrize("name", ["kernel_aa11", "kernel_aa1", "aa1"])
def test_a_kernel_is_shown_by_any_unique_start_of_its_id(name: str, capsys: Output) -> None:
    code, out, _ = esper(capsys, "show", name)
    assert code == 0
    assert "kernel_aa11" in out
    assert "run-1" in out
    _, out, _ = esper(capsys, "show", name, "--json")
    shown = json.loads(out)
    assert shown["kernel"]["input_shape"] == [128]
    assert shown["trials"][0]["report"]["verdict"] == "kept"


def test_a_start_that_several_ids_share_is_refused(capsys: Output) -> None:
    code, _, err = esper(capsys, "show", "aa")
    assert code == 6
    assert "'aa' is the start of 2 kernels' ids" in err
    assert "kernel_aa11, kernel_aa22" in err


def test_removing_asks_first_and_needs_a_terminal_or_yes(capsys: Output) -> None:
    code, _, err = esper(capsys, "rm", "aa11")
    assert code == 2
    assert "Add --yes" in err
    code, out, _ = esper(capsys, "rm", "aa11", "bb33", "--yes")
    assert code == 0
    assert out.count("removed kernel_") == 2
    assert [kernel["name"] for kernel in json.loads(esper(capsys, "ls", "--json")[1])] == ["aa22"]


def test_nothing_is_removed_when_one_of_the_kernels_is_not_there(capsys: Output) -> None:
    assert esper(capsys, "rm", "--yes", "aa11", "nope")[0] == 6
    assert len(json.loads(esper(capsys, "ls", "--json")[1])) == 3


def test_a_damaged_kernel_is_found_and_named(capsys: Output, database: Path) -> None:
    assert esper(capsys, "verify", "--all") == (0, "3 of 3 kernels are intact\n", "")
    with sqlite3.connect(database) as connection:
        digest = digest_of(b"program of aa22")
        connection.execute("update blobs set data = x'00' where digest = ?", (digest,))
    connection.close()
    code, out, _ = esper(capsys, "verify", "--all")
    assert code == 6
    assert "kernel 'kernel_aa22' is corrupt" in out
    assert "compile it again after: esper kernels rm kernel_aa22" in out
    assert "2 of 3 kernels are intact" in out
    assert esper(capsys, "verify", "aa11")[0] == 0


@pytest.mark.parametrize(
    ("text", "slot"),
    [
        ("features:16:32", Slot("features", 16, 32)),
        ("tokens:8:8:1", Slot("tokens", 8, 8)),
        ("channels:16:32:2", Slot("channels", 16, 32, 2)),
    ],
)
def test_a_shape_is_read(text: str, slot: Slot) -> None:
    assert parse_shape(text) == slot


@pytest.mark.parametrize(
    "text",
    [
        "features",
        "rows:1:2",
        "features:0:2",
        "features:-1:2",
        "features:1:2:2",
        "channels:1:2:0",
        "a:1:2:3:4",
    ],
)
def test_a_shape_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--shape"):
        parse_shape(text)
