"""A sink of event files for TensorBoard, written by its own library."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from esper.nissa.journal import dumps
from esper.nissa.telemetry.messages import Message
from esper.nissa.telemetry.scalars import NOTED, Scalars

HEALTH = "seed/health"
"""What is shown of a seed: its library takes longer for a number than all else takes for a record."""

FLUSH_SECONDS = 2.0
"""How long what was written may wait before others can see it."""


class TensorBoard:
    """Scalars under their names, and as text the events that change a run.

    A run that goes on adds a file to the same folder, as TensorBoard expects.
    """

    name = "tensorboard"

    def __init__(self, folder: Path, run_id: str) -> None:
        """Writes below ``folder``, which is made, to a file with the run's id in its name."""
        from tensorboard.summary.writer import event_file_writer
        from torch.utils.tensorboard.writer import SummaryWriter

        # The name of the host would be in the file's name otherwise, and leave with the file.
        library, event_file_writer.socket = (
            event_file_writer.socket,
            SimpleNamespace(gethostname=lambda: run_id),
        )
        try:
            self._writer = SummaryWriter(str(folder))
        finally:
            event_file_writer.socket = library
        self._scalars = Scalars()
        self._step = 0
        self._next_flush = 0.0

    def position(self) -> None:
        """It keeps none."""

    def write(self, batch: Sequence[Message]) -> None:
        """Add the scalars and texts of ``batch``."""
        for message in batch:
            for scalar in self._scalars.of(message):
                if scalar.labels and scalar.name != HEALTH:
                    continue
                self._step = scalar.step
                self._writer.add_scalar(scalar.path, scalar.value, scalar.step, message.at)
            if message.kind == "event" and message.name in NOTED:
                text = f"    {dumps(message.fields)}"
                self._writer.add_text(f"events/{message.name}", text, self._step, message.at)
        self.idle()

    def idle(self) -> None:
        """Let others see what was written, now and then."""
        if time.monotonic() >= self._next_flush:
            self._writer.flush()
            self._next_flush = time.monotonic() + FLUSH_SECONDS

    def close(self) -> None:
        """End the file."""
        self._writer.close()
