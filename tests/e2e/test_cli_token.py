"""``esper token`` and ``esper serve-metrics`` as a user has them: over TLS, until a token is revoked."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import ssl
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import forked
import httpx
import pytest
from servers.tls import make_certificates

from esper.nissa.http.tls import LOOK_SECONDS
from esper_cli.app import run

JWT_START = "eyJ"


def esper(*args: str, stdin: str = "") -> tuple[int, str, str]:
    """The exit code, stdout and stderr of a command, in this process: that saves time."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr("sys.stdin", io.StringIO(stdin))
        code = run([*args])
    return code, out.getvalue(), err.getvalue()


def token_of(role: str, name: str = "anna") -> str:
    code, out, err = esper("token", "issue", "--role", role, "--for", name)
    assert code == 0, err
    assert JWT_START not in err
    (token,) = out.splitlines()
    return token


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.chdir(home)
        patch.setenv("ESPER_HOME", str(home / ".esper"))
        yield home


@pytest.fixture(scope="module")
def client(home: Path) -> Iterator[httpx.Client]:
    """Of a server over TLS that lets in nobody without a token, or a certificate of that authority."""
    (home / "tls").mkdir()
    made = make_certificates(home / "tls")
    settings = {
        "tls_certificate": made.certificate,
        "tls_key": made.key,
        "tls_client_ca": made.authority,
        "tls_clients": "[localhost:viewer]",
        "anonymous": "none",
    }
    overrides = [f"nissa.{name}={value}" for name, value in settings.items()]
    trusted = ssl.create_default_context(cafile=made.authority)
    with forked.command("serve-metrics", "--port", "0", *overrides) as server:
        url = server.until(r"serving .* (\S+)\n")[1]
        with httpx.Client(base_url=url, verify=trusted) as client:
            yield client
        server.send(signal.SIGTERM)
        done = server.wait()
    assert done.returncode == 0
    assert JWT_START not in done.stdout + done.stderr


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def statuses(client: httpx.Client, *tokens: str) -> list[int]:
    return [client.get("/metrics", headers=bearer(token)).status_code for token in tokens]


def test_a_token_lets_in_until_it_is_revoked(client: httpx.Client) -> None:
    assert client.get("/metrics").status_code == 401
    assert client.get("/health/live").status_code == 200
    token = token_of("viewer")
    assert client.get("/metrics", headers=bearer(token)).status_code == 200
    assert client.post("/api/v1/runs/a/pause", headers=bearer(token)).status_code == 403
    assert client.post("/api/v1/runs/a/pause", headers=bearer(token_of("operator"))).status_code == 404
    verified = json.loads(esper("token", "verify", "--json", stdin=token + "\n")[1])
    assert (verified["name"], verified["role"]) == ("anna", "viewer")

    assert esper("token", "revoke", verified["id"])[0] == 0
    time.sleep(1)
    assert client.get("/metrics", headers=bearer(token)).status_code == 401
    code, out, err = esper("token", "verify", stdin=token)
    assert (code, out) == (12, "")
    assert "revoked" in err
    assert token not in err


def test_a_browser_comes_in_by_its_address_once_and_follows_events_until_its_token_ends(
    client: httpx.Client,
) -> None:
    with httpx.Client(base_url=client.base_url, verify=False, follow_redirects=True) as browser:
        own = {"Origin": str(client.base_url).rstrip("/")}
        assert "Sign in as anna?" in browser.get("/", params={"token": token_of("viewer")}).text
        page = browser.post("/", headers=own)
        assert (page.status_code, page.url.query) == (200, b"")
        assert browser.get("/api/v1/status").status_code == 200
        with browser.stream("GET", "/api/v1/events") as stream:
            assert stream.status_code == 200
            assert esper("token", "revoke", "--all-of", "anna")[0] == 0
            with contextlib.suppress(httpx.RemoteProtocolError):  # cut off in the middle
                for _ in stream.iter_raw():
                    pass
        assert browser.get("/api/v1/status").status_code == 401


def test_a_certificate_lets_in_too(home: Path, client: httpx.Client) -> None:
    context = ssl.create_default_context(cafile=home / "tls" / "authority.pem")
    context.load_cert_chain(home / "tls" / "server.pem", home / "tls" / "server.key")
    with httpx.Client(base_url=client.base_url, verify=context) as scraper:
        assert scraper.get("/metrics").status_code == 200
        assert scraper.post("/api/v1/runs/a/pause").status_code == 403


def test_keys_rotate_and_retire_and_all_of_it_is_in_the_audit_trail(client: httpx.Client) -> None:
    older = token_of("admin", "bob")
    (signs,) = json.loads(esper("token", "keys", "ls", "--json")[1])
    assert esper("token", "keys", "rotate")[0] == 0
    newer = token_of("admin", "bob")
    time.sleep(1)
    assert [client.get("/metrics", headers=bearer(token)).status_code for token in (older, newer)] == [
        200,
        200,
    ]
    assert esper("token", "keys", "retire", signs["id"])[0] == 0
    time.sleep(1)
    assert [client.get("/metrics", headers=bearer(token)).status_code for token in (older, newer)] == [
        401,
        200,
    ]
    _, listed, _ = esper("audit", "ls", "--json")
    actions = {entry["action"] for entry in json.loads(listed)}
    assert {"token.issued", "token.revoked", "token_key.added", "token_key.retired"} <= actions
    assert JWT_START not in listed


def test_an_authority_that_cannot_be_used_shows_in_health(home: Path, client: httpx.Client) -> None:
    health = {"url": "/health", "headers": bearer(token_of("viewer"))}
    assert client.get(**health).status_code == 200
    authority = home / "tls" / "authority.pem"
    whole = authority.read_text()
    authority.write_text("half of a file")
    time.sleep(LOOK_SECONDS)
    answer = client.get(**health)
    authority.write_text(whole)
    assert answer.status_code == 503
    (reason,) = answer.json()["reasons"]
    assert reason.startswith("TLS: the authority of clients [path] cannot be used")
    assert "new connections have what was there before" in reason
