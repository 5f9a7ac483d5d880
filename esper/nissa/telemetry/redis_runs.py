"""The runs that tell Redis Streams, for a mirror."""

from __future__ import annotations

from typing import Any

from esper.errors import EsperError, SinkUnavailable
from esper.nissa.journal import Event
from esper.nissa.telemetry.mirror import MOST_BYTES, MOST_EVENTS, MOST_RUNS, event_of
from esper.nissa.telemetry.redis_stream import Server, keys_of

_CALL_SECONDS = 2.0


class RedisRuns:
    """Reads what ``RedisStreams`` wrote under the same prefix."""

    def __init__(self, server: Server, prefix: str = "esper:") -> None:
        self._server = server
        self._prefix = prefix

    def runs(self) -> dict[str, bool]:
        """The ids of the runs that began last, and whether each goes on."""
        found = self._ask("ZREVRANGE", f"{self._prefix}runs", 0, MOST_RUNS - 1)
        run_ids = [name.decode(errors="replace") for name in found]
        if not run_ids:
            return {}
        signs = self._ask("MGET", *(keys_of(self._prefix, run_id)[2] for run_id in run_ids))
        return {run_id: sign is not None for run_id, sign in zip(run_ids, signs, strict=True)}

    def events(self, run_id: str, after: str) -> list[tuple[str, Event | None]]:
        """The next events after the entry ``after``, each with its own; None for one that is none."""
        stream = keys_of(self._prefix, run_id)[0]
        entries = self._ask("XRANGE", stream, f"({after}" if after else "-", "+", "COUNT", MOST_EVENTS)
        return [(entry.decode(), _event(dict(zip(f[::2], f[1::2], strict=True)))) for entry, f in entries]

    def close(self) -> None:
        """Close the connections."""
        self._server.close()

    def _ask(self, *command: str | int) -> Any:
        try:
            with self._server.call(_CALL_SECONDS):
                return self._server.ask(*command)
        except EsperError as error:
            raise SinkUnavailable(error.message, hint=error.hint) from None


def _event(entry: dict[bytes, bytes]) -> Event | None:
    try:
        data = entry[b"fields"]
        at, place = int(entry[b"at"]) / 1000, int(entry[b"place"])
        return event_of(entry[b"name"].decode(), at, place, data if len(data) <= MOST_BYTES else None)
    except (KeyError, ValueError):
        return None
