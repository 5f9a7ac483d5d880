"""Where the training loop says what happens: one journal, any number of listeners, and telemetry."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from esper.errors import StorageError
from esper.kasmina import signals_so_far
from esper.nissa.journal import Journal
from esper.nissa.telemetry.health_record import pack
from esper.nissa.telemetry.telemetry import Telemetry
from esper.security.privacy import kept, shown

Listener = Callable[[str, Mapping[str, Any]], None]
"""Receives each event's name and fields, in order, on the training thread: it must return quickly."""

COUNTS_EVERY = 1.0
"""Seconds at least between two epochs that end with how sinks fare: epochs of milliseconds would cost more to
count than to tell."""

_LIVE_ONLY = frozenset({"step", "compile", "message"})
_ENDINGS = frozenset({"run_finished", "run_interrupted", "run_failed"})


class Recorder:
    """Writes each event to the journal and tells every listener.

    The journal is written first, so a listener never shows what is not recorded, and telemetry takes events
    from there. ``step``, ``compile`` and ``message`` are for people who watch and are not kept; ``step`` goes
    to telemetry. Of many processes all but the first have None for ``journal``, and no listeners.
    """

    def __init__(
        self,
        journal: Journal | None,
        listeners: Sequence[Listener] = (),
        telemetry: Telemetry | None = None,
    ) -> None:
        self.journal = journal
        self.listeners = tuple(listeners)
        self.telemetry = telemetry
        self._due = False
        self._next_counts = 0.0
        self._counted = True

    def emit(self, event: str, **fields: Any) -> None:
        """Record one event; raises StorageError when the journal cannot be written."""
        if event in _ENDINGS and not self._counted:
            self._count()
        if self.journal is not None and event not in _LIVE_ONLY:
            self.journal.write(event, **kept(fields))
        if self.telemetry is not None and event == "step":
            self._due = self.telemetry.due()
            if self._due:
                self.telemetry.step(fields)
        said = shown(fields)
        for listener in self.listeners:
            listener(event, said)
        if event == "epoch":
            self._counted = False
            if time.monotonic() >= self._next_counts:
                self._count()

    def _count(self) -> None:
        if self.telemetry is not None:
            self._counted = True
            self._next_counts = time.monotonic() + COUNTS_EVERY
            self.emit("telemetry", sinks=self.telemetry.counts())

    def health(self, epoch: int, step: int, model: nn.Module) -> None:
        """Tell telemetry, if it was told of this step, how each layer fares after it; it was observed."""
        if self.telemetry is None or not self._due:
            return
        for name, layer in signals_so_far(model).items():
            self.telemetry.health(pack(name, epoch, step, layer.sampled, layer.states, layer.values))

    def close(self) -> None:
        """Let sinks take what is left, journal what some did not, and close the journal."""
        telemetry, self.telemetry = self.telemetry, None
        if telemetry is not None:
            telemetry.close()
            sinks = telemetry.counts()
            if self.journal is not None and any(sink.misses_something for sink in sinks.values()):
                with contextlib.suppress(StorageError):  # on a full disk the run has said so
                    self.journal.write("telemetry", sinks=sinks)
        if self.journal is not None:
            self.journal.close()
