"""The folder of runs as a list: each run in outline, read no further than what is asked for needs."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from esper.errors import StorageError
from esper.nissa.journal import JOURNAL_NAME
from esper.nissa.run_outline import RunOutline
from esper.nissa.run_records import RunStatus
from esper.nissa.run_view import RunView

KEPT_BYTES = 96 * 2**20
"""What is known of runs takes about this much memory at most; of those that began first it is read again."""


class RunList:
    """The runs in the folder ``root``, which need not exist before the first one.

    ``problems`` holds the runs whose journal could not be read, by id. What was never read before is not read
    after a ``deadline`` (``time.monotonic``): TimeoutError says how far that is. Not safe to share between
    threads.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problems: dict[str, StorageError] = {}
        self._outlines: dict[str, RunOutline] = {}

    @property
    def progress(self) -> str:
        """How many have been read."""
        outlines = list(self._outlines.values())
        read = sum(outline.was_read for outline in outlines)
        return f"the runs are read for the first time: {read} of {len(outlines)}"

    def run_ids(self) -> Sequence[str]:
        """The names of all folders that hold a journal, sorted. StorageError when ``root`` is unreadable."""
        try:
            with os.scandir(self.root) as entries:
                return sorted(entry.name for entry in entries if _holds_a_journal(entry))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError.from_os(error, self.root, "cannot read the runs in") from error

    def begun(self, deadline: float = math.inf) -> list[RunOutline]:
        """Every readable run, the one started last first; of each is known when that was, and no more."""
        known, self._outlines = self._outlines, {}
        for run_id in self.run_ids():
            self._outlines[run_id] = known.get(run_id) or RunOutline(self.root / run_id)
        self.problems = {}
        found = [
            each for each in self._outlines.values() if self._read(each, each.begin, each.was_read, deadline)
        ]
        found.sort(key=start_key, reverse=True)
        _make_room(found)
        return found

    def outline(self, run_id: str) -> RunOutline:
        """That of one run, as far as it was read before."""
        return self._outlines.setdefault(run_id, RunOutline(self.root / run_id))

    def refreshed(
        self,
        outlines: Iterable[RunOutline] | None = None,
        deadline: float = math.inf,
        *,
        trials: bool = False,
    ) -> Iterator[RunOutline]:
        """Those of ``outlines`` (all unless given) that can be read, as of now, each until the next one.

        Only with ``trials`` it is sure that those are read, too.
        """
        outlines = self.begun(deadline) if outlines is None else outlines
        kept = self._size()
        for each in outlines:
            kept -= each.size
            if self._read(each, partial(each.refresh, trials=trials), each.was_read, deadline):
                yield each
            kept += _size_or_drop(each, kept)

    def measured(
        self, outlines: Iterable[RunOutline] | None = None, deadline: float = math.inf
    ) -> Iterator[RunOutline]:
        """As ``refreshed``, each with its latest epoch and its trials."""
        outlines = self.begun(deadline) if outlines is None else outlines
        kept = self._size()
        for each in outlines:
            kept -= each.size
            if self._read(each, each.measure, each.was_measured, deadline):
                yield each
            kept += _size_or_drop(each, kept)

    def statuses(self, deadline: float = math.inf) -> dict[str, RunStatus]:
        """How each run stands, by its id, the one started last first."""
        return {each.run_id: each.status for each in self.refreshed(None, deadline)}

    def latest(self, ended: int, deadline: float = math.inf) -> list[str]:
        """The ids of those that go on and of so many others, of both the one started last first.

        Of runs without a process nothing is read but when they were started.
        """
        begun = self.begun(deadline)
        alive = self.refreshed((each for each in begun if each.is_alive), deadline)
        going = [each.run_id for each in alive if each.status.goes_on]
        others = (each.run_id for each in begun if each.run_id not in going)
        return [*going, *islice(others, ended)]

    def _read(self, outline: RunOutline, read: Callable[[], None], again: bool, deadline: float) -> bool:
        if not again and time.monotonic() > deadline:
            raise TimeoutError(self.progress)
        try:
            read()
        except StorageError as error:
            self.problems[outline.run_id] = error
            outline.drop()
            return False
        return True

    def _size(self) -> float:
        return sum(each.size for each in self._outlines.values())


def _make_room(outlines: Iterable[RunOutline]) -> None:
    """Of the oldest forget what is too much, and a quarter more for newer ones."""
    kept = 0.0
    for each in outlines:
        if kept + each.size > KEPT_BYTES * 3 // 4:
            each.drop()
        kept += each.size


def _size_or_drop(outline: RunOutline, others: float) -> float:
    """Its size, without what there is no room for beside ``others``."""
    if others + outline.size > KEPT_BYTES:
        outline.drop()
    return outline.size


def start_key(view: RunView | RunOutline) -> tuple[float, str]:
    """What runs are sorted by: when each was started, and its id."""
    return (view.started_at.timestamp() if view.started_at else 0.0, view.run_id)


def _holds_a_journal(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir() and (Path(entry) / JOURNAL_NAME).exists()
    except OSError:
        return True  # a folder that may not be entered is a problem to report, not a run to leave out
