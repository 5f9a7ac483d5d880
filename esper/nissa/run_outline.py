"""A run as lists show it, without decoding most of its journal. What an outline says is what RunView says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from esper.messages import FieldReport
from esper.nissa.journal import JOURNAL_NAME, is_being_written, line_head
from esper.nissa.run_records import Adaptation, Epoch, RunStatus
from esper.nissa.sparse_view import REPLACED, SparseView

_PASSED = (*REPLACED, *map(line_head, ("seed", "invention", "lineage")))
"""What is passed over: none of it changes decisions and their trials, faults, or how the run ended."""

_TRIAL = line_head("trial")
_RUN_BYTES = 8000
_MEMORY_OF_JSON = 2.5
"""Bytes in memory of a run, and for each byte of JSON that was decoded and is not replaced; as measured."""


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
        self._view = SparseView(self.folder, (*_PASSED, _TRIAL))

    def begin(self) -> None:
        """Read until it is known when the run was started, where it is not."""
        self.started_at = self._view.begin()

    def refresh(self, *, trials: bool = False, last: bool = False) -> None:
        """Read what was written since; only with ``trials`` and ``last`` is it sure that those are known."""
        if trials and self._view.passes_over(_TRIAL):
            self._view = SparseView(self.folder, _PASSED)
        self._view.refresh(last=last)
        self.started_at = self._view.started_at
        self.was_read = True

    def measure(self) -> None:
        """As ``refresh``, with trials and the latest epoch."""
        self.refresh(trials=True, last=True)
        self.was_measured = True

    @property
    def is_alive(self) -> bool:
        """Whether a process writes its journal, now."""
        return is_being_written(self.folder / JOURNAL_NAME)

    @property
    def size(self) -> float:
        """About how many bytes it keeps in memory."""
        return _RUN_BYTES + _MEMORY_OF_JSON * self._view.kept_bytes

    # As of the last refresh.

    @property
    def status(self) -> RunStatus:
        """Whether the run goes on, and if not, how it ended."""
        return self._view.status

    @property
    def experiment(self) -> str:
        """What it was started as."""
        return self._view.experiment

    @property
    def task(self) -> str:
        """What it trains on."""
        return self._view.task

    @property
    def total_epochs(self) -> int:
        """How many epochs it trains for."""
        return self._view.total_epochs

    @property
    def adaptations(self) -> Sequence[Adaptation]:
        """Its decisions, oldest first."""
        return self._view.adaptations

    @property
    def trials(self) -> Sequence[FieldReport]:
        """Its verdicts on seeds, oldest first."""
        return self._view.trials

    @property
    def fault_counts(self) -> Counter[str]:
        """How many faults of kernels were caught, by kind."""
        return self._view.fault_counts

    @property
    def seconds(self) -> float:
        """How long the run's processes have worked."""
        return self._view.seconds

    @property
    def updated_at(self) -> datetime | None:
        """When the latest event was."""
        return self._view.updated_at

    @property
    def last(self) -> Epoch | None:
        """The latest epoch, without its packet, as of the last measure."""
        return self._view.last
