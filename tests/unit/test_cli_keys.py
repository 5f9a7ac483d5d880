"""``esper keys`` over a real library."""

import json
import os
import signal
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path

import forked
import pytest
from omegaconf import OmegaConf
from urza_support import artefact, never_load

from esper.assembly.keys import build_envelope, build_key_source
from esper.urza import KernelLibrary, open_library
from esper_cli import app
from esper_cli.config import compose

Output = pytest.CaptureFixture[str]
KERNELS = 3


def opened() -> KernelLibrary:
    cfg = compose([])
    return open_library(cfg.urza.url, never_load, envelope=build_envelope(cfg))


def fill(count: int, *, size: int = 20) -> None:
    with opened() as library:
        for number in range(count):
            library.put(artefact(f"k{number}", program=number.to_bytes(4, "big") * size))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPER_HOME", str(tmp_path))
    monkeypatch.delenv("ESPER_KEYS", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    fill(KERNELS)
    return tmp_path


def esper(capsys: Output, *args: str) -> tuple[int, str, str]:
    code = app.run(["keys", *args])
    out, err = capsys.readouterr()
    return code, out, err


def listed(capsys: Output, *args: str) -> list[dict[str, object]]:
    code, out, err = esper(capsys, "ls", "--json", *args)
    assert (code, err) == (0, "")
    return json.loads(out)


def whole(count: int = KERNELS) -> None:
    with opened() as library:
        for number in range(count):
            library.verify(f"kernel_k{number}")


def test_a_key_is_listed_with_what_it_is_needed_for(capsys: Output, home: Path) -> None:
    (key,) = listed(capsys)
    assert key["primary"] is True
    assert key["origin"] == str(home / "keys.json")
    assert key["needed_for"] == 2 * KERNELS + 2  # programs and records, the blueprint and weights of all
    _, out, _ = esper(capsys, "ls")
    assert all(str(key[field]) in out for field in ("id", "origin", "needed_for"))


def test_an_added_key_seals_and_the_older_one_still_opens(capsys: Output) -> None:
    (old,) = listed(capsys)
    code, out, _ = esper(capsys, "add")
    new, still = listed(capsys)
    assert code == 0
    assert str(new["id"]) in out
    assert (new["primary"], still["primary"]) == (True, False)
    assert (new["needed_for"], still) == (0, {**old, "primary": False, "audit_entries": 2})
    fill(KERNELS + 1)
    assert listed(capsys)[0]["needed_for"] == 2
    whole(KERNELS + 1)


def test_rotating_moves_everything_and_says_which_key_is_idle(capsys: Output) -> None:
    (old,) = listed(capsys)
    code, out, _ = esper(capsys, "rotate")
    assert code == 0
    assert f"moved {old['needed_for']} blobs and records" in out
    assert f"esper keys rm {old['id']}" in out
    new, idle = listed(capsys)
    assert (new["needed_for"], idle["needed_for"]) == (old["needed_for"], 0)
    whole()
    assert esper(capsys, "rm", str(old["id"]))[0] == 0
    assert [key["id"] for key in listed(capsys)] == [new["id"]]
    whole()


def test_rotating_after_add_moves_to_the_key_that_was_added(capsys: Output) -> None:
    esper(capsys, "add")
    added = listed(capsys)[0]["id"]
    code, out, _ = esper(capsys, "rotate", "--json")
    assert code == 0
    assert json.loads(out)["primary"] == added
    assert len(listed(capsys)) == 2
    again = json.loads(esper(capsys, "rotate", "--json")[1])
    assert again["primary"] != added
    assert added in again["no_longer_needed"]


def test_a_key_that_is_needed_or_seals_or_is_not_there_stays(capsys: Output, home: Path) -> None:
    esper(capsys, "add")
    new, old = listed(capsys)
    before = (home / "keys.json").read_bytes()
    for key_id, reason in (
        (str(old["id"]), f"needed for {old['needed_for'] + old['audit_entries']} blobs, records and audit"),
        (str(new["id"]), "the one that seals"),
        ("0" * 16, "no key 0000000000000000"),
    ):
        code, _, err = esper(capsys, "rm", key_id)
        assert code == 12
        assert reason in err
    assert (home / "keys.json").read_bytes() == before


def test_what_is_damaged_stays_under_its_key_and_is_told(capsys: Output, home: Path) -> None:
    (old,) = listed(capsys)
    with sqlite3.connect(home / "kernels.db") as database:
        database.execute(
            "UPDATE blobs SET data = substr(data, 2) WHERE digest = (SELECT min(digest) FROM blobs)"
        )
    database.close()
    code, out, _ = esper(capsys, "rotate")
    assert code == 0
    assert f"key {old['id']} is still needed for 1" in out
    assert "no longer needed" not in out


def test_lost_keys_are_an_error_that_says_what_to_do_and_none_are_made(capsys: Output, home: Path) -> None:
    (home / "keys.json").rename(home / "copy.json")
    for command in ("ls", "rotate"):
        code, _, err = esper(capsys, command)
        assert code == 12
        assert "put your copy back" in err
    assert not (home / "keys.json").exists()
    assert esper(capsys, "add")[0] == 0
    made, lost = listed(capsys)
    assert (made["needed_for"], lost["origin"], lost["needed_for"]) == (0, None, 2 * KERNELS + 2)
    assert "missing" in esper(capsys, "ls")[1]
    code, _, err = esper(capsys, "rotate")
    assert (code, len(listed(capsys))) == (12, 2)
    assert f"no key {lost['id']}" in err


def test_keys_of_the_environment_rotate_by_a_new_one_before_the_old(
    capsys: Output, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (entry,) = json.loads((home / "keys.json").read_text())["keys"]
    new = "bmV3IGtleSBmb3IgYSB0ZXN0LCBub3Qgc2VjcmV0ISE="
    monkeypatch.setenv("ESPER_KEYS", f"{new},{entry['key']}")
    code, out, _ = esper(capsys, "rotate", "security=environment")
    assert code == 0
    assert f"no longer needed: {entry['id']}" in out
    monkeypatch.setenv("ESPER_KEYS", new)
    assert [key["needed_for"] for key in listed(capsys, "security=environment")] == [2 * KERNELS + 2]
    code, _, err = esper(capsys, "rotate", "security=environment")
    assert code == 12
    assert "cannot change $ESPER_KEYS" in err


def test_a_run_that_was_begun_before_there_were_keys_has_those_of_the_default() -> None:
    cfg = compose([])
    older = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "security"])
    assert build_key_source(older).load() == build_key_source(cfg).load()


def test_the_command_that_makes_a_key_says_where_it_lies(
    capsys: Output, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESPER_HOME", str(home / "fresh"))
    assert app.run(["kernels", "ls"]) == 0
    assert not (home / "fresh" / "keys.json").exists()
    capsys.readouterr()
    blueprint = Path(__file__).parents[2] / "blueprints" / "low_rank.yaml"
    for times in (1, 0):
        assert app.run(["compile", str(blueprint), "--shape", f"features:{4 + times}:8"]) == 0
        err = capsys.readouterr().err
        assert err.count(f"made a key in {home}/fresh/keys.json: keep a copy") == times


def test_no_command_shows_a_key(capsys: Output, home: Path) -> None:
    shown = ""
    for args in (["ls"], ["add"], ["ls", "--json"], ["rotate"], ["rotate", "--json"], ["rm", "none"]):
        shown += "".join(esper(capsys, *args)[1:])
    app.run(["train", "--cfg", "job"])
    shown += "".join(capsys.readouterr())
    for entry in json.loads((home / "keys.json").read_text())["keys"]:
        assert entry["key"][:16] not in shown


def unsign(home: Path) -> None:
    with sqlite3.connect(home / "kernels.db") as database:
        database.execute("UPDATE kernels SET signature = ''")
    database.close()


def test_a_library_that_nobody_signed_is_listed_so_and_adopted(capsys: Output, home: Path) -> None:
    unsign(home)
    assert "not sealed" in esper(capsys, "ls")[1]
    code, out, _ = esper(capsys, "adopt")
    assert (code, out) == (0, f"sealed {KERNELS} kernels\n")
    whole()


def stop_at_once(how: signal.Signals) -> None:
    """Have this process send itself a signal after its first batch."""
    reseal = KernelLibrary.reseal

    def stopped(self: KernelLibrary, progress: Callable[[int, int], None]) -> dict[str, str]:
        def and_stop(done: int, total: int) -> None:
            progress(done, total)
            os.kill(os.getpid(), how)

        return reseal(self, and_stop)

    KernelLibrary.reseal = stopped  # type: ignore[method-assign, assignment]
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_rotation_that_is_stopped_leaves_a_whole_library_and_goes_on(
    capsys: Output, home: Path, how: signal.Signals
) -> None:
    """Stopped by a signal to itself after its first batch."""
    count = 120
    fill(count)
    (old,) = listed(capsys)
    done = forked.esper("keys", "rotate", before=partial(stop_at_once, how))
    assert done.returncode == (130 if how == signal.SIGINT else -how)
    if how == signal.SIGINT:
        assert "Go on with: esper keys rotate" in done.stderr
    new, still = listed(capsys)
    assert still["id"] == old["id"]
    assert 0 < int(str(new["needed_for"])) < 2 * count
    assert int(str(still["needed_for"])) > 0
    whole(count)
    code, out, _ = esper(capsys, "rotate", "--json")
    assert code == 0
    assert json.loads(out) == {
        "primary": new["id"],
        "moved": still["needed_for"],
        "no_longer_needed": [old["id"]],
        "kept": {},
        "journals": 0,
        "kept_for_runs": {},
    }
    whole(count)
