"""What a run says, on its way to any number of sinks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from esper.nissa.telemetry.buffer import SignalBuffer
from esper.nissa.telemetry.events import Allow, EventLog
from esper.nissa.telemetry.messages import Message, Sink, SinkCounts
from esper.nissa.telemetry.writer import SinkWriter

CAPACITY = 2**16
"""Signals that the buffer holds unless told otherwise: of a layer of 4 seeds about 20 MB."""

CLOSE_SECONDS = 10.0
"""How long the end of a run waits for its sinks, all together, while they take what is left."""

SIGNALS_EVERY = 0.5
"""Seconds at least between two steps that sinks are told of; they look as often, and readers see no more."""

log = logging.getLogger(__name__)


class Telemetry:
    """Takes the signals of a run in and has a writer for each sink carry them and the journal's events there.

    Nothing here waits for a sink. Threads may share it.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        journal: Path,
        journal_end: Callable[[], int],
        *,
        allow: Allow,
        capacity: int = CAPACITY,
        signals_every: float = SIGNALS_EVERY,
    ) -> None:
        """Begins at once. ``journal_end`` tells how many bytes ``journal`` has, which is being written."""
        self._signals_every = signals_every
        self._next_signals = 0.0
        self._buffer = SignalBuffer(capacity)
        self._journal_end = journal_end
        events = EventLog(journal, journal_end, allow)
        self._writers = [SinkWriter(sink, self._buffer, events) for sink in sinks]
        for writer in self._writers:
            writer.start()

    def due(self) -> bool:
        """Whether it is time for signals again; who is told so tells them."""
        now = time.monotonic()
        if now < self._next_signals:
            return False
        self._next_signals = now + self._signals_every
        return True

    def step(self, fields: Mapping[str, Any]) -> None:
        """Metrics of one step; ``fields`` are plain data that nobody changes any more."""
        self._buffer.put(Message("step", "step", time.time(), self._journal_end(), fields))

    def health(self, record: bytes) -> None:
        """The health of a layer, as ``health_record.pack`` made it."""
        self._buffer.put(Message("health", "health", time.time(), self._journal_end(), record=record))

    def counts(self) -> dict[str, SinkCounts]:
        """How each sink fares, by name."""
        return {writer.name: writer.counts() for writer in self._writers}

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Let the sinks take what is left, for so long in all; say what one did not take in that time."""
        self._buffer.close()
        deadline = time.monotonic() + seconds
        for writer in self._writers:
            ended = writer.join(deadline)
            behind = writer.counts().behind
            if behind or not ended:
                log.warning(
                    "telemetry sink %s: the run ended before it took everything; %d bytes of events are in "
                    "the journal alone",
                    writer.name,
                    behind,
                )
