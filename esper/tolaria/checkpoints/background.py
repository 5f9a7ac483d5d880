"""Writing checkpoints while training goes on: it waits for a copy of its state and no longer."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from esper.tolaria.checkpoints.manifest import Mark
from esper.tolaria.checkpoints.tensors import copy_into
from esper.tolaria.checkpoints.tree import split


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that is on the disk: ``paused`` seconds of training, ``seconds`` to write in all."""

    mark: Mark
    path: Path
    paused: float
    seconds: float


class Writer(Protocol):
    """What writes a checkpoint, as ``Checkpoints`` does."""

    def write(self, mark: Mark, document: Any, tensors: Mapping[str, Tensor]) -> Path:
        """Write a state that was split; its path."""
        ...


class BackgroundSaver:
    """Writes one checkpoint at a time in a thread; used by one thread.

    The copy of the state stays in memory for the next one. A checkpoint counts once :meth:`finished` or
    :meth:`wait` has returned it; the error of one that could not be written is raised there, or by the next
    :meth:`begin`.
    """

    def __init__(self, checkpoints: Writer) -> None:
        self._checkpoints = checkpoints
        self._buffers: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._saved: list[Saved] = []
        self._error: BaseException | None = None

    def begin(self, mark: Mark, state: Mapping[str, Any]) -> None:
        """Copy ``state`` and have it written; waits first for a checkpoint that is still being written."""
        began = time.perf_counter()
        self._join()
        document, tensors = split(state)
        copies = copy_into(tensors, self._buffers)
        paused = time.perf_counter() - began

        def write() -> None:
            try:
                path = self._checkpoints.write(mark, document, copies)
                self._saved.append(Saved(mark, path, paused, time.perf_counter() - began))
            except BaseException as error:
                self._error = error

        # Not a daemon: a process that ends by itself ends after its last checkpoint.
        self._thread = threading.Thread(target=write, name="checkpoint")
        self._thread.start()

    def finished(self) -> list[Saved]:
        """Those written since it was last asked."""
        if self._thread is not None and not self._thread.is_alive():
            self._join()
        saved, self._saved = self._saved, []
        return saved

    def wait(self) -> list[Saved]:
        """As :meth:`finished`, once nothing is being written any more."""
        self._join()
        return self.finished()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
