"""A run as lists show it, without decoding most of its journal.

A line is known by how it begins. Events that no list is made of, which are by far the most, are passed over;
when they were, and which epoch is the latest, is found out for the runs that are shown. What an outline says
is what RunView says.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from esper.errors import StorageError
from esper.messages import FieldReport
from esper.nissa.journal import Event, is_being_written, let_others_first, line_head, open_journal, parse_line
from esper.nissa.replay import ToldRun
from esper.nissa.run_records import Adaptation, Epoch, RunStatus, parse_time
from esper.nissa.run_view import BEGINNINGS, RunView

_OTHERS = ("cache", "checkpoint", "seed", "telemetry", "compile_queue", "invention", "lineage")
SKIPPED = (line_head("epoch"), *map(line_head, _OTHERS))
"""What is passed over: none of it changes decisions and their trials, faults, or how the run ended."""

_TRIAL = line_head("trial")
_NO_EPOCH = (*SKIPPED[1:], _TRIAL, *map(line_head, ("decision", "fault", "rollback")))
_BLOCK = 1 << 18
_LAST_BLOCK = 1 << 14
_HEAD = re.compile(rb'\{"event":"[a-z_]+","at":"')
_BEFORE_TIME = b'"at":"'
_TIME = b'0000-00-00T00:00:00.000+00:00"'
_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
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
        self._work = _Work(self.folder)

    def begin(self) -> None:
        """Read until it is known when the run was started, where it is not."""
        if self.started_at is None or self._told.is_replaced():
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
        self._work.follow(self._told)
        self.was_measured = True

    @property
    def size(self) -> float:
        """About how many bytes it keeps in memory."""
        return _RUN_BYTES + _MEMORY_OF_JSON * self._told.decoded_bytes

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
        return self._work.last

    @property
    def seconds(self) -> float:
        """How long the run's processes have worked."""
        return self._work.worked.total_seconds()

    @property
    def updated_at(self) -> datetime | None:
        """When the latest event was."""
        return self._work.updated_at


class _Mark(NamedTuple):
    """An event, up to byte ``end``, at which it changes how time counts; ``at`` is None if not understood."""

    end: int
    at: datetime | None
    counts: bool
    waits: bool
    """Whether the run waits from then on."""


class _Told(RunView):
    """What the events say that are not passed over; of the others nothing is right."""

    def __init__(self, folder: Path, skipped: tuple[bytes, ...]) -> None:
        super().__init__(folder, keep_packets=False)
        self.skipped = skipped
        self._reset()

    def _reset(self) -> None:
        self.marks: list[_Mark] = []
        self.taken_back: list[tuple[int, int]] = []
        """Up to which byte the epochs after which were thrown away."""

    @property
    def place(self) -> tuple[int, int]:
        """How often reading began again, and up to which byte it is now."""
        return self._reader.restarts, self._reader.offset

    @property
    def decoded_bytes(self) -> int:
        """How many bytes of the journal were not passed over."""
        return self._reader.decoded_bytes

    def is_replaced(self) -> bool:
        """Whether the journal is not the one that was read, or is not there."""
        return not self._reader.is_at(self._reader.path)

    def open(self) -> FileIO:
        """The journal as far as it was read; OSError when it is not there any more."""
        file = open_journal(self._reader.path)
        if not self._reader.is_at(file.fileno()):
            file.close()
            raise OSError("it was replaced while it was read")
        return file

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
            self.marks.append(_Mark(self._reader.offset, at, not begins and not waited, self.paused))
        self.epochs.clear()

    def _forget_after(self, epoch: int) -> None:
        self.taken_back.append((self._reader.offset, epoch))
        super()._forget_after(epoch)


class _Work:
    """The latest epoch, how long the run has worked, and when it was heard of last."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reset(0)

    def _reset(self, restarts: int) -> None:
        self._restarts = restarts
        self._end = 0
        self._waits = False
        self._taken_back = 0
        self.last: Epoch | None = None
        self.worked = timedelta()
        self.updated_at: datetime | None = None

    def follow(self, told: _Told) -> None:
        """Go as far as ``told`` has been read; StorageError when the journal cannot be read."""
        restarts, end = told.place
        if restarts != self._restarts:
            self._reset(restarts)
        if end == self._end:
            return
        try:
            with told.open() as file:
                self._find_last(file, told.taken_back, end)
                for mark in told.marks:
                    self._pass(file, mark)
                self._pass(file, _Mark(end, None, False, self._waits), marked=False)
        except OSError as error:
            raise StorageError.from_os(error, self._folder, "cannot read the journal in") from error
        told.marks.clear()

    def _pass(self, file: FileIO, mark: _Mark, *, marked: bool = True) -> None:
        """Count the time up to ``mark``, whose event is the last line until there if it is ``marked``."""
        clock = ToldRun(self._folder)
        clock.worked, clock.updated_at, clock.paused = self.worked, self.updated_at, self._waits
        start = self._end
        while start < mark.end:
            lines, start = _lines(file, start, mark.end)
            if marked and start == mark.end:
                lines.pop()
            _tell(clock, [line for line in lines if line])
        self.worked, self.updated_at = clock.worked, clock.updated_at
        if mark.at is not None:
            if mark.counts and self.updated_at is not None:
                self.worked += max(timedelta(), mark.at - self.updated_at)
            self.updated_at = mark.at
        self._end, self._waits = mark.end, mark.waits

    def _find_last(self, file: FileIO, taken_back: Sequence[tuple[int, int]], end: int) -> None:
        """The latest epoch is the last one that was not taken back; epochs that it replaced are older."""
        if len(taken_back) > self._taken_back:
            self._taken_back, known, self.last = len(taken_back), 0, None
        else:
            known = self._end
        left, most = list(taken_back), math.inf
        for place, line in _lines_back(file, known, end):
            while left and left[-1][0] > place:
                most = min(most, left.pop()[1])
            epoch = None if line.startswith(_NO_EPOCH) else _epoch_of(line, self._folder)
            if epoch is not None and epoch.epoch <= most:
                self.last = dataclasses.replace(epoch, packet={})
                return


def _tell(clock: ToldRun, lines: Sequence[bytes]) -> None:
    """Have ``clock`` count the time of ``lines``: where they are in order that is up to the last."""
    if clock.updated_at is None or not _in_order(lines, clock.updated_at):
        clock.tell(filter(None, map(parse_line, lines)), alive=False)
        return
    for line in reversed(lines):
        misunderstood = clock.damaged
        event = parse_line(line)
        if event is not None:
            clock.tell([event], alive=False)
            if clock.damaged == misunderstood:
                return


def _in_order(lines: Sequence[bytes], since: datetime) -> bool:
    """Whether each line is as a journal writes it, none of them earlier than the one before or ``since``."""
    places = [line.find(_BEFORE_TIME) + len(_BEFORE_TIME) for line in lines]
    heads = {line[:place] for line, place in zip(lines, places, strict=True)}
    times = [line[place : place + len(_TIME)] for line, place in zip(lines, places, strict=True)]
    if not times or b"".join(times).translate(_DIGITS) != _TIME * len(times):
        return False
    if times != sorted(times) or not all(map(_HEAD.fullmatch, heads)):
        return False
    try:
        return since <= parse_time(times[0][:-1].decode())
    except ValueError:
        return False


def _epoch_of(line: bytes, folder: Path) -> Epoch | None:
    event = parse_line(line)
    if event is None:
        return None
    run = ToldRun(folder)
    run.tell([event], alive=False)
    return run.last


def _lines(file: FileIO, start: int, end: int) -> tuple[list[bytes], int]:
    """Whole lines from byte ``start`` on, up to ``end`` at most, and where the next one begins."""
    size = _BLOCK
    while True:
        block = _bytes(file, start, min(end, start + size))
        cut = block.rfind(b"\n") + 1
        if cut:
            return block[: cut - 1].split(b"\n"), start + cut
        size *= 2


def _lines_back(file: FileIO, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """The lines between two bytes, the last one first, each with the byte after it."""
    place, begin, rest, size = end, end - 1, b"", _LAST_BLOCK
    while begin > start:
        block_begin = max(start, begin - size)
        lines = (_bytes(file, block_begin, begin) + rest).split(b"\n")
        rest = lines.pop(0) if block_begin > start else b""
        for line in reversed(lines):
            yield place, line
            place -= len(line) + 1
        begin, size = block_begin, min(2 * size, _BLOCK)


def _bytes(file: FileIO, start: int, end: int) -> bytes:
    """Exactly those; OSError when there are not as many."""
    let_others_first()
    found = os.pread(file.fileno(), end - start, start)
    if len(found) < end - start:
        raise OSError("it became shorter while it was read")
    return found
