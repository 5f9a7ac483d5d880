"""A run as lists show it, without decoding most of its journal.

A line is known by how it begins. Events that no list is made of, which are by far the most, are passed over;
when they were, and which epoch is the latest, is found out for the runs that are shown. What an outline says
is what RunView says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from esper.messages import FieldReport
from esper.nissa.journal import Event, JournalReader, is_being_written, line_head
from esper.nissa.run_records import Adaptation, Epoch, RunStatus
from esper.nissa.run_times import Mark, RunTimes
from esper.nissa.run_view import BEGINNINGS, RunView

_OTHERS = ("cache", "checkpoint", "seed", "telemetry", "compile_queue", "invention", "lineage")
SKIPPED = (line_head("epoch"), *map(line_head, _OTHERS))
"""What is passed over: none of it changes decisions and their trials, faults, or how the run ended."""

_TRIAL = line_head("trial")
_RUN_BYTES = 8000
_MEMORY_OF_JSON = 2.5
"""Bytes in memory of a run, and for each byte of JSON that was decoded; as measured."""


class RunOutline:
    """One run in outline; ``begin``, ``refresh`` and ``measure`` read its journal, each more of it.

    They raise StorageError when it cannot be read. Not safe to share between threads.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_id = folder.name
        self.was_read = self.was_measured = False
        """Whether that was ever done to the end."""
        self.started_at: datetime | None = None
        self.drop()

    def drop(self) -> None:
        """Keep nothing but when the run was started."""
        self._told = _Told(self.folder, (*SKIPPED, _TRIAL))
        self._times = RunTimes(self.folder)

    def begin(self) -> None:
        """Read until it is known when the run was started, where it is not."""
        reader = self._told.reader
        if self.started_at is None or not reader.is_at(reader.path):
            self._told.read_on(to_start=True)
            self.started_at = self._told.started_at

    def refresh(self, *, trials: bool = False) -> None:
        """Read what was written since; only with ``trials`` is it sure that those are read, too."""
        if trials and _TRIAL in self._told.skipped:
            self.drop()
            self._told.skipped = SKIPPED
        self._told.read_on()
        self.started_at = self._told.started_at
        self.was_read = True

    def measure(self) -> None:
        """As ``refresh`` with trials, and find the latest epoch and how long the run has worked."""
        self.refresh(trials=True)
        self._times.follow(self._told.reader, self._told.marks, self._told.taken_back)
        self._told.marks.clear()
        self.was_measured = True

    @property
    def size(self) -> float:
        """About how many bytes it keeps in memory."""
        return _RUN_BYTES + _MEMORY_OF_JSON * self._told.reader.decoded_bytes

    # As of the last refresh.

    @property
    def status(self) -> RunStatus:
        """Whether the run goes on, and if not, how it ended."""
        return self._told.status

    @property
    def experiment(self) -> str:
        """What it was started as."""
        return self._told.experiment

    @property
    def task(self) -> str:
        """What it trains on."""
        return self._told.task

    @property
    def total_epochs(self) -> int:
        """How many epochs it trains for."""
        return self._told.total_epochs

    @property
    def adaptations(self) -> Sequence[Adaptation]:
        """Its decisions, oldest first."""
        return self._told.adaptations

    @property
    def trials(self) -> Sequence[FieldReport]:
        """Its verdicts on seeds, oldest first."""
        return self._told.trials

    @property
    def fault_counts(self) -> Counter[str]:
        """How many faults of kernels were caught, by kind."""
        return self._told.fault_counts

    # As of the last measure.

    @property
    def last(self) -> Epoch | None:
        """The latest epoch, without its packet."""
        return self._times.last

    @property
    def seconds(self) -> float:
        """How long the run's processes have worked."""
        return self._times.worked.total_seconds()

    @property
    def updated_at(self) -> datetime | None:
        """When the latest event was."""
        return self._times.updated_at


class _Told(RunView):
    """What the events say that are not passed over; of the others nothing is right."""

    def __init__(self, folder: Path, skipped: tuple[bytes, ...]) -> None:
        super().__init__(folder, keep_packets=False)
        self.skipped = skipped
        self._reset()

    def _reset(self) -> None:
        self.marks: list[Mark] = []
        self.taken_back: list[tuple[int, int]] = []
        """Up to which byte the epochs after which were thrown away."""

    @property
    def reader(self) -> JournalReader:
        """How far the journal was read."""
        return self._reader

    def read_on(self, *, to_start: bool = False) -> None:
        """Read what was written since, or only until it is known when the run was started."""
        self._alive = is_being_written(self._reader.path)
        for event in self._reader.read(self.skipped):
            self._start_over_if_replaced()
            self._apply(event)
            if to_start and self.started_at is not None:
                return
        self._start_over_if_replaced()

    def _start_over_if_replaced(self) -> None:
        if self._reader.restarts != self._restarts:
            self._reset()
        super()._start_over_if_replaced()

    def _apply(self, event: Event) -> None:
        misunderstood, waited = self._misunderstood, self.paused
        super()._apply(event)
        at = self.updated_at if self._misunderstood == misunderstood else None
        begins = event["event"] in BEGINNINGS
        if at is None or begins or self.paused != waited:
            self.marks.append(Mark(self._reader.offset, at, not begins and not waited, self.paused))
        self.epochs.clear()

    def _forget_after(self, epoch: int) -> None:
        self.taken_back.append((self._reader.offset, epoch))
        super()._forget_after(epoch)
