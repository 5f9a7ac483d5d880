"""Seven secrets go in by seven ways, through the real commands and the real server; none comes out."""

from __future__ import annotations

import base64
import json
import os
import pickle
import re
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import forked
import httpx
import pytest
import servers
from servers.redis import RedisServer

from esper.security import Envelope, EnvironmentKeys
from esper.tolaria.checkpoints import Checkpoints

CONFIG = "canary-config-7f3a91"
ENVIRONMENT = base64.b64encode(b"canary-environment-7f3a91-00000-")[:44].decode()
URL = "canary-url-7f3a91"
PLACE = "canary-path-7f3a91"
EXCEPTION = "canary-exception-7f3a91"
LOGGER = "canary-logger-7f3a91"

POLICY = f"""
import logging, os
from esper.tamiyo.grow_on_plateau import GrowOnPlateau

own = logging.getLogger("third.party.with.handlers")
own.addHandler(logging.StreamHandler())
own.propagate = False

class Leaky:
    needs_kernels = True
    needs_widths = False

    def decide(self, packet):
        secret = "{LOGGER}"
        for log in (logging.getLogger("third.party"), own):
            log.warning("connecting with password=%s", secret)
            log.error("header %s", {{"Authorization": "Bearer " + secret}}, extra={{"api_key": secret}})
            try:
                raise ValueError("token=" + secret)
            except ValueError:
                log.exception("it failed with %d", "password=" + secret)
        if packet.epoch == 2:
            raise RuntimeError("cannot log in with " + os.environ["UPSTREAM_API_KEY"])
        return None
"""


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    yield from servers.started(server := RedisServer(password=URL), server.start)


def esper(folder: Path, redis: RedisServer, *args: str, code: int = 0) -> str:
    """Run it and return all that it wrote to stdout and stderr."""
    done = forked.esper(*args, cwd=folder, env=environment(folder, redis))
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def environment(folder: Path, redis: RedisServer) -> dict[str, str]:
    return {
        **os.environ,
        "ESPER_HOME": str(folder / "home"),
        "ESPER_KEYS": ENVIRONMENT,
        "ESPER_REDIS_URL": redis.url,
        "UPSTREAM_API_KEY": EXCEPTION,
        "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}",
        "OMP_NUM_THREADS": "1",
    }


def settings(folder: Path) -> tuple[str, ...]:
    return ("urza=redis", "security=environment", f"runs={folder}/{PLACE}/runs")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory, redis: RedisServer) -> tuple[Path, dict[str, bytes]]:
    """The folder where everything was done, and all that came out of it: by what, and what."""
    folder = tmp_path_factory.mktemp("canaries")
    (folder / "experiments").mkdir()
    (folder / "experiments" / "leak.yaml").write_text(
        f"# @package _global_\nurza:\n  redis: redis://:{CONFIG}@127.0.0.1:1/0\n"
    )
    (folder / "leaky.py").write_text(POLICY)
    told = {
        "configuration": esper(folder, redis, "train", "+experiment=leak", "--cfg", "job"),
        "override": esper(folder, redis, "train", f"urza.redis=redis://:{CONFIG}@127.0.0.1:1/0", code=2),
        "training": train(folder, redis),
        "verified": esper(folder, redis, "audit", "verify", *settings(folder)),
    }
    token = esper(folder, redis, "token", "issue", "--role", "operator", "--for", "canary", *settings(folder))
    jwt = re.findall(r"eyJ[\w-]+\.[\w-]+\.[\w-]+", token)[0]
    pages, log = served(folder, redis, jwt)
    told["server"] = log
    found = {name: text.encode() for name, text in told.items()} | pages | stored(folder, redis)
    found["token"] = jwt.encode()
    return folder, found


def train(folder: Path, redis: RedisServer) -> str:
    """A run that grows with Redis before its library and behind its telemetry, and then fails."""
    policy = ["tamiyo._target_=leaky.Leaky", "allow_targets=[esper.,torch.optim.,leaky.]"]
    places = ("nissa/sinks=[redis,jsonl]", "log.format=json", *settings(folder))
    args = ("train", "+experiment=smoke", "tamiyo=never", "tolaria.epochs=4", *policy, *places)
    return esper(folder, redis, *args, code=1)


def served(folder: Path, redis: RedisServer, token: str) -> tuple[dict[str, bytes], str]:
    """What the server answers to whom it should and to whom it should not, and its log."""
    words = ("serve-metrics", "--port", "0", *settings(folder))
    with forked.command(*words, cwd=folder, env=environment(folder, redis)) as server:
        first = server.until(r"serving .*(http://\S+)\n")
        answers = dict(asked(first[1], token))
        server.send(signal.SIGTERM)
        done = server.wait()
    # To its own user it says what it serves.
    return answers, done.stdout.replace(first[0], first[0].replace(f"{folder}/{PLACE}", "")) + done.stderr


def asked(address: str, token: str) -> Iterator[tuple[str, bytes]]:
    bearer = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=address) as client:
        ready = client.get("/api/v1/runs", headers=bearer)
        (run,) = ready.json()["runs"]
        kernel = client.get("/api/v1/kernels", headers=bearer).json()["kernels"]
        paths = [
            "/", "/health/ready", "/metrics", "/api/v1/status", "/api/v1/adaptations", "/api/v1/runs",
            f"/api/v1/runs/{run['run_id']}", f"/api/v1/runs/{run['run_id']}/history", "/api/v1/kernels",
            "/api/v1/compilations", f"/api/v1/runs/{token}", f"/health?token={token}",
            f"/?token={token}",
            *[f"/api/v1/kernels/{each['kernel']['kernel_id']}" for each in kernel[:2]],
        ]  # fmt: skip
        for path in paths:
            for headers in (bearer, {}, {"Authorization": f"Bearer {token}x"}):
                answer = client.get(path, headers=headers)
                name = f"{path[:40]} {len(headers)} {answer.status_code}"
                # What is asked is repeated in no more than the problem's instance, to whoever asked it.
                body = answer.content.replace(answer.request.url.path.encode(), b"")
                yield name, body
        for action in ("pause", "rollback"):
            answer = client.post(f"/api/v1/runs/{run['run_id']}/{action}", headers=bearer, json={})
            yield action, answer.content
        with client.stream("GET", "/api/v1/events", headers={**bearer, "Last-Event-ID": "0"}) as events:
            yield "events", first_bytes(events)


def first_bytes(answer: httpx.Response) -> bytes:
    """What comes within a moment."""
    found = b""
    end = time.monotonic() + 1.5
    try:
        for chunk in answer.iter_raw():
            found += chunk
            if time.monotonic() > end or len(found) > 20_000:
                break
    except httpx.ReadTimeout:
        pass
    return found


def stored(folder: Path, redis: RedisServer) -> dict[str, bytes]:
    """Every file that was written, what checkpoints hold behind their seals, and all that is in Redis."""
    inputs = {folder / "experiments" / "leak.yaml", folder / "leaky.py"}
    files = [path for path in folder.rglob("*") if path.is_file() and path not in inputs]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files if path.suffix != ".pyc"}
    with closing(sqlite3.connect(folder / "home" / "kernels.db")) as database:
        found["rows"] = "\n".join(database.iterdump()).encode()
    os.environ["CANARY_KEYS"] = ENVIRONMENT
    envelope = Envelope(EnvironmentKeys("CANARY_KEYS").load())
    (checkpoints,) = (folder / PLACE / "runs").glob("*/checkpoints")
    state, _ = Checkpoints(checkpoints, envelope).load_newest_good()
    found["checkpoint"] = pickle.dumps(state)
    with closing(redis.client()) as client:
        for key in client.scan_iter("*"):
            kind = client.type(key)
            value = client.dump(key) if kind != b"stream" else repr(client.xrange(key)).encode()
            found[f"redis {key!r}"] = key + (value or b"")
    return found


@pytest.mark.parametrize("canary", [CONFIG, ENVIRONMENT, URL, EXCEPTION, LOGGER, "token"])
def test_no_secret_is_found_in_anything_that_came_out(
    outputs: tuple[Path, dict[str, bytes]], canary: str
) -> None:
    _, found = outputs
    token = found["token"].decode()
    searched = {name: data for name, data in found.items() if name != "token"}
    wanted = token.rpartition(".")[2] if canary == "token" else canary
    forms = {
        wanted.encode(),
        base64.b64encode(wanted.encode()).rstrip(b"=")[:-1],
        json.dumps(wanted).encode(),
    }
    if canary == ENVIRONMENT:
        forms.add(base64.b64decode(ENVIRONMENT))
    assert [name for name, data in searched.items() if any(form in data for form in forms)] == []
    assert len(searched) > 60  # there was something to search


def test_a_folders_name_stays_on_the_machine(outputs: tuple[Path, dict[str, bytes]]) -> None:
    """In the run's own folder its configuration says where it lies; nothing else does, and nothing sent."""
    _, found = outputs
    named = [name for name, data in found.items() if PLACE.encode() in data]
    own = [name for name in named if name.endswith("config.yaml")]
    told = [name for name in named if name in ("training", "verified", "configuration")]
    assert set(named) - set(own) - set(told) == set()


def test_what_was_to_be_seen_is_there(outputs: tuple[Path, dict[str, bytes]]) -> None:
    """The secrets did go in, and something else came out in their place."""
    _, found = outputs
    assert b"cannot log in with [redacted]" in found["training"]
    assert found["training"].count(b'"logger": "third.party"') >= 9
    assert b"redis://[redacted]@127.0.0.1:1/0" in found["configuration"]
    assert any(name.startswith("redis b'esper:") for name in found)
    journal = next(data for name, data in found.items() if name.endswith("journal.jsonl"))
    assert b"RuntimeError: cannot log in with [redacted]" in journal
