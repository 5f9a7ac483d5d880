"""A run as it stands now, without decoding most of its journal."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from pathlib import Path

from esper.nissa.journal import Event, is_being_written, line_head
from esper.nissa.run_view import RunView

_EPOCH = line_head("epoch")
REPLACED = (_EPOCH, *map(line_head, ("cache", "checkpoint", "compile_queue", "telemetry")))
"""Events of which each says all that the one before it said."""


class SparseView(RunView):
    """As ``RunView``, of a run whose earlier epochs, checkpoints and counts nobody asks for.

    Of the events in ``replaced`` only the latest are sure to be read. ``epochs`` and ``checkpoints`` have
    gaps before the last, no epoch has its packet, and ``damaged`` does not count all.
    """

    def __init__(self, folder: Path, replaced: tuple[bytes, ...] = REPLACED) -> None:
        super().__init__(folder, keep_packets=False)
        self._replaced = replaced
        self._last_is_known = True

    @property
    def kept_bytes(self) -> int:
        """How many bytes of the journal its records were made of."""
        return self._reader.kept_bytes

    def passes_over(self, head: bytes) -> bool:
        """Whether earlier lines that begin so are not read."""
        return head in self._replaced

    def begin(self) -> datetime | None:
        """When the run was started; no more is read than is needed to know it."""
        if self.started_at is None or not self._reader.is_more():
            self._alive = is_being_written(self._reader.path)
            for event in self._reader.read(self._replaced):
                self._start_over_if_replaced()
                self._apply(event)
                if self.started_at is not None:
                    break
            self._start_over_if_replaced()
        return self.started_at

    def refresh(self, *, last: bool = True) -> RunView:
        """As ``RunView.refresh``; only with ``last`` it is sure that the latest epoch is known."""
        super().refresh()
        if self.damaged and self._replaced:
            # What was passed over may count where what should have replaced it cannot be understood.
            self._read_all_but(())
        elif last and not self._last_is_known and _EPOCH in self._replaced:
            self._read_all_but(tuple(head for head in self._replaced if head != _EPOCH))
        return self

    def _read_all_but(self, replaced: tuple[bytes, ...]) -> None:
        self._replaced = replaced
        self._reader.begin_again()
        super().refresh()

    def _apply(self, event: Event) -> None:
        misunderstood = self._misunderstood
        super()._apply(event)
        if event["event"] == "epoch" and self._misunderstood == misunderstood:
            self._last_is_known = True
            self.epochs[-1] = dataclasses.replace(self.epochs[-1], packet={})

    def _forget_after(self, epoch: int) -> None:
        super()._forget_after(epoch)
        self._last_is_known = False
