"""``esper audit`` over a real library and a real run's journal."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from urza_support import artefact

from esper.assembly.auditing import build_run_trail, note_run_ended, notes_beginning
from esper.assembly.storage import build_library
from esper.nissa.journal import COPY_NAME, JOURNAL_NAME, Journal
from esper.security.audit_lines import HEAD_NAME
from esper_cli import app
from esper_cli.config import compose

RUN = "20261128-120000-smoke-0001"
Esper = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("COLUMNS", raising=False)
    return tmp_path


@pytest.fixture
def esper(capsys: pytest.CaptureFixture[str]) -> Esper:
    def run(*args: str) -> tuple[int, str, str]:
        code = app.run(["audit", *args])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def run(home: Path) -> Path:
    """A library of two kernels, and the folder of a run that has ended."""
    cfg = compose([])
    folder = home / "runs" / RUN
    folder.mkdir(parents=True)
    with build_library(cfg) as library:
        library.put(artefact("a"))
        library.put(artefact("b"))
        trail = build_run_trail(cfg)
        with Journal(folder / JOURNAL_NAME, trail=trail) as journal:
            for epoch in range(4):
                journal.write("decision", epoch=epoch)
        note_run_ended(library, RUN, trail)
    return folder


def test_entries_are_listed_the_newest_first_in_pages(esper: Esper, run: Path) -> None:
    code, out, _ = esper("ls", "--json")
    entries = json.loads(out)
    assert code == 0
    assert [entry["action"] for entry in entries] == [
        "run.ended",
        "kernel.stored",
        "kernel.stored",
        "key.signs",
    ]
    assert all(entry["who"].startswith("user-") for entry in entries)
    assert [entry["subject"] for entry in json.loads(esper("ls", "--json", "--action", "kernel")[1])] == [
        "kernel_b",
        "kernel_a",
    ]
    _, out, err = esper("ls", "--limit", "1")
    assert "run.ended" in out
    assert "--before 4" in err
    assert json.loads(esper("ls", "--json", "--before", "4", "--limit", "1")[1])[0]["subject"] == "kernel_b"
    assert json.loads(esper("ls", "--json", "--since", "2100-01-01")[1]) == []
    assert len(json.loads(esper("ls", "--json", "--run", "latest")[1])) == 4
    assert esper("ls", "--since", "yesterday")[0] == 2


def test_names_stand_there_only_where_the_configuration_says_so(
    esper: Esper, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "alicewho")
    for names, start in ((False, "user-"), (True, "user alicewho")):
        with build_library(compose([f"audit.names={names}"])) as library:
            library.set_tags("kernel_a", [str(names)])
        assert json.loads(esper("ls", "--json", "--limit", "1")[1])[0]["who"].startswith(start)
    with closing(sqlite3.connect("home/kernels.db")) as database:
        said = [row[0] for row in database.execute("SELECT who FROM audit WHERE detail NOT LIKE '%True%'")]
    assert "alicewho" not in "".join(said)


def test_a_whole_trail_is_told_to_be(esper: Esper, run: Path) -> None:
    code, out, _ = esper("verify")
    assert code == 0
    assert [line.rpartition(", ")[2] for line in out.splitlines()] == ["whole", "whole"]
    assert [verdict["entries"] for verdict in json.loads(esper("verify", "--json")[1])] == [4, 4]


def test_an_entry_that_was_changed_is_named_and_the_end_is_not_0(esper: Esper, run: Path) -> None:
    with closing(sqlite3.connect("home/kernels.db")) as database:
        database.execute("UPDATE audit SET subject = 'kernel_c' WHERE sequence = 2")
        database.commit()
    code, out, _ = esper("verify")
    assert code == 1
    assert "NOT whole" in out
    assert "entry 2 is not what was written there" in out
    assert json.loads(esper("verify", "--json")[1])[0]["findings"][0]["sequence"] == 2


def test_the_end_of_a_run_cut_with_its_head_shows_in_the_library(esper: Esper, run: Path) -> None:
    cfg = compose([])
    lines = (run / JOURNAL_NAME).read_text().splitlines(keepends=True)
    (run / JOURNAL_NAME).unlink()
    (run / "audit.head").unlink()
    trail = build_run_trail(cfg)
    with Journal(run / JOURNAL_NAME, trail=trail) as journal:  # by a holder of the key, as the worst case
        journal.write("decision", epoch=0)
    assert "entries 2 to 4 are missing at the end: entry 4 of the library" in esper("verify")[1]
    (run / JOURNAL_NAME).write_text("".join(lines[:2]))
    code, out, _ = esper("verify", "--run", RUN)
    assert code == 1
    assert "missing" in out


def begun(folder: Path) -> None:
    with build_library(compose([])) as library:
        tell = notes_beginning(library, folder)
        tell("epoch", {})
        tell("run_started", {})


@pytest.mark.parametrize("emptied", [False, True])
def test_a_run_that_is_gone_whole_is_missed_until_it_is_removed_by_word(
    esper: Esper, run: Path, emptied: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    begun(run.relative_to(run.parent.parent))
    begun(Path("elsewhere", RUN.replace("0001", "0002")))  # whose folder is another
    assert esper("verify")[0] == 0
    if emptied:
        (run / JOURNAL_NAME).write_bytes(b"")
        (run / HEAD_NAME).unlink()
        with closing(sqlite3.connect("home/kernels.db")) as database, database:
            database.execute("DELETE FROM audit WHERE action = 'run.ended'")
    else:
        shutil.rmtree(run)
    code, out, _ = esper("verify")
    assert code == 1
    assert f"{RUN}: 0 entries" in out
    assert "it is gone, and began here, as entry 5 of the library says" in out
    assert ("entry 4 is missing" in out) == emptied
    assert app.run(["runs", "rm", RUN]) == 2, "it asks, and nobody is there"
    assert app.run(["runs", "rm", RUN, "--yes"]) == 0
    assert ("was gone already" in capsys.readouterr().out) != emptied
    assert esper("verify")[0] == emptied
    assert not run.exists()
    assert app.run(["runs", "rm", "20261128-120000-smoke-0009", "--yes"]) == 7


def test_a_run_is_removed_with_an_entry_unless_it_goes_on(esper: Esper, run: Path) -> None:
    begun(run)
    with Journal(run / JOURNAL_NAME):
        assert app.run(["runs", "rm", "latest", "--yes"]) == 7
    assert run.exists()
    assert app.run(["runs", "rm", "latest", "--yes"]) == 0
    assert not run.exists()
    assert esper("verify")[0] == 0
    removed = json.loads(esper("ls", "--json", "--limit", "1")[1])[0]
    assert (removed["action"], removed["subject"]) == ("run.removed", RUN)


def test_a_run_is_checked_by_no_entry_of_the_library_that_somebody_changed(esper: Esper, run: Path) -> None:
    with closing(sqlite3.connect("home/kernels.db")) as database:
        database.execute("UPDATE audit SET detail = 'none' WHERE action = 'run.ended'")
        database.commit()
    assert esper("verify", "--run", RUN)[0] == 0
    code, out, _ = esper("verify")
    assert (code, "entry 4 is not what was written there" in out) == (1, True)


def test_a_copy_of_another_hosts_run_is_told_and_not_verified(esper: Esper, run: Path) -> None:
    (run / COPY_NAME).touch()
    code, out, err = esper("verify")
    assert (code, RUN in out) == (0, False)
    assert f"{RUN}: a copy of a run of another host" in err


def test_an_export_is_verified_where_the_key_is(esper: Esper, run: Path, home: Path) -> None:
    for args in ((), ("--run", "latest")):
        exported = esper("export", *args)[1]
        (home / "trail.jsonl").write_text(exported)
        code, out, _ = esper("verify", "--file", "trail.jsonl")
        assert (code, "4 entries" in out) == (0, True)
        lines = exported.splitlines(keepends=True)
        (home / "trail.jsonl").write_text("".join(lines[:-1]))
        code, out, _ = esper("verify", "--file", "trail.jsonl")
        assert (code, "entry 4 is missing at the end" in out) == (1, True)
    wrong = {**json.loads(lines[1]), "sequence": "1"}, {**json.loads(lines[1]), "mac": None}
    for damaged in ("{}\n", *(lines[0] + json.dumps(line) for line in wrong)):
        (home / "trail.jsonl").write_text(damaged)
        code, _, err = esper("verify", "--file", "trail.jsonl")
        assert (code, "no exported audit trail" in err) == (2, True)


def test_what_somebody_wrote_into_the_trail_moves_no_terminal(esper: Esper, run: Path) -> None:
    with closing(sqlite3.connect("home/kernels.db")) as database:
        database.execute("UPDATE audit SET subject = 'a' || char(27) || '[2J' WHERE sequence = 2")
        database.commit()
    out = esper("ls", "--subject", "a")[1]
    assert "a\\x1b[2J" in out
    assert "\x1b" not in out


def test_where_there_is_none_that_is_said(esper: Esper) -> None:
    code, out, _ = esper("verify")
    assert code == 0
    assert "the trail begins with the next change" in out
    code, _, err = esper("export")
    assert (code, "begins with the first change" in err) == (12, True)
    code, _, err = esper("ls", "urza=memory")
    assert (code, "has no audit trail" in err) == (12, True)
