"""The libraries that the configuration groups describe, on real servers."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from servers.postgres import PASSWORD
from servers.redis import RedisServer, be_patient
from torch import nn
from urza_support import artefact
from waiting import until

from esper.assembly.storage import build_library
from esper.errors import ConfigError, SecurityError
from esper.tezzeret.torchscript import TorchScriptTarget
from esper.urza.database import open_database
from esper_cli.config import compose


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPER_HOME", str(tmp_path))
    be_patient(monkeypatch)
    for name in ("ESPER_REDIS_URL", "ESPER_POSTGRES_URL"):
        monkeypatch.delenv(name, raising=False)


def blueprint_twice(overrides: list[str]) -> dict[str, tuple[int, int]]:
    """Put a kernel, then read it in a second library and in a third; the counts of the last."""
    with build_library(compose(overrides)) as library:
        library.put(artefact("a", blueprint="{}"))
    counts = {}
    for _ in range(2):
        with build_library(compose(overrides)) as library:
            assert library.blueprint("kernel_a") == "{}"
            assert library.blueprint("kernel_a") == "{}"
            library.verify("kernel_a")
            counts = {name: (tier.hits, tier.misses) for name, tier in library.tier_counts().items()}
    return counts


def test_the_full_stack_promotes_and_shares_through_redis(
    postgres_url: str, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESPER_POSTGRES_URL", postgres_url)
    monkeypatch.setenv("ESPER_REDIS_URL", redis_server.url)
    counts = blueprint_twice(["urza=full"])
    assert counts == {"loaded": (0, 0), "memory": (1, 1), "redis": (1, 0), "sql": (0, 0)}
    with redis_server.client() as client:
        held = [client.get(key) for key in client.scan_iter()]
    assert held
    assert all(value is not None and value.startswith(b"ESPRSEAL") for value in held)


def test_word_of_a_change_reaches_who_has_read_the_kernel(
    postgres_url: str, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESPER_POSTGRES_URL", postgres_url)
    monkeypatch.setenv("ESPER_REDIS_URL", redis_server.url)
    monkeypatch.setattr("esper.urza.known.MAX_AGE", 0.0)  # so that only word of changes keeps what was read
    monkeypatch.setattr(TorchScriptTarget, "load", lambda *_: nn.Linear(2, 2))
    cfg = compose(["urza=full"])
    with build_library(cfg) as reader, build_library(cfg) as writer:
        writer.put(artefact("a", blueprint="{}", tags=("old",)))
        reads = []
        entry = reader._records.entry
        monkeypatch.setattr(reader._records, "entry", lambda name: reads.append(name) or entry(name))
        until(lambda: reader.fetch("kernel_a") and reader._known.get("kernel_a"))  # it listens by then
        before = len(reads)
        assert reader.fetch("kernel_a").metadata.tags == ("old",)
        assert len(reads) == before
        writer.set_tags("kernel_a", ["new"])
        until(lambda: reader.fetch("kernel_a").metadata.tags == ("new",))
        assert len(reads) == before + 1


def test_redis_before_the_file(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPER_REDIS_URL", redis_server.url)
    assert blueprint_twice(["urza=redis"])["redis"] == (1, 0)


def test_postgres_alone_by_a_file_with_its_url(postgres_url: str, tmp_path: Path) -> None:
    (tmp_path / "url").write_text(f"{postgres_url}\n")
    counts = blueprint_twice(["urza=postgres", f"urza.url=file:{tmp_path}/url"])
    assert counts == {"loaded": (0, 0), "memory": (1, 1), "sql": (1, 0)}
    with closing(open_database(postgres_url)) as database, database.reading() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM kernels").scalar() == 1


@pytest.mark.parametrize("group", ["postgres", "full", "redis"])
def test_a_url_that_is_not_given_is_named(group: str) -> None:
    cfg = compose([f"urza={group}"])
    with pytest.raises(ConfigError, match=r"ESPER_(POSTGRES|REDIS)_URL, which is not set") as caught:
        build_library(cfg)
    assert caught.value.hint


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    cfg = compose(["urza=postgres", f"urza.url=file:{tmp_path}/gone"])
    with pytest.raises(ConfigError, match=r"urza\.url is in the file .*gone: No such file"):
        build_library(cfg)


def test_no_configuration_holds_a_password(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPER_POSTGRES_URL", postgres_url)
    monkeypatch.setenv("ESPER_REDIS_URL", "redis://:secret@127.0.0.1:1/0")
    printed = OmegaConf.to_yaml(compose(["urza=full"]), resolve=True)
    assert "secret" not in printed
    assert PASSWORD not in printed
    assert "env:ESPER_POSTGRES_URL" in printed


def test_a_first_key_is_told_once_and_memory_needs_none() -> None:
    told: list[str] = []
    with build_library(compose(["urza=memory"]), on_key_made=told.append) as library:
        library.put(artefact("a"))
    assert told == []
    for _ in range(2):
        with build_library(compose([]), on_key_made=told.append) as library:
            library.put(artefact("a"))
    assert len(told) == 1
    assert told[0].endswith("keys.json")


def test_keys_that_were_lost_are_an_error_and_not_new_keys(tmp_path: Path) -> None:
    with build_library(compose([])) as library:
        library.put(artefact("a"))
    (tmp_path / "keys.json").unlink()
    with build_library(compose([])) as library, pytest.raises(SecurityError):
        library.verify("kernel_a")
    assert not (tmp_path / "keys.json").exists()
