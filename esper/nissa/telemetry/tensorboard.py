"""A sink of event files for TensorBoard, in the format of its own library."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from esper.errors import StorageError
from esper.nissa.telemetry.messages import Message
from esper.nissa.telemetry.record_file import RecordFile
from esper.nissa.telemetry.scalars import NOTED, Scalars

SHOWN = ("health",)
"""What is shown of a seed: a number takes longer here than a whole record elsewhere."""

FLUSH_SECONDS = 2.0
"""How long what was written may wait before others can see it."""

_files = itertools.count()


class TensorBoard:
    """Scalars under their names, and as text the events that change a run.

    A run that goes on adds a file to the same folder, as TensorBoard expects.
    """

    name = "tensorboard"

    def __init__(self, folder: Path, run_id: str) -> None:
        """Writes below ``folder``, which is made, to a file with the run's id in its name; StorageError."""
        # All that is imported is imported now: later it would take the interpreter from training.
        # Not the library's own writer: that hands each event to a thread of its own, which this sink has
        # already, and puts the name of the host into the name of the file.
        from tensorboard.compat.proto.event_pb2 import Event
        from torch.utils.tensorboard.summary import text

        self._event = Event
        self._text: Callable[[str, str], Any] = text
        name = f"events.out.tfevents.{int(time.time()):010d}.{run_id}.{os.getpid()}.{next(_files)}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._records = RecordFile(folder / name)
        except OSError as error:
            raise StorageError.from_os(error, folder, "cannot write to") from error
        self._scalars = Scalars(SHOWN)
        self._step = 0
        self._next_flush = 0.0
        self._add(time.time(), file_version="brain.Event:2")

    def position(self) -> None:
        """It keeps none."""

    def write(self, batch: Sequence[Message]) -> None:
        """Add the scalars and texts of ``batch``."""
        for message in batch:
            if scalars := list(self._scalars.of(message)):
                self._step = scalars[0].step
                event = self._event(wall_time=message.at, step=self._step)
                for each in scalars:
                    event.summary.value.add(tag=each.path, simple_value=each.value)
                self._records.write(event.SerializeToString())
            if message.kind == "event" and message.name in NOTED:
                shown = self._text(f"events/{message.name}", f"    {message.json}")
                self._add(message.at, summary=shown, step=self._step)
        self.idle()

    def idle(self) -> None:
        """Let others see what was written, now and then."""
        if time.monotonic() >= self._next_flush:
            self._records.flush()
            self._next_flush = time.monotonic() + FLUSH_SECONDS

    def close(self) -> None:
        """End the file."""
        self._records.close()

    def _add(self, at: float, **what: Any) -> None:
        self._records.write(self._event(wall_time=at, **what).SerializeToString())
