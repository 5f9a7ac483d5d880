"""What ships to set up servers says what the docs say, and lets nobody in from outside."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from redis import Redis
from redis.exceptions import AuthenticationError, ConnectionError
from servers.redis import free_port

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
DOCS = "".join((ROOT / "docs" / name).read_text() for name in ("library.md", "workers.md"))
KEPT = {"redis": ("allkeys-lru", "no"), "broker": ("noeviction", "yes")}


def test_every_port_is_on_loopback_and_every_password_is_a_secret() -> None:
    assert set(COMPOSE["services"]) == {"postgres", "redis", "broker"}
    for name, service in COMPOSE["services"].items():
        assert service["secrets"] == [f"{name}_password"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["healthcheck"]
        assert not re.search(r"password[=: ]+\w*\d", str(service.get("environment", "")), re.IGNORECASE)
    for name, secret in COMPOSE["secrets"].items():
        assert Path(secret["file"]).name == name
        assert name in DOCS  # the commands that make it
        ignored = subprocess.run(
            ["git", "check-ignore", f"deploy/{name}"], cwd=ROOT, capture_output=True, check=False
        )
        assert ignored.returncode == 0


@pytest.mark.parametrize("service", KEPT)
def test_a_server_starts_with_its_password_and_keeps_what_it_should(service: str, tmp_path: Path) -> None:
    """The shell line of the compose file, with the server that is here."""
    server = shutil.which("valkey-server") or shutil.which("redis-server")
    assert server is not None
    (tmp_path / "password").write_text("word\n")
    script = COMPOSE["services"][service]["command"][-1].replace("$$", "$").rstrip()
    script = script.replace(f"/run/secrets/{service}_password", str(tmp_path / "password"))
    script = script.replace("/tmp/auth.conf", str(tmp_path / "auth.conf")).replace("valkey-server", server)
    port = free_port()
    command = ["sh", "-ec", f"{script} --port {port} --dir {tmp_path}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            with Redis(port=port, password="word") as client:
                deadline = time.monotonic() + 20
                while time.monotonic() < deadline:
                    with suppress(ConnectionError):
                        assert client.ping()
                        break
                    time.sleep(0.02)
                policy, on_disk = KEPT[service]
                assert client.config_get("maxmemory*")["maxmemory-policy"] == policy
                assert client.config_get("appendonly") == {"appendonly": on_disk}
                assert service == "broker" or client.config_get("save") == {"save": ""}
            with Redis(port=port) as stranger, pytest.raises(AuthenticationError):
                stranger.ping()
        finally:
            process.kill()
    assert (tmp_path / "auth.conf").stat().st_mode & 0o077 == 0
