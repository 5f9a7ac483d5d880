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
from esper_cli import app, kernels
from esper_cli.compile import parse_shape
from esper_cli.kernels import complete_ids, library

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPER_HOME", str(tmp_path))
    monkeypatch.delenv("COLUMNS", raising=False)
    path = tmp_path / "kernels.db"
    envelope = Envelope(StoredKeys(FileKeys(str(tmp_path / "keys.json"))))  # where the command looks for them
    with open_library(f"sqlite:///{path}", never_load, envelope=envelope) as library:
        first = {"blueprint_id": "blueprint_x", "created_at": "2026-01-01T00:00:00+00:00"}
        second = {"output_shape": (16,), "parameters": 12345, "device": "cuda", "author": "Ada"}
        third = {"layout": "channels", "stride": 2, "dtype": "bfloat16"}
        library.put(
            artefact("aa11", tags=("linear", "mlp"), performance_score=0.9, input_shape=(128,), **first)
        )
        library.put(artefact("aa22", tags=("linear",), **second))
        library.put(artefact("bb33", tags=("conv",), **third))
        library.record_trial(report(kernel_id="kernel_aa11"), "run-1")
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
        (["--any-tag", "mlp", "--any-tag", "conv"], ["aa11", "bb33"]),
        (["--no-tag", "mlp", "--no-tag", "conv"], ["aa22"]),
        (["--dtype", "bfloat16"], ["bb33"]),
        (["--device", "cuda"], ["aa22"]),
        (["--author", "Ada"], ["aa22"]),
        (["--blueprint", "blueprint_x"], ["aa11"]),
        (["--since", "2026-01-02"], ["aa22", "bb33"]),
        (["--before", "2026-01-02"], ["aa11"]),
    ],
)
def test_kernels_are_listed_by_what_is_asked_for(
    args: list[str], expected: list[str], capsys: Output
) -> None:
    code, out, _ = esper(capsys, "ls", "--json", *args)
    assert code == 0
    assert sorted(kernel["name"] for kernel in json.loads(out)) == expected


def test_a_list_goes_on_where_it_ended(capsys: Output) -> None:
    code, out, err = esper(capsys, "ls", "--sort", "name", "--limit", "2", "--json")
    assert (code, [kernel["name"] for kernel in json.loads(out)]) == (0, ["aa11", "aa22"])
    (line,) = err.splitlines()
    after = line.split("--after ")[1].split(",")[0]
    code, out, err = esper(capsys, "ls", "--sort", "name", "--limit", "2", "--json", "--after", after)
    assert (code, [kernel["name"] for kernel in json.loads(out)], err) == (0, ["bb33"], "")
    assert esper(capsys, "ls", "--limit", "3")[2] == ""
    assert esper(capsys, "ls", "--limit", "1", "--all")[1].count("kernel_") == 3


def test_a_hundred_are_listed_where_nothing_is_said(database: Path, capsys: Output) -> None:
    envelope = Envelope(StoredKeys(FileKeys(str(database.parent / "keys.json"))))
    with open_library(f"sqlite:///{database}", never_load, envelope=envelope) as library:
        for number in range(98):
            library.put(artefact(f"cc{number}"))
    _, out, err = esper(capsys, "ls", "--json")
    assert len(json.loads(out)) == 100
    assert "go on with --after " in err
    _, out, err = esper(capsys, "ls", "--json", "--all")
    assert (len(json.loads(out)), err) == (101, "")


def test_a_long_list_is_printed_part_by_part_as_if_it_were_one(
    capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lists() -> list[list[str]]:
        printed = [esper(capsys, "ls", "--sort", "name", *more)[1] for more in ((), ("--json",))]
        return [[line.rstrip() for line in each.splitlines()] for each in printed]

    whole = lists()
    monkeypatch.setattr(kernels, "PAGE", 1)
    assert lists() == whole
    assert "There are more" in esper(capsys, "ls", "--limit", "2")[2]


def test_names_and_tags_are_shown_as_they_are(capsys: Output) -> None:
    odd = ("[/b]", ":heart:", "[red]x[/red]")
    with library() as opened:
        opened.set_tags("kernel_aa11", [*odd, "\x1b[2J\x9b1A"])
    for command in (("ls", "--name", "aa11"), ("show", "aa11")):
        code, out, err = esper(capsys, *command)
        assert (code, err) == (0, "")
        assert " ".join((*odd, "?[2J?1A")) in out
    assert esper(capsys, "untag", "aa11", "--tag", "x")[1].endswith(" ?[2J?1A\n")


def test_a_wide_list_has_what_trials_said(capsys: Output) -> None:
    _, out, _ = esper(capsys, "ls")
    row = next(line for line in out.splitlines() if "kernel_aa11" in line)
    assert "0.95 ± 0.13" in row  # (0.9 + 1 kept) / 2, of a weight of 2
    assert "1/1" in row
    shown = json.loads(esper(capsys, "ls", "--json", "--name", "aa22")[1])
    assert shown[0]["standing"]["trials"] == 0


def test_ids_complete_with_and_without_their_usual_start(database: Path) -> None:
    assert complete_ids("aa") == ["aa11", "aa22"]
    assert complete_ids("kernel_b") == ["kernel_bb33"]
    assert complete_ids("") == ["kernel_aa11", "kernel_aa22", "kernel_bb33"]
    assert complete_ids("zz") == complete_ids("urza=") == []
    database.write_bytes(b"damaged")
    assert complete_ids("") == []


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


def test_of_many_trials_the_latest_are_shown(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    with library() as opened:
        for number in (2, 3):
            opened.record_trial(report(kernel_id="kernel_aa11"), f"run-{number}")
    monkeypatch.setattr(kernels, "TRIALS", 2)
    _, out, _ = esper(capsys, "show", "aa11")
    assert "\n3 trials, the latest 2 of them\n" in out
    assert [line.split()[0] for line in out.splitlines() if line.startswith("run-")] == ["run-2", "run-3"]
    assert len(json.loads(esper(capsys, "show", "aa11", "--json")[1])["trials"]) == 3


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
