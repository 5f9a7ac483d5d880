"""The Redis server between those who ask for kernels and the Celery workers that compile them.

Celery carries the jobs: a queue that is served by priority, and jobs of workers that died are given out again
after ``visibility_seconds``. Beside its lists stand, under the queue's name:

    QUEUE:asked:KEY         the attempt at a job that is under way, so that equal jobs are compiled once
    QUEUE:hot:ATTEMPT       that it is in the queue as a hot one
    QUEUE:begun:ATTEMPT     how many times it was begun
    QUEUE:outcome:ATTEMPT   what became of it, sealed; written once
    QUEUE:waiting           sorted set: the attempts that no worker has begun, by since when somebody waits
    QUEUE:compiling         sorted set: those that a worker has begun, by when
    QUEUE:workers           sorted set: NAME:JOBS of each worker, how many it does at once, by its last word

All times are those of the broker. All of it is in docs/decisions/0105 and 0128.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

from redis import exceptions

from esper.errors import CompilationError, ConfigError, TierUnavailable
from esper.messages import CompileQueue
from esper.urza.redis_client import BoundedRedis

if TYPE_CHECKING:
    from celery.app.base import Celery

TASK: Final = "esper.compile"
HOT, SWEEP = 0, 9
"""Priorities, as Celery has them on Redis: 0 goes first."""
CALL_SECONDS: Final = 5.0
OUTCOME_SECONDS: Final = 600
"""How long an outcome is kept for those who wait for it."""
PRESENT_SECONDS: Final = 15
"""A worker that has not been heard of for so long is gone."""

FIRST_PAUSE, LAST_PAUSE = 0.2, 5.0
"""Seconds between two questions to a server that is away; each pause is twice the one before."""

Command = tuple[str | bytes | int, ...]

_REFUSED: Final = (exceptions.AuthenticationError, exceptions.AuthorizationError)
_NOW: Final = "return redis.call('ZADD', KEYS[1], ARGV[2], redis.call('TIME')[1], ARGV[1])"


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why the server does not answer as it should, and whether that may pass by itself."""

    error: CompilationError
    may_pass: bool


class Broker:
    """One Redis server and queue. Threads may share it; a forked child makes its own connections."""

    def __init__(self, url: str, queue: str, *, visibility_seconds: int = 120) -> None:
        """``url`` as for :class:`BoundedRedis`. Connects to nothing yet.

        Raises ``ConfigError`` for a URL that cannot be used, and where Celery is not installed.
        """
        if visibility_seconds < 1:
            raise ConfigError(
                f"tezzeret.engine.visibility_seconds must be at least 1, not {visibility_seconds}"
            )
        self.queue = queue
        self.visibility_seconds = visibility_seconds
        try:
            self.redis = BoundedRedis(url, CALL_SECONDS, what="Redis broker")
            self.where = self.redis.where
            self.celery = self._celery(url)
        except ModuleNotFoundError as error:
            raise ConfigError(
                "compile workers on other machines need the package celery",
                hint="pip install 'esper-morph[celery]'",
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self) -> None:
        """Raise ``CompilationError`` unless the server answers."""
        if (refusal := self._refusal()) is not None:
            raise refusal.error

    def wait_for_server(self, tell: Callable[[str], None]) -> None:
        """Return once the server answers; ``tell`` gets one line if it does not yet.

        Raises ``CompilationError`` where waiting does not help: for a wrong password, a certificate that is
        refused, a server that is no Redis.
        """
        pause, told = FIRST_PAUSE, False
        while (refusal := self._refusal()) is not None:
            if not refusal.may_pass:
                raise refusal.error
            if not told:
                tell(f"{refusal.error.message}; it is asked again until it does")
                told = True
            time.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)

    def _refusal(self) -> _Refusal | None:
        may_pass = False
        try:
            with self.redis.call():
                try:
                    self.redis.ask("PING")
                except Exception as error:
                    may_pass = _may_pass(error)
                    raise
        except TierUnavailable as error:
            return _Refusal(CompilationError(error.message, stage="queue", hint=error.hint), may_pass)
        return None

    def ask(self, *commands: Command) -> list[Any]:
        """The replies to ``commands``, in which names of keys lack the queue; raises ``TierUnavailable``."""
        with self.redis.call():
            return self.redis.ask_all(commands)

    def key(self, kind: str, name: str) -> str:
        """The key of ``kind`` for a job or an attempt."""
        return f"{self.queue}:{kind}:{name}"

    def note_waiting(self, attempt: str) -> list[Command]:
        """The commands that note that somebody waits for ``attempt``."""
        key = f"{self.queue}:waiting"
        return [self._add(key, attempt, "NX"), ("EXPIRE", key, 2 * self.visibility_seconds)]

    def note_begun(self, attempt: str) -> list[Command]:
        """The commands that note that a worker has begun with ``attempt``."""
        key = f"{self.queue}:compiling"
        begun = [self._add(key, attempt), ("EXPIRE", key, 2 * self.visibility_seconds)]
        return [("ZREM", f"{self.queue}:waiting", attempt), *begun]

    def note_ended(self, attempt: str) -> list[Command]:
        """The commands that note that nobody works at ``attempt``, nor has to."""
        return [("ZREM", f"{self.queue}:{where}", attempt) for where in ("waiting", "compiling")]

    def note_present(self, name: str, jobs: int) -> list[Command]:
        """The commands that note that the worker ``name`` does so many jobs at once."""
        key = f"{self.queue}:workers"
        return [self._add(key, f"{name}:{jobs}"), ("EXPIRE", key, 2 * PRESENT_SECONDS)]

    def note_gone(self, name: str, jobs: int) -> list[Command]:
        """The command that notes that the worker ``name`` is no more."""
        return [("ZREM", f"{self.queue}:workers", f"{name}:{jobs}")]

    def depth(self) -> CompileQueue:
        """What all who ask wait for, and who works at it; raises ``TierUnavailable``."""
        waiting = f"{self.queue}:waiting"
        (now, _), count, oldest, compiling, workers = self.ask(
            ("TIME",),
            ("ZCARD", waiting),
            ("ZRANGE", waiting, 0, 0, "WITHSCORES"),
            *(("ZRANGE", f"{self.queue}:{name}", 0, -1, "WITHSCORES") for name in ("compiling", "workers")),
        )
        since = [datetime.now(UTC) - timedelta(seconds=age) for _, age in _ages(oldest, now)]
        return CompileQueue(
            waiting=count,
            compiling=sum(age < self.visibility_seconds for _, age in _ages(compiling, now)),
            workers=sum(_jobs(name) for name, age in _ages(workers, now) if age < PRESENT_SECONDS),
            oldest=since[0].isoformat(timespec="seconds") if since else None,
        )

    def begun(self, attempts: Sequence[str]) -> list[bool]:
        """Of each attempt, whether a worker has begun with it; raises ``TierUnavailable``."""
        (found,) = self.ask(("MGET", *(self.key("begun", attempt) for attempt in attempts)))
        return [times is not None for times in found]

    def _add(self, key: str, member: str, condition: str = "CH") -> Command:
        return ("EVAL", _NOW, 1, key, member, condition)

    def without_password(self, text: str) -> str:
        """``text``, in which the server or a driver may have repeated what it was sent."""
        return self.redis.without_password(text)

    def close(self) -> None:
        """Close the connections."""
        self.celery.close()
        self.redis.close()

    def _celery(self, url: str) -> Celery:
        # Not from celery itself, whose lazy module two threads cannot import at once.
        from celery.app.base import Celery

        parts = urlsplit(url)
        secure = None
        if parts.scheme == "rediss":
            _, _, authorities = parts.query.partition("ssl_ca_certs=")
            secure = {
                "ssl_cert_reqs": ssl.CERT_REQUIRED,
                "ssl_check_hostname": True,
                "ssl_ca_certs": authorities.partition("&")[0] or ssl.get_default_verify_paths().cafile,
            }
        app = Celery(self.queue, set_as_current=False, broker=_for_celery(url))
        app.conf.update(
            accept_content=["json"],
            task_serializer="json",
            task_ignore_result=True,
            task_acks_late=True,
            task_default_queue=self.queue,
            worker_prefetch_multiplier=1,
            worker_enable_remote_control=False,  # anyone who can write to the broker could stop workers
            worker_hijack_root_logger=False,
            broker_connection_retry_on_startup=True,
            broker_connection_max_retries=None,
            broker_use_ssl=secure,
            broker_transport_options={
                "visibility_timeout": self.visibility_seconds,
                "unacked_restore_interval": max(1, self.visibility_seconds // 10),
                "unacked_restore_throttle": 1,
                "unacked_restore_limit": None,
                **{
                    name: f"{self.queue}:{name}"
                    for name in ("unacked_key", "unacked_index_key", "unacked_mutex_key")
                },
                "unacked_mutex_expire": 10,  # held by a worker that died
                "priority_steps": [HOT, SWEEP],
                "queue_order_strategy": "priority",
                "socket_timeout": 10,
                "socket_connect_timeout": CALL_SECONDS,
                "socket_keepalive": True,
            },
        )
        return app


def _may_pass(error: Exception) -> bool:
    """Whether ``error`` is of a server that is away or starting, not of one that refuses us."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    if any(isinstance(each, (*_REFUSED, ssl.SSLCertVerificationError)) for each in causes):
        return False
    away = isinstance(error, (exceptions.ConnectionError, exceptions.TimeoutError, OSError))
    return away or str(error).startswith("LOADING")


def _ages(pairs: list[bytes], now: bytes) -> Iterator[tuple[bytes, float]]:
    """The members of a sorted set, and how many seconds ago each was noted."""
    for member, score in zip(pairs[::2], pairs[1::2], strict=True):
        yield member, max(0.0, float(now) - float(score))


def _jobs(worker: bytes) -> int:
    """How many jobs a worker does at once, by its own word."""
    jobs = worker.rpartition(b":")[2]
    return int(jobs) if jobs.isdigit() and len(jobs) < 6 else 0


def _for_celery(url: str) -> str:
    """The URL as Celery writes it: a socket of the file system has another scheme there."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts._replace(scheme="redis+socket").geturl()
    return parts._replace(query="").geturl()
