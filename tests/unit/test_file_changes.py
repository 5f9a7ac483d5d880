"""Wherever a process dies that changes keys or tokens, the audit trail tells whether the change was made."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig
from urza_support import artefact

from esper.assembly.file_changes import entered, unfinished
from esper.assembly.keys import build_key_source
from esper.assembly.storage import build_library
from esper.assembly.tokens import build_token_authority
from esper.security import new_key
from esper.security.audit_check import Unfinished
from esper.security.sources import changed
from esper.security.token_trust import Trusted
from esper.urza.trail import LibraryTrail
from esper_cli.app import run
from esper_cli.config import compose

TOKEN, OTHER = "0123456789abcdef" * 2, "f" * 32


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two keys of the library and two that sign tokens; nothing needs the older ones."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ESPER_HOME", "home")
        cfg = compose([])
        with build_library(cfg) as library:
            library.put(artefact("a"))
        add(cfg)
        with build_library(cfg) as library:
            library.reseal()
        build_token_authority(cfg).signing_key()
        rotate(cfg)
    return folder


@pytest.fixture
def cfg(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DictConfig:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPER_HOME", "home")
    shutil.copytree(made / "home", "home")
    return compose([])


def keys(cfg: DictConfig) -> list[str]:
    return [key.id for key in build_key_source(cfg).load().keys]


def signing(cfg: DictConfig) -> list[str]:
    return [key.id for key in build_token_authority(cfg).keys().keys]


def trusted(cfg: DictConfig) -> Trusted:
    found = build_token_authority(cfg).trusted()
    assert found is not None
    return found


def add(cfg: DictConfig) -> None:
    key = new_key()
    with build_library(cfg) as library, entered(library, "key.adding", key.id) as announce:
        changed(build_key_source(cfg), lambda ring: ring.with_primary(key), announce)


def remove(cfg: DictConfig) -> None:
    key_id = keys(cfg)[1]
    with build_library(cfg) as library, entered(library, "key.removing", key_id) as announce:
        changed(build_key_source(cfg), lambda ring: ring.without(key_id), announce)


def rotate(cfg: DictConfig) -> None:
    key = new_key()
    with build_library(cfg) as library, entered(library, "token_key.adding", key.id) as announce:
        build_token_authority(cfg).rotate(key, announce)


def begin(cfg: DictConfig) -> None:
    for name in ("token_keys.json", "tokens.json"):
        Path("home", name).unlink(missing_ok=True)
    key = new_key()
    with build_library(cfg) as library, entered(library, "token_key.adding", key.id) as announce:
        build_token_authority(cfg).begin(key, announce)


def begin_or_rotate(cfg: DictConfig) -> None:
    if build_token_authority(cfg).has_keys():
        rotate(cfg)
    else:
        begin(cfg)


def retire(cfg: DictConfig) -> None:
    key_id = signing(cfg)[1]
    with build_library(cfg) as library, entered(library, "token_key.retiring", key_id) as announce:
        build_token_authority(cfg).retire(key_id, announce)


def revoke(cfg: DictConfig, token: str = TOKEN) -> None:
    with build_library(cfg) as library, entered(library, "token.revoking", token) as announce:
        build_token_authority(cfg).revoke(token, announce)


def revoke_all(cfg: DictConfig) -> None:
    with build_library(cfg) as library, entered(library, "token.revoking_all", "anna") as announce:
        build_token_authority(cfg).revoke_all("anna", announce)


def revoke_other(cfg: DictConfig) -> None:
    revoke(cfg, OTHER)


def killed(change: Callable[[DictConfig], None], cfg: DictConfig, step: int) -> bool:
    """Whether ``change``, in a process of its own, came to that step, where the process kills itself.

    Steps are before and behind each entry in the trail, and each file that is put into its place.
    """
    child = os.fork()
    if child == 0:
        try:
            passed = iter(range(1, step))

            def around(function: Callable[..., Any]) -> Callable[..., Any]:
                def stepped(*args: Any, **options: Any) -> Any:
                    next(passed, None) or os.kill(os.getpid(), signal.SIGKILL)
                    result = function(*args, **options)
                    next(passed, None) or os.kill(os.getpid(), signal.SIGKILL)
                    return result

                return stepped

            LibraryTrail.note = around(LibraryTrail.note)
            Path.replace = around(Path.replace)
            change(cfg)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert status in (signal.SIGKILL, 0)
    return status != 0


def told(cfg: DictConfig) -> list[Unfinished]:
    with build_library(cfg) as library:
        assert library.trail.verify().findings == ()
        return list(unfinished(cfg, library))


@pytest.mark.parametrize(
    ("change", "what", "is_done", "another"),
    [
        (add, "key.adding", lambda cfg: len(keys(cfg)) == 3, add),
        (remove, "key.removing", lambda cfg: len(keys(cfg)) == 1, add),
        (rotate, "token_key.adding", lambda cfg: len(signing(cfg)) == 3, rotate),
        (begin, "token_key.adding", lambda cfg: Path("home/token_keys.json").exists(), begin_or_rotate),
        (retire, "token_key.retiring", lambda cfg: len(trusted(cfg).keys) == 1, None),
        (revoke, "token.revoking", lambda cfg: TOKEN in trusted(cfg).ids, revoke_other),
        (revoke_all, "token.revoking_all", lambda cfg: "anna" in trusted(cfg).names, revoke_other),
    ],
)
def test_the_trail_tells_whether_a_change_was_made(
    cfg: DictConfig,
    made: Path,
    change: Callable[[DictConfig], None],
    what: str,
    is_done: Callable[[DictConfig], bool],
    another: Callable[[DictConfig], None] | None,
) -> None:
    seen = []
    for step in range(1, 20):
        shutil.rmtree("home")
        shutil.copytree(made / "home", "home")
        if not killed(change, cfg, step):
            break
        done = is_done(cfg)
        found = [(each.action, each.done) for each in told(cfg)]
        seen.append(done if found else None)
        assert found == ([(what, done)] if found else [])
        if found and another is not None and seen.count(done) == 1:
            another(cfg)
            assert [(each.action, each.done) for each in told(cfg)] == found, "told by what came then"
    assert is_done(cfg)
    assert told(cfg) == []
    begun = [done for done in seen if done is not None]
    assert seen == [None, *begun, None], "before anything was begun, and when all of it is entered"
    assert begun == sorted(begun), "not done, then done"
    assert set(begun) == {False, True}


def test_a_key_of_tokens_that_was_retired_by_half_is_told_and_retired(
    cfg: DictConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    key_id = signing(cfg)[1]
    assert killed(retire, cfg, 4)  # its file is written, and what servers read is not
    assert key_id in trusted(cfg).keys
    assert run(["audit", "verify"]) == 0
    assert f"esper token keys retire {key_id}" in capsys.readouterr().out
    assert run(["token", "keys", "retire", key_id]) == 0
    assert key_id not in trusted(cfg).keys
    assert [each.done for each in told(cfg)] == [True]
    assert run(["token", "keys", "retire", key_id]) == 12


def test_where_neither_state_is_there_nothing_is_claimed(cfg: DictConfig) -> None:
    assert killed(revoke, cfg, 3)
    Path("home/tokens.json").unlink()
    build_token_authority(cfg).signing_key()  # makes another
    assert [each.done for each in told(cfg)] == [None]
    Path("home/tokens.json").write_text("{}")
    (found,) = told(cfg)
    assert found.done is None
    assert "is damaged" in found.text
