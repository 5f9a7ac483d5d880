"""A sink of Redis Streams: live fan-out to whoever reads, on any host."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

from esper.errors import EsperError, SinkUnavailable
from esper.nissa.journal import dumps
from esper.nissa.telemetry.messages import Message

Command = Sequence[str | bytes | int]

CALL_SECONDS: Final = 1.0
"""How long one exchange with the server may take."""

SIGNALS_KEPT, EVENTS_KEPT = 20_000, 100_000
"""About how many entries the streams of a run hold."""

KEEP_SECONDS: Final = 7 * 86_400
"""How long the streams of a run outlive its last message."""

ALIVE_SECONDS: Final = 15
"""A run whose writer was not heard of for so long counts as stopped."""

_BEAT_SECONDS = 5.0


class Server(Protocol):
    """A client whose calls end in time, as ``esper.urza.redis_client.BoundedRedis`` is."""

    def call(self, seconds: float | None = None) -> AbstractContextManager[None]:
        """What is asked inside ends after ``seconds``; raises an EsperError and nothing else."""
        ...

    def ask_all(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to commands, sent together."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


def keys_of(prefix: str, run_id: str) -> tuple[str, str, str]:
    """The keys of a run: the stream of its events, that of its signals, and the sign of life."""
    return f"{prefix}run:{run_id}:events", f"{prefix}run:{run_id}:signals", f"{prefix}run:{run_id}:alive"


class RedisStreams:
    """Two streams a run, one of events and one of signals, and the index of runs.

    An event's entry has ``name``, ``at`` (Unix milliseconds), ``place`` and ``fields`` (JSON). A signal's has
    the same, but the health of a layer has ``record``, the packed record as it is, for ``fields``. The sorted
    set ``runs`` holds the ids of runs by when they began to be told of.
    """

    name = "redis"

    def __init__(self, server: Server, run_id: str, prefix: str = "esper:") -> None:
        self._server = server
        self._run_id = run_id
        self._runs = f"{prefix}runs"
        self._events, self._signals, self._alive = keys_of(prefix, run_id)
        self._next_beat = 0.0

    def position(self) -> int:
        """Place of the newest event in the stream, 0 if there is none: then it gets the whole journal."""
        (entries,) = self._exchange([("XREVRANGE", self._events, "+", "-", "COUNT", 1)])
        if not entries:
            return 0
        fields = entries[0][1]
        return int(dict(zip(fields[::2], fields[1::2], strict=True))[b"place"])

    def write(self, batch: Sequence[Message]) -> None:
        """Add them, in one exchange."""
        self._exchange([*map(self._adding, batch), *self._upkeep()])

    def idle(self) -> None:
        """Give a sign of life when it is time for one."""
        if time.monotonic() >= self._next_beat:
            self._exchange(self._upkeep())

    def close(self) -> None:
        """Take the sign of life back, and close the connection."""
        try:
            self._exchange([("DEL", self._alive)])
        finally:
            self._server.close()

    def _adding(self, message: Message) -> Command:
        stream, kept = (
            (self._events, EVENTS_KEPT) if message.kind == "event" else (self._signals, SIGNALS_KEPT)
        )
        what: tuple[str, str | bytes] = ("fields", dumps(message.fields))
        if message.kind == "health":
            what = ("record", message.record)
        at, place = int(1000 * message.at), message.place
        return "XADD", stream, "MAXLEN", "~", kept, "*", "name", message.name, "at", at, "place", place, *what

    def _upkeep(self) -> list[Command]:
        if time.monotonic() < self._next_beat:
            return []
        self._next_beat = time.monotonic() + _BEAT_SECONDS
        now = int(time.time())
        return [
            ("SET", self._alive, now, "EX", ALIVE_SECONDS),
            ("ZADD", self._runs, "NX", now, self._run_id),
            ("EXPIRE", self._events, KEEP_SECONDS),
            ("EXPIRE", self._signals, KEEP_SECONDS),
        ]

    def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        try:
            with self._server.call(CALL_SECONDS):
                return self._server.ask_all(commands)
        except EsperError as error:
            self._next_beat = 0.0
            raise SinkUnavailable(error.message, hint=error.hint) from None
