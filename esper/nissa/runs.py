"""The folder that holds the runs: list them, open one by name, make room for a new one."""

from __future__ import annotations

import difflib
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from esper.errors import RunError, StorageError
from esper.nissa.journal import JOURNAL_NAME, JournalReader
from esper.nissa.run_records import RunStatus, parse_time
from esper.nissa.run_view import RunView

__all__ = ["LATEST", "RunStatus", "RunStore", "RunSummary", "RunView", "new_run_id"]

LATEST = "latest"
"""The name that ``RunStore.find`` takes for the run that was started last."""

FIRST_EVENTS = 100
"""A run tells among these when it began."""


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


def summarize(view: RunView) -> RunSummary:
    """The one line of ``view``."""
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

    Views are kept and only what was appended since is read, so asking again is cheap. ``problems`` holds the
    runs whose journal could not be read at the last look, by id. Not safe to share between threads.
    """

    def __init__(self, root: Path, *, keep_packets: bool = True) -> None:
        self.root = root
        self.problems: dict[str, StorageError] = {}
        self._keep_packets = keep_packets
        self._views: dict[str, RunView] = {}

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
        try:
            with os.scandir(self.root) as entries:
                return sorted(entry.name for entry in entries if _holds_a_journal(entry))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError.from_os(error, self.root, "cannot read the runs in") from error

    def views(self) -> Sequence[RunView]:
        """Every readable run as of now, the one started last first."""
        run_ids = self.run_ids()
        self._views = {run_id: view for run_id, view in self._views.items() if run_id in set(run_ids)}
        self.problems = {}
        views = []
        for run_id in run_ids:
            try:
                views.append(self.view(run_id))
            except StorageError as error:
                self.problems[run_id] = error
        return sorted(views, key=start_key, reverse=True)

    def open(self, name: str) -> RunView:
        """The run that ``find`` finds; StorageError when its journal cannot be read."""
        return self.view(self.find(name))

    def find(self, name: str) -> str:
        """The id of the run of that id, of that unique beginning of an id, or ``latest``.

        Reads no journal, but for ``latest`` the beginning of each. Raises RunError with the nearest names
        when there is none or more than one, and StorageError when no journal can be read.
        """
        run_ids = self.run_ids()
        if not run_ids:
            raise RunError(f"no runs in {self.root}", hint="start one with: esper train +experiment=smoke")
        if name in run_ids:
            return name
        if name == LATEST:
            return self._latest(run_ids)
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

    def list(self) -> list[RunSummary]:
        """One line for every readable run, the one started last first."""
        return [summarize(view) for view in self.views()]

    def view(self, run_id: str) -> RunView:
        """The run of exactly that id; StorageError when its journal cannot be read."""
        view = self._views.get(run_id)
        if view is None:
            view = self._views[run_id] = RunView(self.root / run_id, keep_packets=self._keep_packets)
        return view.refresh()

    def _latest(self, run_ids: Sequence[str]) -> str:
        started: dict[str, float] = {}
        problems = []
        for run_id in run_ids:
            try:
                started[run_id] = _started(self.root / run_id / JOURNAL_NAME)
            except StorageError as error:
                problems.append(error)
        if not started:
            raise problems[0]
        return max(started, key=lambda run_id: (started[run_id], run_id))


def _started(journal: Path) -> float:
    """When the run began that ``journal`` tells of, in Unix seconds; 0 where its first events do not say."""
    for event in islice(JournalReader(journal).read(), FIRST_EVENTS):
        if event["event"] in ("preparing", "run_started"):
            try:
                return parse_time(event["at"]).timestamp()
            except (KeyError, TypeError, ValueError):
                continue
    return 0.0


def _holds_a_journal(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir() and (Path(entry) / JOURNAL_NAME).exists()
    except OSError:
        return True  # a folder that may not be entered is a problem to report, not a run to leave out


def start_key(view: RunView) -> tuple[float, str]:
    """What runs are sorted by: when each was started, and its id."""
    return (view.started_at.timestamp() if view.started_at else 0.0, view.run_id)
