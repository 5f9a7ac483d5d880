"""The folder that holds the runs: list them, open one by name, make room for a new one."""

from __future__ import annotations

import difflib
import math
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from esper.errors import RunError, StorageError
from esper.nissa.run_list import RunList
from esper.nissa.run_outline import RunOutline
from esper.nissa.run_records import RunStatus
from esper.nissa.run_view import RunView
from esper.nissa.sparse_view import SparseView

__all__ = ["LATEST", "RunStatus", "RunStore", "RunSummary", "RunView", "new_run_id"]

LATEST = "latest"
"""The name that ``RunStore.find`` takes for the run that was started last."""

KEPT_ENDED = 100
"""So many runs that have ended are kept by a store that keeps less."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run in one line. ``loss``, ``held_out_loss`` and ``accuracy`` are those of its latest epoch.

    ``epochs`` counts those that are done, ``adaptations`` the changes of the network, ``kept`` the seeds that
    passed their trial and the growths of the host's own shape; ``started`` is ISO 8601 in UTC.
    """

    run_id: str
    experiment: str
    task: str
    status: RunStatus
    started: str
    seconds: float
    epochs: int
    total_epochs: int
    loss: float | None
    held_out_loss: float | None
    accuracy: float | None
    adaptations: int
    kept: int
    faults: int
    path: str

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``dumps``."""
        return asdict(self)


def summarize(view: RunView | RunOutline) -> RunSummary:
    """The one line of ``view``; an outline has to be measured."""
    last = view.last
    return RunSummary(
        run_id=view.run_id,
        experiment=view.experiment,
        task=view.task,
        status=view.status,
        started=view.started_at.isoformat() if view.started_at else "",
        seconds=view.seconds,
        epochs=last.epoch + 1 if last else 0,
        total_epochs=view.total_epochs,
        loss=last.loss if last else None,
        held_out_loss=last.held_out_loss if last else None,
        accuracy=last.accuracy if last else None,
        adaptations=sum(adaptation.performed for adaptation in view.adaptations),
        kept=sum(trial.verdict == "kept" for trial in view.trials)
        + sum(item.status == "grown" for item in view.adaptations),
        faults=view.fault_counts.total(),
        path=str(view.folder),
    )


def new_run_id(experiment: str, now: datetime | None = None) -> str:
    """An id that sorts by time and says what it ran: ``20261123-181502-resnet-3f2a`` (UTC)."""
    now = now or datetime.now(UTC)
    slug = re.sub(r"[^a-z0-9]+", "-", experiment.lower()).strip("-")[:40].rstrip("-") or "run"
    return f"{now.astimezone(UTC):%Y%m%d-%H%M%S}-{slug}-{secrets.token_hex(2)}"


class RunStore:
    """The runs in the folder ``root``, which need not exist before the first one.

    Views are kept and only what was appended since is read, so asking again is cheap. Not safe to share
    between threads, but one may be in the ``outlines`` while another reads views.
    """

    def __init__(self, root: Path, *, keep_packets: bool = True, sparse: bool = False) -> None:
        """Without ``keep_packets`` it is for a process that follows many runs, and keeps less of them.

        Its views are ``sparse`` where only how runs stand now is asked for.
        """
        self.root = root
        self.outlines = RunList(root)
        self._keep_packets = keep_packets
        self._sparse = sparse
        self._views: dict[str, RunView] = {}

    @property
    def problems(self) -> dict[str, StorageError]:
        """The runs whose journal could not be read at the last look, by id."""
        return self.outlines.problems

    def create(self, experiment: str) -> Path:
        """Make the folder of a new run, which no other process gets too; its name is the run's id."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            while True:
                folder = self.root / new_run_id(experiment)
                try:
                    folder.mkdir()
                except FileExistsError:
                    continue
                return folder
        except OSError as error:
            raise StorageError.from_os(error, self.root, "cannot create a run in") from error

    def run_ids(self) -> Sequence[str]:
        """The names of all folders that hold a journal, sorted. StorageError when ``root`` is unreadable."""
        return self.outlines.run_ids()

    def views(self) -> Sequence[RunView]:
        """Every readable run as of now, whole, the one started last first."""
        return [*self.some([each.run_id for each in self.outlines.begun()])]

    def open(self, name: str) -> RunView:
        """The run that ``find`` finds; StorageError when its journal cannot be read."""
        return self.view(self.find(name))

    def find(self, name: str, deadline: float = math.inf) -> str:
        """The id of the run of that id, of that unique beginning of an id, or ``latest``.

        Reads no journal, but for ``latest`` the beginning of each. Raises RunError with the nearest names
        when there is none or more than one, StorageError when no journal can be read, and TimeoutError where
        after ``deadline`` (``time.monotonic``) much was never read before.
        """
        run_ids = self.run_ids()
        if not run_ids:
            raise RunError(f"no runs in {self.root}", hint="start one with: esper train +experiment=smoke")
        if name in run_ids:
            return name
        if name == LATEST:
            return self._latest(deadline)
        matches = [run_id for run_id in run_ids if name and run_id.startswith(name)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            more = "" if len(matches) <= 5 else f" and {len(matches) - 5} more"
            raise RunError(
                f"{name!r} is the beginning of {len(matches)} runs: {', '.join(matches[-5:])}{more}",
                hint="give more of the id",
            )
        near = difflib.get_close_matches(name, run_ids, n=3, cutoff=0.4)
        nearest = f"; nearest: {', '.join(near)}" if near else ""
        raise RunError(f"no run {name!r} in {self.root}{nearest}", hint="list them with: esper runs ls")

    def list(self, most: int | None = None) -> list[RunSummary]:
        """One line for every readable run, or so many at most, the one started last first."""
        return list(islice(map(summarize, self.outlines.measured()), most))

    def view(self, run_id: str) -> RunView:
        """The run of exactly that id; StorageError when its journal cannot be read."""
        view = self._views.pop(run_id, None) or self._new_view(run_id)
        before = view.updated_at
        view.refresh()
        self._views[run_id] = view
        if not self._keep_packets:
            # Of another host's run it may not be seen that its process lives, so it has to be quiet, too.
            if not view.status.goes_on and (view.ended is not None or view.updated_at == before):
                view.shed()
            self._forget_oldest()
        return view

    def _new_view(self, run_id: str) -> RunView:
        if self._sparse:
            return SparseView(self.root / run_id)
        return RunView(self.root / run_id, keep_packets=self._keep_packets)

    def some(self, run_ids: Sequence[str], deadline: float = math.inf) -> Iterator[RunView]:
        """Those of ``run_ids`` that can be read, whole and as of now.

        After ``deadline`` (``time.monotonic``) those that were not read before are not begun: TimeoutError.
        """
        for number, run_id in enumerate(run_ids):
            if run_id not in self._views and time.monotonic() > deadline:
                raise TimeoutError(f"the runs are read for the first time: {number} of {len(run_ids)}")
            try:
                yield self.view(run_id)
            except StorageError as error:
                self.problems[run_id] = error

    def _forget_oldest(self) -> None:
        """Of runs that have ended keep those that were asked for last."""
        ended = [run_id for run_id, each in self._views.items() if not each.status.goes_on]
        for run_id in ended[:-KEPT_ENDED]:
            del self._views[run_id]

    def _latest(self, deadline: float) -> str:
        begun = self.outlines.begun(deadline)
        if not begun:
            raise next(iter(self.problems.values()), RunError(f"no runs in {self.root}"))
        return begun[0].run_id
