"""The one buffer between training and whatever takes its messages: bounded, and never waited for."""

from __future__ import annotations

import threading

from esper.nissa.telemetry.messages import Message


class SignalBuffer:
    """The latest ``capacity`` signals, for any number of readers, each with a place of its own.

    A signal put into a full buffer takes the place of the oldest: a reader that has not read that one yet is
    told how many it missed. Events are not kept here: they are in the journal before anything else happens,
    and readers find them there, so no event can be pushed out. Threads may share it.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._slots: list[Message | None] = [None] * capacity
        self._wake_every = max(1, capacity // 8)
        self._changed = threading.Condition()
        self.closed = False
        self.end = 0
        """How many were ever put, which is where a reader begins that wants none of them."""

    def put(self, message: Message) -> None:
        """Keep ``message``, at the price of the oldest one."""
        with self._changed:
            self._slots[self.end % self._capacity] = message
            self.end += 1
            # Readers look by themselves now and then; they are woken only when much has come.
            if self.end % self._wake_every == 0:
                self._changed.notify_all()

    def after(self, place: int, most: int) -> tuple[list[Message], int]:
        """Up to ``most`` signals from ``place`` on, and how many of those before them are gone."""
        with self._changed:
            first = max(place, self.end - self._capacity)
            last = min(self.end, first + most)
            begin, stop = first % self._capacity, first % self._capacity + (last - first)
            found = self._slots[begin:stop] + self._slots[: max(0, stop - self._capacity)]
        return [message for message in found if message is not None], first - place

    def wait(self, place: float, seconds: float) -> None:
        """Until much has come since ``place``, it is closed, or ``seconds`` have gone by."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed or self.end - place >= self._wake_every, seconds)

    def close(self) -> None:
        """Have every reader take what is left, and end."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
