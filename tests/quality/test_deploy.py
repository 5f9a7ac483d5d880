"""What ships to set up servers says what the docs say, and lets nobody in from outside."""

from __future__ import annotations

import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from redis import Redis
from redis.exceptions import AuthenticationError, ConnectionError
from servers.redis import free_port
from waiting import until

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
DOCS = "".join((ROOT / "docs" / name).read_text() for name in ("library.md", "workers.md", "monitoring.md"))
KEPT = {"redis": ("allkeys-lru", "no"), "broker": ("noeviction", "yes")}
OPEN = {"prometheus"}
"""Services without a password: what they say is on loopback, for those who have an account there."""


def test_every_service_is_on_loopback_and_every_password_is_a_secret() -> None:
    assert set(COMPOSE["services"]) == {"postgres", "redis", "broker", "prometheus", "grafana"}
    for name, service in COMPOSE["services"].items():
        assert service.get("secrets", []) == ([] if name in OPEN else [f"{name}_password"])
        assert service["healthcheck"]
        assert not re.search(r"password[=: ]+\w*\d", str(service.get("environment", "")), re.IGNORECASE)
        if service.get("network_mode") == "host":
            assert "ports" not in service
            bound = f"{service.get('command')} {service.get('environment')}"
            assert "listen-address=127.0.0.1:" in bound or "'GF_SERVER_HTTP_ADDR': '127.0.0.1'" in bound
        else:
            assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    for name, secret in COMPOSE["secrets"].items():
        assert Path(secret["file"]).name == name
        assert name in DOCS  # the commands that make it
        ignored = subprocess.run(
            ["git", "check-ignore", f"deploy/{name}"], cwd=ROOT, capture_output=True, check=False
        )
        assert ignored.returncode == 0


def test_every_file_that_a_service_mounts_is_there() -> None:
    mounted = [
        volume.split(":")[0]
        for service in COMPOSE["services"].values()
        for volume in service.get("volumes", ())
        if volume.startswith("./")
    ]
    assert len(mounted) == 3
    assert all((ROOT / "deploy" / path).exists() for path in mounted)


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

                def answers() -> bool:
                    with suppress(ConnectionError):
                        return bool(client.ping())
                    return False

                until(answers)
                policy, on_disk = KEPT[service]
                assert client.config_get("maxmemory*")["maxmemory-policy"] == policy
                assert client.config_get("appendonly") == {"appendonly": on_disk}
                assert service == "broker" or client.config_get("save") == {"save": ""}
            with Redis(port=port) as stranger, pytest.raises(AuthenticationError):
                stranger.ping()
        finally:
            process.kill()
    assert (tmp_path / "auth.conf").stat().st_mode & 0o077 == 0
