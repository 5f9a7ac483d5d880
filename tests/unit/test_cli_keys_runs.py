"""``esper keys`` and the runs that need a key: journals move to another one, checkpoints keep theirs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from urza_support import artefact

from esper.assembly import run_keys
from esper.assembly.auditing import build_run_trail, note_run_ended
from esper.assembly.keys import build_envelope
from esper.assembly.storage import build_library
from esper.nissa.journal import JOURNAL_NAME, Journal
from esper.security.audit import link_of
from esper.security.audit_lines import HEAD_NAME, audited_lines
from esper_cli import app
from esper_cli.config import compose

RUNS = [f"20261128-12000{number}-smoke-000{number}" for number in range(2)]
Esper = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library, and two runs that have ended."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPER_HOME", str(tmp_path / "home"))
    with build_library(compose([])) as library:
        library.put(artefact("a"))
    for run in RUNS:
        with going_on(run):
            pass
    return tmp_path


@contextmanager
def going_on(run: str) -> Iterator[Journal]:
    """The journal of a run that goes on for a while, by four entries."""
    cfg, folder = compose([]), Path("runs", run)
    folder.mkdir(parents=True, exist_ok=True)
    trail = build_run_trail(cfg)
    with Journal(folder / JOURNAL_NAME, trail=trail) as journal:
        for epoch in range(4):
            journal.write("decision", epoch=epoch)
        yield journal
    with build_library(cfg) as library:
        note_run_ended(library, run, trail)


@pytest.fixture
def esper(capsys: pytest.CaptureFixture[str]) -> Esper:
    def run(*args: str) -> tuple[int, str, str]:
        code = app.run([*args])
        return (code, *capsys.readouterr())

    return run


def ids(esper: Esper) -> list[str]:
    return [key["id"] for key in json.loads(esper("keys", "ls", "--json")[1])]


def needed(esper: Esper) -> dict[str, int]:
    return {key["id"]: key["runs"] for key in json.loads(esper("keys", "ls", "--json")[1])}


def verified(esper: Esper) -> list[list[tuple[str, int]]]:
    """What is wrong, with the library and with each run."""
    code, out, _ = esper("audit", "verify", "--json")
    found = [[(each["wrong"], each["sequence"]) for each in trail["findings"]] for trail in json.loads(out)]
    assert code == any(found)
    return found


def rechained(path: Path) -> None:
    """Change what the second line says, and link anew from there on, which takes no key."""
    lines = path.read_bytes().replace(b'"epoch":1', b'"epoch":9').splitlines(keepends=True)
    path.write_bytes(b"".join(lines))
    link = ""
    for number, line in enumerate(audited_lines(path)):
        link = link_of(link, line.entry.digest) if number > 0 else line.entry.link
        lines[number] = lines[number].replace(line.entry.link.encode(), link.encode())
    path.write_bytes(b"".join(lines))


def test_journals_move_with_the_library_and_are_whole_without_the_older_key(esper: Esper, home: Path) -> None:
    (old,) = ids(esper)
    lines = [Path("runs", run, JOURNAL_NAME).read_bytes() for run in RUNS]
    code, out, _ = esper("keys", "rotate")
    assert code == 0
    assert "and 2 journals, to key" in out
    assert f"esper keys rm {old}" in out
    assert esper("keys", "rm", old)[0] == 0
    assert [Path("runs", run, JOURNAL_NAME).read_bytes() for run in RUNS] == lines
    assert verified(esper) == [[], [], []]
    with going_on(RUNS[0]):
        pass
    assert verified(esper) == [[], [], []]
    exported = home / "run.jsonl"
    exported.write_text(esper("audit", "export", "--run", RUNS[0])[1])
    assert esper("audit", "verify", "--file", str(exported))[0] == 0


def test_what_is_done_to_a_journal_without_the_older_key_is_found(esper: Esper) -> None:
    (old,) = ids(esper)
    esper("keys", "rotate")
    esper("keys", "rm", old)
    journal = Path("runs", RUNS[0], JOURNAL_NAME)
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    journal.write_bytes(whole.replace(b'"epoch":1', b'"epoch":9'))
    assert ("inserted", 2) in verified(esper)[1]
    journal.write_bytes(b"".join([lines[0], *lines[2:]]))
    assert ("missing", 2) in verified(esper)[1]
    journal.write_bytes(b"".join(lines[:3]))
    assert ("cut", 4) in verified(esper)[1]
    journal.write_bytes(whole)
    rechained(journal)
    assert ("changed", 4) in verified(esper)[1]
    journal.write_bytes(whole)
    assert verified(esper)[1] == []


def edit(folder: Path, _key: str) -> None:
    journal = folder / JOURNAL_NAME
    journal.write_bytes(journal.read_bytes().replace(b'"epoch":1', b'"epoch":9'))


def forge_head(folder: Path, key: str) -> None:
    """Have it say that it is under the newer key already."""
    head = json.loads((folder / HEAD_NAME).read_text())
    (folder / HEAD_NAME).write_text(json.dumps({**head, "key_id": key}))


def damage_head(folder: Path, _key: str) -> None:
    (folder / HEAD_NAME).write_text("{}")


@pytest.mark.parametrize(
    ("attack", "told"), [(edit, ("changed", 2)), (forge_head, ("head", 4)), (damage_head, ("head", 4))]
)
def test_a_journal_in_which_something_is_wrong_stays_under_its_key(
    esper: Esper, attack: Callable[[Path, str], None], told: tuple[str, int]
) -> None:
    (old,) = ids(esper)
    esper("keys", "add")
    attack(Path("runs", RUNS[0]), ids(esper)[0])
    code, out, _ = esper("keys", "rotate")
    assert code == 0
    assert "and 1 journal, to key" in out
    assert f"key {old} is still needed for the audit trail of run {RUNS[0]}: " in out
    assert "no longer needed" not in out
    assert needed(esper)[old] == 1
    code, _, err = esper("keys", "rm", old)
    assert (code, err.count("\n")) == (12, 1)
    assert f"needed for the audit trail of run {RUNS[0]}" in err
    assert verified(esper) == [[], [told], []]


def test_a_run_that_goes_on_takes_the_newer_key_by_itself(esper: Esper) -> None:
    (old,) = ids(esper)
    with going_on(RUNS[1]) as journal:
        out = esper("keys", "rotate")[1]
        assert f"key {old} is still needed for the audit trail of run {RUNS[1]}, until the next deci" in out
        assert "no longer needed" not in out
        assert esper("keys", "rm", old)[0] == 12
        journal.write("decision", epoch=4)
        assert needed(esper)[old] == 0
        assert esper("keys", "rm", old)[0] == 0
        assert verified(esper) == [[], [], []]
        journal.write("decision", epoch=5)
    assert verified(esper) == [[], [], []]


def test_a_rotation_that_is_stopped_between_journals_goes_on(
    esper: Esper, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old,) = ids(esper)
    replace_head, done = run_keys.replace_head, []

    def stopped(*args: object) -> bool:
        if done:
            raise KeyboardInterrupt
        done.append(args)
        return replace_head(*args)

    with monkeypatch.context() as patched:
        patched.setattr(run_keys, "replace_head", stopped)
        assert esper("keys", "rotate")[0] == 130
    new, _ = ids(esper)
    assert needed(esper) == {new: 1, old: 1}
    assert verified(esper) == [[], [], []]
    assert json.loads(esper("keys", "rotate", "--json")[1])["no_longer_needed"] == [old]
    assert needed(esper) == {new: 2, old: 0}
    assert esper("keys", "rm", old)[0] == 0
    assert verified(esper) == [[], [], []]


def test_a_key_that_checkpoints_need_is_not_removed(esper: Esper) -> None:
    (first,) = ids(esper)
    folder = Path("runs", RUNS[0], "checkpoints")
    step = folder / "step-000000001"
    step.mkdir(parents=True)
    sealed = build_envelope(compose([])).seal(b"past", "a")
    esper("keys", "add")
    second = ids(esper)[0]
    (folder / "past.sealed").write_bytes(sealed + build_envelope(compose([])).seal(b"more", "b"))
    (step / "manifest.json").write_text(json.dumps({"tag": build_envelope(compose([])).authenticate(b"a")}))
    (step / "state.sealed").write_bytes(sealed)
    esper("keys", "rotate")
    esper("keys", "rotate")
    code, out, _ = esper("keys", "rotate")
    assert code == 0
    for key in (first, second):
        assert f"key {key} is still needed for checkpoints of run {RUNS[0]}" in out
        assert esper("keys", "rm", key)[0] == 12
    (folder / "past.sealed").unlink()
    step = step.rename(folder / ".step-000000001.tmp")  # as while it is being written
    assert (needed(esper)[first], needed(esper)[second]) == (1, 1)
    (step / "state.sealed").unlink()
    assert esper("keys", "rm", first)[0] == 0
    (step / "manifest.json").unlink()
    assert esper("keys", "rm", second)[0] == 0
