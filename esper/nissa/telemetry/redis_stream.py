"""A sink of Redis Streams: live fan-out to whoever reads, on any host."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, Protocol

import hiredis

from esper.errors import EsperError, SinkUnavailable
from esper.nissa.telemetry.messages import Message

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

    def ask(self, *command: str | bytes | int) -> Any:
        """The server's reply."""
        ...

    def send(self, commands: bytes, replies: int) -> None:
        """Send packed commands and wait for as many replies; raises the first that is an error."""
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
        self._to_events = _adding_to(self._events, EVENTS_KEPT)
        self._to_signals = _adding_to(self._signals, SIGNALS_KEPT)
        self._keeping = [_packed("EXPIRE", stream, KEEP_SECONDS) for stream in (self._events, self._signals)]
        self._next_beat = 0.0

    def position(self) -> int:
        """Place of the newest event in the stream, 0 if there is none: then it gets the whole journal."""
        with self._call():
            entries = self._server.ask("XREVRANGE", self._events, "+", "-", "COUNT", 1)
        if not entries:
            return 0
        fields = entries[0][1]
        return int(dict(zip(fields[::2], fields[1::2], strict=True))[b"place"])

    def write(self, batch: Sequence[Message]) -> None:
        """Add them, in one exchange."""
        # With each batch: a stream that a beat came before would otherwise wait for the next to get its end,
        # and that of a run of a few seconds would have none.
        self._send([*map(self._adding, batch), *self._keeping, *self._upkeep()])

    def idle(self) -> None:
        """Give a sign of life when it is time for one."""
        self._send(self._upkeep())

    def close(self) -> None:
        """Take the sign of life back, and close the connection."""
        try:
            self._send([_packed("DEL", self._alive)])
        finally:
            self._server.close()

    def _adding(self, message: Message) -> bytes:
        head = self._to_events if message.kind == "event" else self._to_signals
        what, value = b"record", message.record
        if message.kind != "health":
            what, value = b"fields", message.json.encode("ascii")
        name, at, place = message.name.encode(), b"%d" % (1000 * message.at), b"%d" % message.place
        counted = (len(name), name, len(at), at, len(place), place, what, len(value), value)
        return head + _ADDED % counted

    def _upkeep(self) -> list[bytes]:
        if time.monotonic() < self._next_beat:
            return []
        self._next_beat = time.monotonic() + _BEAT_SECONDS
        now = int(time.time())
        return [
            _packed("SET", self._alive, now, "EX", ALIVE_SECONDS),
            _packed("ZADD", self._runs, "NX", now, self._run_id),
            _packed("ZREMRANGEBYSCORE", self._runs, 0, now - KEEP_SECONDS),
            *self._keeping,
        ]

    def _send(self, commands: Sequence[bytes]) -> None:
        if commands:
            with self._call():
                self._server.send(b"".join(commands), len(commands))

    @contextmanager
    def _call(self) -> Iterator[None]:
        try:
            with self._server.call(CALL_SECONDS):
                yield
        except EsperError as error:
            self._next_beat = 0.0
            raise SinkUnavailable(error.message, hint=error.hint) from None


# What comes after the name of a stream and its length is written in place: packing each command through the
# driver costs three times as much.
_ADDED = b"$%d\r\n%b\r\n$2\r\nat\r\n$%d\r\n%b\r\n$5\r\nplace\r\n$%d\r\n%b\r\n$6\r\n%b\r\n$%d\r\n%b\r\n"


def _adding_to(stream: str, kept: int) -> bytes:
    """The beginning of a command that adds an entry of four fields, up to the name of the first."""
    begin = _packed("XADD", stream, "MAXLEN", "~", kept, "*", "name")
    return begin.replace(b"*7\r\n", b"*14\r\n", 1)


def _packed(*command: str | bytes | int) -> bytes:
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stubs know one argument
    return packed
