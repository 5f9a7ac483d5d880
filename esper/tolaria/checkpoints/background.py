"""Writing checkpoints while training goes on: it waits for no more than a copy of its state."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from esper.tolaria.checkpoints.manifest import Mark
from esper.tolaria.checkpoints.tensors import fill, is_large, room_for
from esper.tolaria.checkpoints.tree import Parts, split


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that is on the disk: ``paused`` seconds of training, ``seconds`` to write in all."""

    mark: Mark
    path: Path
    paused: float
    seconds: float


class Writer(Protocol):
    """What writes a checkpoint, as ``Checkpoints`` does."""

    def write(self, mark: Mark, state: Parts) -> Path:
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
        self._room: dict[str, Tensor] = {}
        # A process that ends by itself ends after its last checkpoint.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[tuple[Mark, Path, float]] | None = None
        self._copies = _Copies({}, {})
        self._paused = 0.0
        self._saved: list[Saved] = []

    def begin(self, mark: Mark, state: Mapping[str, Any], steady: Iterable[Tensor] = ()) -> None:
        """Copy ``state`` and have it written; waits first for a checkpoint that is still being written.

        What is ``steady`` must not be changed before :meth:`hold` has returned: it is copied in the thread
        too, while the next step is computed.
        """
        began = time.perf_counter()
        self._join()
        parts = split(state)
        places = {tensor.data_ptr() for tensor in steady if is_large(tensor)}
        later = {name: each for name, each in parts.tensors.items() if each.data_ptr() in places}
        room = self._room = room_for(parts.tensors, self._room)
        fill(room, {name: tensor for name, tensor in parts.tensors.items() if name not in later})
        copies = self._copies = _Copies(room, later)

        def write() -> tuple[Mark, Path, float]:
            copies.make_each()
            path = self._checkpoints.write(mark, parts._replace(tensors=room))
            return mark, path, time.perf_counter() - began

        self._writing = self._thread.submit(write)
        self._paused = time.perf_counter() - began

    def hold(self) -> None:
        """Copy what is not copied yet: what was steady may be changed then."""
        if self._copies.left:
            began = time.perf_counter()
            self._copies.make_rest()
            self._paused += time.perf_counter() - began

    def finished(self) -> list[Saved]:
        """Those written since it was last asked."""
        if self._writing is not None and self._writing.done():
            self._join()
        saved, self._saved = self._saved, []
        return saved

    def wait(self) -> list[Saved]:
        """As :meth:`finished`, once nothing is being written any more."""
        self._join()
        return self.finished()

    def _join(self) -> None:
        if self._writing is not None:
            wait([self._writing])
            writing, self._writing = self._writing, None
            mark, path, seconds = writing.result()
            self._saved.append(Saved(mark, path, self._paused, seconds))


class _Copies:
    """Copies that are made by two threads: of tensors that nobody changes until none is ``left``."""

    def __init__(self, room: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
        self._room = room
        self._lock = threading.Lock()
        self.left = {name: (tensor, tensor._version) for name, tensor in tensors.items()}

    def make_each(self) -> None:
        """Let the other thread in after each."""
        while self.left:
            with self._lock:
                self._make_one()

    def make_rest(self) -> None:
        """Copy what is left at once, for who cannot wait for the turn of the other thread."""
        with self._lock:
            while self.left:
                self._make_one()

    def _make_one(self) -> None:
        for name, (tensor, version) in self.left.items():
            fill(self._room, {name: tensor})
            if tensor._version != version:
                raise RuntimeError(f"{name} was changed while it was copied for a checkpoint")
            del self.left[name]  # only now: who is interrupted leaves it to the other thread
            return
