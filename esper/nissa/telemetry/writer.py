"""A background writer: carries what a run says to one sink, whatever that sink does."""

from __future__ import annotations

import dataclasses
import heapq
import logging
import math
import re
import threading
import time

from esper.errors import StorageError
from esper.nissa.telemetry.buffer import SignalBuffer
from esper.nissa.telemetry.events import EventLog
from esper.nissa.telemetry.messages import Message, Sink, SinkCounts

POLL_SECONDS = 0.5
"""How often a writer looks for messages; a batch is what came meanwhile. A look after training had the caches
to itself costs many times what a message does, and nobody else holds the interpreter while it goes on."""

MOST_SIGNALS, MOST_EVENTS = 2000, 500
"""How many go to a sink at once."""

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 2.0
"""Seconds between two tries of a sink that is down, from the first: it is back that long after it works."""

_CREDENTIALS = re.compile(r"://[^/@\s]*@")

log = logging.getLogger(__name__)


class SinkWriter:
    """A thread that writes to one sink: signals from the buffer, events from the journal.

    A place in either moves on only after the sink has taken what was before it. So a sink that was down gets
    every event once it is back, and the signals that the buffer still holds.
    """

    def __init__(self, sink: Sink, buffer: SignalBuffer, events: EventLog) -> None:
        """Events come from the end of the journal on, unless the sink says where it stands."""
        self._sink = sink
        self._buffer = buffer
        self._events = events
        self._events_done, self._signals_done = events.end, buffer.end
        self._placed = False
        self._pause = 0.0
        self._counts = SinkCounts()
        self._thread = threading.Thread(target=self._run, name=f"telemetry {sink.name}", daemon=True)

    @property
    def name(self) -> str:
        """The name of the sink."""
        return self._sink.name

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def counts(self) -> SinkCounts:
        """How the sink fares now."""
        return dataclasses.replace(self._counts, behind=self._events.end - self._events_done)

    def join(self, deadline: float) -> bool:
        """Wait for the end after the buffer was closed, until ``deadline`` (monotonic); whether it came."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            last = self._buffer.closed  # asked first: what is taken after that is all there will be
            more = self._turn()
            if not more and last:
                break
            if not more:
                down = self._pause > 0
                self._buffer.wait(math.inf if down else self._signals_done, self._pause or POLL_SECONDS)
        try:
            self._sink.close()
        except Exception as error:  # a library may raise anything, and the run must end
            self._failed(error)

    def _turn(self) -> bool:
        """Write one batch; whether there may be more to write at once."""
        try:
            self._find_place()
            batch, events_read, signals_read = self._next()
        except Exception as error:  # whatever it is, the thread goes on, and the sink is shown to be down
            return self._interrupted(error)
        try:
            if batch:
                self._sink.write(batch)
            else:
                self._sink.idle()
        except (StorageError, OSError) as error:
            return self._interrupted(error)
        except Exception as error:  # of these messages, or of the library: they would fail again
            self._failed(error)
            self._counts.lost += len(batch)
        else:
            self._works(len(batch))
        more = (events_read, signals_read) != (self._events_done, self._signals_done)
        self._events_done, self._signals_done = events_read, signals_read
        return more

    def _find_place(self) -> None:
        if not self._placed:
            position = self._sink.position()
            if position is not None:
                self._events_done = min(position, self._events.end)
            self._placed = True

    def _next(self) -> tuple[list[Message], int, int]:
        """What is to be written, in order, and the places in journal and buffer after it."""
        end = self._events.end  # asked first: what was put before that event is in the buffer by now
        signals, gone = self._buffer.after(self._signals_done, MOST_SIGNALS)
        self._counts.dropped += gone
        self._signals_done += gone
        if len(signals) == MOST_SIGNALS:
            end = min(end, signals[-1].place)
        events, read = self._events.after(self._events_done, end, MOST_EVENTS)
        if signals and signals[-1].place > read:
            signals = [message for message in signals if message.place <= read]
        return _merged(events, signals), read, self._signals_done + len(signals)

    def _works(self, written: int) -> None:
        self._counts.written += written
        self._pause = 0.0
        if self._counts.state == "down":
            self._counts.state = "up"
            log.warning("telemetry sink %s: takes messages again", self.name)

    def _interrupted(self, error: Exception) -> bool:
        self._failed(error)
        self._placed = False  # of a batch that failed a part may have arrived
        return False

    def _failed(self, error: Exception) -> None:
        self._counts.errors += 1
        reason = _CREDENTIALS.sub("://", " ".join(f"{type(error).__name__}: {error}".split()))
        self._counts.reason = reason[:200]
        self._pause = min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE)
        if self._counts.state == "up":
            self._counts.state = "down"
            log.warning("telemetry sink %s: %s", self.name, self._counts.reason)


def _merged(events: list[Message], signals: list[Message]) -> list[Message]:
    if not events or not signals:  # most often: a step has signals, and events are few
        return events or signals
    return list(heapq.merge(events, signals, key=lambda message: message.place))
