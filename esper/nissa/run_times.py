"""When the events of a run were, and its latest epoch, found without decoding most of its journal."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from esper.errors import StorageError
from esper.nissa.journal import JournalReader, line_head, open_journal, parse_line
from esper.nissa.replay import ToldRun
from esper.nissa.run_records import Epoch, parse_time
from esper.nissa.turns import let_others_first

_OTHERS = (
    "decision",
    "seed",
    "trial",
    "fault",
    "rollback",
    "cache",
    "checkpoint",
    "telemetry",
    "compile_queue",
)
_NO_EPOCH = tuple(map(line_head, _OTHERS))
_BLOCK = 1 << 18
_LAST_BLOCK = 1 << 14
_HEAD = re.compile(rb'\{"event":"[a-z_]+","at":"')
_BEFORE_TIME = b'"at":"'
_TIME = b'0000-00-00T00:00:00.000+00:00"'
_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)


class Mark(NamedTuple):
    """An event, up to byte ``end``, at which it changes how time counts; ``at`` is None if not understood."""

    end: int
    at: datetime | None
    counts: bool
    waits: bool
    """Whether the run waits from then on."""


class RunTimes:
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

    def follow(
        self, reader: JournalReader, marks: Sequence[Mark], taken_back: Sequence[tuple[int, int]]
    ) -> None:
        """Go as far as ``reader`` has; StorageError when the journal cannot be read.

        ``marks`` are those since the last time, ``taken_back`` all (byte, epoch): what was lived before that
        byte and after that epoch was thrown away.
        """
        if reader.restarts != self._restarts:
            self._reset(reader.restarts)
        if reader.offset == self._end:
            return
        try:
            with open_journal(reader.path) as file:
                if not reader.is_at(file.fileno()):
                    raise OSError("it was replaced while it was read")
                self._find_last(file, taken_back, reader.offset)
                for mark in marks:
                    self._pass(file, mark)
                self._pass(file, Mark(reader.offset, None, False, self._waits), marked=False)
        except OSError as error:
            raise StorageError.from_os(error, reader.path, "cannot read the journal") from error

    def _pass(self, file: FileIO, mark: Mark, *, marked: bool = True) -> None:
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
