"""Whom the server of a configuration lets in, and where it does not start."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from servers.tls import make_certificates, revocations

from esper.assembly.admission import (
    access_notice,
    build_admission,
    build_connection_limit,
    build_tls,
    check_tls,
)
from esper.assembly.tokens import build_token_authority, build_token_rules
from esper.errors import ConfigError, EsperError, ServerError, TokenRefused
from esper.nissa.http.guard import Admission, Caller
from esper.security.tokens import issue
from esper_cli.app import run
from esper_cli.config import compose

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPER_HOME", str(tmp_path))
    return tmp_path


@cache
def defaults() -> DictConfig:
    return compose([])


def config(**nissa: object) -> DictConfig:
    """The defaults with these in their group; ``limits__burst`` stands for ``nissa.limits.burst``."""
    cfg = copy.deepcopy(defaults())
    for name, value in nissa.items():
        OmegaConf.update(cfg, f"nissa.{name.replace('__', '.')}", value)
    return cfg


def admission(*, tls: bool = False, **nissa: object) -> Admission:
    return build_admission(config(**nissa), tls=tls)


def token(role: str = "viewer") -> str:
    cfg = config()
    return issue(build_token_authority(cfg), build_token_rules(cfg), name="anna", role=role)[0]


def test_on_loopback_anybody_may_look_unless_told_otherwise() -> None:
    open_, closed = admission(), admission(anonymous="none")
    assert open_.anonymous == Caller("anonymous", "viewer")
    assert closed.anonymous is None
    assert open_.hosts == {"localhost", "127.0.0.1", "[::1]"}
    assert admission(host="127.0.0.2", hosts=["Esper.internal"]).hosts == {
        *("localhost", "127.0.0.1", "[::1]", "127.0.0.2", "esper.internal")
    }
    assert "every user of this machine" in access_notice(open_)
    assert "esper token issue" in access_notice(closed)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_elsewhere_there_is_no_server_without_tls_and_tokens(host: str) -> None:
    with pytest.raises(ServerError, match="needs TLS"):
        admission(host=host)
    with pytest.raises(ServerError, match="needs tokens, and there is no"):
        admission(host=host, tls=True)
    shown = token()
    with pytest.raises(ServerError, match="needs TLS"):
        admission(host=host)
    let_in = admission(host=host, tls=True)
    assert (let_in.anonymous, let_in.hosts) == (None, None)
    assert let_in.verify(shown) == Caller("anna", "viewer")
    with pytest.raises(TokenRefused):
        let_in.verify(shown[:-1])


def test_a_certificate_of_a_client_does_instead_of_tokens() -> None:
    clients = {"tls_client_ca": "x", "tls_clients": ["prom.internal:viewer"]}
    known = admission(host="0.0.0.0", tls=True, **clients)
    assert known.certificates == {"prom.internal": "viewer"}


def test_the_command_says_so_in_one_line(capsys: Output) -> None:
    assert run(["serve-metrics", "--host", "0.0.0.0"]) == 11
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("esper: error: others can reach 0.0.0.0: that needs TLS.")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("anonymous", "admin", "nissa.anonymous is 'admin'"),
        ("tls_clients", ["prom.internal:root"], "is not NAME:ROLE"),
        ("tls_clients", ["viewer"], "is not NAME:ROLE"),
        ("tls_clients", ["prom.internal:viewer"], "needs nissa.tls_client_ca"),
        ("tokens__service_minutes", 60, "nissa.tokens.service_minutes is 60"),
        ("limits__requests_per_second", 0, "requests_per_second is 0"),
        ("limits__burst", 0, "burst is 0"),
    ],
)
def test_what_cannot_be_is_one_clear_error(key: str, value: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        admission(**{key: value})


def test_so_are_connections_and_tls_that_cannot_be(home: Path) -> None:
    made = make_certificates(home)
    with pytest.raises(ConfigError, match="connections is 0"):
        build_connection_limit(config(limits__connections=0))
    for key in ("tls_key", "tls_client_ca", "tls_client_crl"):
        with pytest.raises(ConfigError, match="belong together"):
            build_tls(config(**{key: "x"}), self_signed=False, say=str)
    files = {"tls_certificate": str(made.certificate), "tls_key": str(made.key)}
    assert build_tls(config(**files), self_signed=False, say=str) is not None
    with pytest.raises(ConfigError, match=r"tls_client_crl needs nissa.tls_client_ca"):
        build_tls(config(**files, tls_client_crl="x"), self_signed=False, say=str)
    with pytest.raises(ConfigError, match="tls_minimum"):
        build_tls(config(**files, tls_minimum="1.1"), self_signed=False, say=str)


def test_the_doctor_tells_when_certificate_and_list_end(home: Path) -> None:
    made = make_certificates(home)
    files = {"tls_certificate": made.certificate, "tls_key": made.key, "tls_client_ca": made.authority}
    lists = home / "revoked.pem"
    named = config(**{name: str(path) for name, path in files.items()}, tls_client_crl=str(lists))
    lists.write_bytes(revocations(made, ends_in=timedelta(days=3)))
    day = f"{datetime.now(UTC) + timedelta(days=3):%Y-%m-%d}"
    assert f"revoked.pem until {day}" in check_tls(named)
    lists.write_bytes(revocations(made, ends_in=timedelta(minutes=-1)))
    with pytest.raises(ServerError, match=r"revoked.pem cannot be used: it is valid from"):
        check_tls(named)


@pytest.mark.parametrize("nice", ["-1", "20"])
def test_a_priority_that_may_not_be_is_named(nice: str, capsys: Output) -> None:
    assert run(["serve-metrics", f"nissa.nice={nice}"]) != 0
    assert "nissa.nice must be between 0 and 19" in capsys.readouterr().err


def test_a_certificate_of_the_moment_is_not_made_beside_another() -> None:
    said: list[str] = []
    assert build_tls(config(), self_signed=False, say=said.append) is None
    assert build_tls(config(), self_signed=True, say=said.append) is not None
    assert len(said[0].rpartition(" ")[2]) == 32 * 3 - 1
    with pytest.raises(EsperError, match="a certificate is configured"):
        build_tls(config(tls_key="x"), self_signed=True, say=said.append)
