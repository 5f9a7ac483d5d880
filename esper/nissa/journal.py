"""The journal of a run: one file, appended to, one JSON object a line.

Events and their fields (each also has ``event``, its name, and ``at``, UTC in ISO 8601):

===================  =====================================================================================
``preparing``        experiment, task, seed, total_epochs; before ``run_started``, where kernels are compiled
                     first
``run_started``      run_id, experiment, task, seed, resumed_from_epoch (last epoch of the checkpoint, or
                     null), parameters, flops_per_sample, total_epochs, layers {name: {kind, seeds}}
``epoch``            packet (a SystemStatePacket), seconds, samples_per_second, training_flops
``decision``         epoch, decision (an AdaptationDecision), outcome {status, kernel_id, reason}
``seed``             epoch, layer, seed_idx, kernel_id, from_state, to_state, evidence
``trial``            report (a FieldReport)
``fault``            epoch, layer, seed_idx, kernel_id, kind, message
``cache``            tiers {name: {hits, misses, errors, state}}, counted since the process started,
                     after an epoch that changed them; state is that of a circuit breaker (closed, open,
                     half-open) or null; older journals have tiers {name: [hits, misses]}
``compile_queue``    waiting, compiling, workers, oldest (a CompileQueue): what is compiled for the run, when
                     that changes, but at most once a second
``telemetry``        sinks {name: {written, dropped, lost, errors, behind, state, reason}}, counted since the
                     process started; after an epoch, but at most once a second, and before the end
``checkpoint``       epoch (how many are done), step, path, seconds to write it, paused (of training)
``control``          request, action (pause, resume, rollback), outcome (done, refused), reason, epoch and
                     step (how many are done); after ``pause`` the run waits until ``resume``
``run_finished``     summary
``run_interrupted``  epoch (how many are done)
``run_failed``       error
===================  =====================================================================================

Readers ignore events and fields that they do not know. Each ``epoch``, ``cache``, ``checkpoint``,
``compile_queue`` and ``telemetry`` says all that the one before it said of the same process. Numbers that
JSON lacks are written as the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"`` (as in the JSON mapping of
protocol buffers).

A journal is locked (``flock``) by the process that writes it, and the lock ends with that process however it
ends, so ``is_being_written`` tells a live run from one whose process is gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import threading
import time
import weakref
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from esper.errors import RunError, StorageError

JOURNAL_NAME = "journal.jsonl"
"""Name of the journal in a run's folder."""

COPY_NAME = "mirrored"
"""Name of the file in a run's folder that says that it is a copy of a run of another host."""

DURABLE_EVENTS = frozenset(
    {"run_started", "epoch", "checkpoint", "control", "run_finished", "run_interrupted", "run_failed"}
)
"""Events after which the journal is on the disk, not only with the operating system."""

BEGINNINGS = ("preparing", "run_started")
"""Events that a process begins with: what was before them is no time that the run worked."""

Event = dict[str, Any]
"""One line of a journal."""

_LOCK_WAIT_SECONDS = 0.5


class LineTrail(Protocol):
    """Gives some lines an entry of an audit trail; see ``esper.security.audit_lines``, which has one."""

    def begin(self, path: Path, /) -> None:
        """Go on where the file ends; it is locked."""
        ...

    def sealed(self, event: str, line: str, /) -> str | None:
        """``line`` with its entry; None for an event that has none."""
        ...

    def written(self) -> None:
        """That line is on the disk."""
        ...


class Journal:
    """Appends events to one file; safe to share between threads, never between processes.

    Opening creates the file and locks it. A line that an earlier process left unfinished is ended first, so
    that what is written next stays whole. Raises RunError when another process writes the same journal, and
    StorageError when the file cannot be opened, locked or written.
    """

    def __init__(self, path: Path, *, fsync: bool = True, trail: LineTrail | None = None) -> None:
        """Lines for which ``trail`` has an entry carry it, and are on the disk when ``write`` returns."""
        self.path = path
        self._trail = trail
        self._fsync = fsync
        self._mutex = threading.Lock()
        try:
            self._fd: int | None = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError.from_os(error, path, "cannot open the journal") from error
        try:
            _lock(self._fd, path)
            size = os.fstat(self._fd).st_size
            self.end = size
            """How many bytes it has."""
            self._torn = size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"
            if fsync and size == 0:
                _sync_folder(path.parent)
            if trail is not None:
                trail.begin(path)
        except OSError as error:
            self.close()
            raise StorageError.from_os(error, path, "cannot open the journal") from error
        except BaseException:
            self.close()
            raise
        _open_journals.add(self)

    def write(self, event: str, /, **fields: Any) -> None:
        """Append one event with one call to the operating system; durable for ``DURABLE_EVENTS``.

        ``fields`` hold plain data, mappings, dataclasses, paths; anything else is a TypeError. Raises
        StorageError when the disk is full or the file cannot be written.
        """
        if not fields.keys().isdisjoint({"event", "at"}):
            raise ValueError("'event' and 'at' are set by the journal itself")
        line = dumps({"event": event, "at": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields})
        with self._mutex:
            if self._fd is None:
                raise ValueError(f"the journal {self.path} is closed")
            sealed = None if self._trail is None else self._trail.sealed(event, line)
            try:
                self._append(self._fd, (sealed or line).encode("ascii") + b"\n")
                if self._fsync and (sealed or event in DURABLE_EVENTS):
                    os.fsync(self._fd)
            except OSError as error:
                raise StorageError.from_os(error, self.path, "cannot write the journal") from error
            if sealed and self._trail is not None:
                self._trail.written()

    def copy(self, event: Event) -> None:
        """Append an event that another journal has, with the time that it has there; errors as ``write``."""
        line = dumps(event).encode("ascii") + b"\n"
        with self._mutex:
            if self._fd is None:
                raise ValueError(f"the journal {self.path} is closed")
            try:
                self._append(self._fd, line)
            except OSError as error:
                raise StorageError.from_os(error, self.path, "cannot write the journal") from error

    def _append(self, fd: int, line: bytes) -> None:
        data = memoryview(b"\n" + line if self._torn else line)
        while data:
            # On a disk that fills up the first call may take a part of the line and the next one raise.
            written = os.write(fd, data)
            data = data[written:]
            self.end += written
            self._torn = bool(data)

    def close(self) -> None:
        """Release the file and its lock; a second call does nothing."""
        with self._mutex:
            fd, self._fd = self._fd, None
            if fd is not None:
                with contextlib.suppress(OSError):  # where files have no locks there is none to release
                    # A forked worker may hold a copy of the file, and with it the lock, for an instant.
                    fcntl.flock(fd, fcntl.LOCK_UN)
                os.close(fd)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def is_being_written(path: Path) -> bool:
    """Whether a living process holds the journal at ``path``; False when there is no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        # No locks on this file system: Journal refuses to write there, so nobody does.
        return False
    finally:
        os.close(fd)
    return False


def dumps(value: Any) -> str:
    """One line of strict JSON in ASCII; non-finite numbers become strings. TypeError for unknown types."""
    try:
        return _ENCODER.encode(value)
    except ValueError:
        # The rare case (a loss that is not finite) pays for a second pass.
        return _ENCODER.encode(_finite(value))


def number(value: Any) -> float:
    """The number that ``dumps`` wrote; raises TypeError or ValueError when it is none."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if value in ("NaN", "Infinity", "-Infinity"):
        return float(value)
    raise ValueError(f"not a number: {value!r}")


def line_head(event: str) -> bytes:
    """What a line of that event begins with."""
    return b'{"event":"%s","at":"' % event.encode("ascii")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not plain data: {value!r}")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = _plain(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"), default=_plain)


def _lock(fd: int, path: Path) -> None:
    deadline = time.monotonic() + _LOCK_WAIT_SECONDS
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            # A reader that asks who writes holds the lock for an instant; a writer keeps it.
            if time.monotonic() > deadline:
                raise RunError(
                    f"run {path.parent.name!r} is being written by another process",
                    hint="wait for it or stop it, then run the command again",
                ) from error
            time.sleep(0.01)
        except OSError as error:
            raise StorageError(
                f"cannot lock the journal {path}: {error.strerror}",
                hint="keep runs on a file system with locks, such as a local disk",
            ) from error


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


_open_journals: weakref.WeakSet[Journal] = weakref.WeakSet()


def _close_in_child() -> None:
    # A forked worker shares the lock and would keep a dead run "running". The parent's mutex may be held.
    for journal in list(_open_journals):
        if journal._fd is not None:
            os.close(journal._fd)
            journal._fd = None


os.register_at_fork(after_in_child=_close_in_child)
