"""The sinks of a configuration, and what carries a run's messages there."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from omegaconf import DictConfig, OmegaConf

from esper.assembly.storage import place_of
from esper.errors import ConfigError, SinkUnavailable
from esper.nissa.journal import Journal
from esper.nissa.telemetry.messages import Sink
from esper.nissa.telemetry.telemetry import SIGNALS_EVERY, Telemetry
from esper.security.privacy import leaving

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from esper.nissa.telemetry.mirror import Source

CALL_SECONDS = 5.0
"""How long a transaction of a telemetry database waits for a lock; twice as long for an answer."""

MOST_SIGNALS = 2**24
"""What the buffer may hold at most: some gigabytes."""

REACH_SECONDS = 2.0
"""How long a server has to accept a connection when it is checked."""

_PORTS = {"https": 443, "http": 80, "postgresql": 5432, "postgres": 5432}

_COLLECTOR = "http://127.0.0.1:4318"

SinkOf = Callable[[Path], Sink]
"""Makes a sink for the run in a folder; raises StorageError when it cannot be written."""


def prepare_telemetry(cfg: DictConfig) -> Callable[[Path, Journal], Telemetry | None]:
    """What, given a run's folder and journal, carries the run to the sinks of ``cfg.nissa.sinks``, if any.

    Connects to nothing yet. Raises ConfigError for a sink that cannot be: so before a run has a folder.
    """
    capacity = OmegaConf.select(cfg, "nissa.buffer", default=1)
    if not 1 <= capacity <= MOST_SIGNALS:
        raise ConfigError(f"nissa.buffer must be at least 1 and at most {MOST_SIGNALS}, not {capacity}")
    every = OmegaConf.select(cfg, "nissa.signals_every", default=SIGNALS_EVERY)
    if not 0 <= every < math.inf:
        raise ConfigError(f"nissa.signals_every must be a number of seconds, 0 or more, not {every}")
    makers = [prepare_sink(cfg, name) for name in sink_names(cfg)]

    def build(folder: Path, journal: Journal) -> Telemetry | None:
        if not makers:
            return None
        with ExitStack() as opened:
            sinks = []
            for make in makers:
                sinks.append(make(folder))
                opened.callback(sinks[-1].close)
            opened.pop_all()  # their writers close them
        return Telemetry(
            sinks,
            journal.path,
            lambda: journal.end,
            allow=leaving,
            capacity=capacity,
            signals_every=every,
        )

    return build


def sink_names(cfg: DictConfig) -> list[str]:
    """The sinks of ``cfg``; none in the configuration of an older run."""
    return [str(name) for name in OmegaConf.select(cfg, "nissa.sinks") or {}]


def prepare_sink(cfg: DictConfig, name: str) -> SinkOf:
    """What makes the sink ``name``; ConfigError for settings, or a missing extra, that make it impossible."""
    prepare = _SINKS.get(name)
    if prepare is None:
        raise ConfigError(f"nissa.sinks.{name}: there is no such sink", hint=f"there are {', '.join(_SINKS)}")
    if name in _EXTRAS and find_spec(_EXTRAS[name]) is None:
        raise ConfigError(
            f"the sink {name} needs a package that is not installed",
            hint=f"pip install 'esper-morph[{name}]'",
        )
    return prepare(cfg)


def check_sink(cfg: DictConfig, name: str) -> str:
    """What is known of the sink ``name`` before a run tells it anything; nothing is written.

    Raises what ``prepare_sink`` raises, and SinkUnavailable where its server cannot be reached.
    """
    prepare_sink(cfg, name)
    chosen = cfg.nissa.sinks[name]
    place = place_of(chosen.get("url") or chosen.get("uri") or chosen.get("endpoint"), f"nissa.sinks.{name}")
    if place is None or place.startswith(("sqlite:", "unix:")):
        return f"writes to {chosen.path}" if "path" in chosen else "can be written"
    parts = urlsplit(place)
    host = parts.hostname or "localhost"
    port = parts.port or _PORTS.get(parts.scheme, 6379)
    try:
        socket.create_connection((host, port), REACH_SECONDS).close()
    except OSError as error:
        raise SinkUnavailable(
            f"{host}:{port} cannot be reached: {error.strerror or error}",
            hint="training goes on without it; check that it runs and that the URL is right",
        ) from None
    return f"{host}:{port} can be reached"


@contextmanager
def mirrored(cfg: DictConfig) -> Iterator[dict[str, Callable[[], str]]]:
    """Runs of other hosts come into ``cfg.runs`` meanwhile, if ``cfg.nissa.mirror`` says from where.

    Gives the check of whether they do, by its name, which raises SinkUnavailable; nothing where none come.
    """
    url = place_of(cfg.nissa.mirror.url, "nissa.mirror.url")
    if not url:
        yield {}
        return
    from esper.nissa.telemetry.mirror import RunMirror

    with closing(RunMirror(_source(url, cfg.nissa.mirror.prefix), Path(cfg.runs))) as mirror:
        mirror.start()
        yield {"runs of other hosts": mirror.check}


def _source(url: str, prefix: str) -> Source:
    if url.startswith(("postgresql:", "postgres:")):
        from esper.nissa.telemetry.postgres import PostgresRuns

        return PostgresRuns(TelemetryDatabase(url))
    from esper.nissa.telemetry.redis_runs import RedisRuns
    from esper.urza.redis_client import BoundedRedis

    return RedisRuns(BoundedRedis(url, what="Redis server of telemetry"), prefix)


class TelemetryDatabase:
    """A PostgreSQL database with the time-outs and the demands on TLS of the kernel library's."""

    def __init__(self, url: str) -> None:
        """Connects to nothing yet; ConfigError for a URL that is none, or where psycopg is not installed."""
        from esper.urza.postgres import PostgresBackend

        self._backend = PostgresBackend(url, CALL_SECONDS, what="database of telemetry")

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction; raises an EsperError where the database fails."""
        from sqlalchemy.exc import DBAPIError

        try:
            with self._backend.engine.begin() as connection:
                yield connection
        except DBAPIError as error:
            raise self._backend.as_esper_error(error.orig) from None

    def close(self) -> None:
        """Close the connections."""
        self._backend.close()


def _redis(cfg: DictConfig) -> SinkOf:
    from esper.nissa.telemetry.redis_stream import RedisStreams
    from esper.urza.redis_client import BoundedRedis

    server = BoundedRedis(_url(cfg, "redis", "url"), what="Redis server of telemetry")
    prefix: str = cfg.nissa.sinks.redis.prefix
    return lambda folder: RedisStreams(server, folder.name, prefix)


def _jsonl(cfg: DictConfig) -> SinkOf:
    from esper.nissa.telemetry.json_lines import JsonLines

    path: str = cfg.nissa.sinks.jsonl.path
    return lambda folder: JsonLines(None if path == "-" else _below(folder, path), folder.name)


def _postgres(cfg: DictConfig) -> SinkOf:
    from esper.nissa.telemetry.postgres import EventTable

    database = TelemetryDatabase(_url(cfg, "postgres", "url"))
    return lambda folder: EventTable(database, folder.name)


def _tensorboard(cfg: DictConfig) -> SinkOf:
    from esper.nissa.telemetry.tensorboard import TensorBoard

    path: str = cfg.nissa.sinks.tensorboard.path
    return lambda folder: TensorBoard(_below(folder, path), folder.name)


def _mlflow(cfg: DictConfig) -> SinkOf:
    from esper.nissa.telemetry.mlflow import Mlflow

    uri, experiment = _url(cfg, "mlflow", "uri"), str(cfg.nissa.sinks.mlflow.experiment)
    return lambda folder: Mlflow(uri, experiment, folder.name)


def _otlp(cfg: DictConfig) -> SinkOf:
    from esper.nissa.telemetry.otlp import Otlp

    endpoint = cfg.nissa.sinks.otlp.endpoint
    if endpoint is not None and not str(endpoint).startswith(("http://", "https://")):
        raise ConfigError(f"nissa.sinks.otlp.endpoint must be a URL such as {_COLLECTOR}, not {endpoint}")
    return lambda folder: Otlp(endpoint, folder.name)


def _below(folder: Path, path: str) -> Path:
    return folder / Path(path).expanduser()


def _url(cfg: DictConfig, sink: str, key: str) -> str:
    return place_of(cfg.nissa.sinks[sink][key], f"nissa.sinks.{sink}.{key}") or ""


_EXTRAS = {"tensorboard": "tensorboard", "mlflow": "mlflow", "otlp": "opentelemetry"}
"""The package that an extra of the sink's name installs."""

_SINKS: dict[str, Callable[[DictConfig], SinkOf]] = {
    "redis": _redis,
    "postgres": _postgres,
    "jsonl": _jsonl,
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "otlp": _otlp,
}
