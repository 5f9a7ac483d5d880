"""Loaded kernels, so that one that was fetched before need not be loaded again."""

from __future__ import annotations

import contextlib
import copy
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # listing kernels must not wait for PyTorch to be imported
    from torch import nn

SPARES = 2
"""Copies of a kernel that are kept ready: a layer seldom takes more of one at a time."""

LINGER_SECONDS = 0.001
"""How long after a module was taken a copy is begun: it holds the interpreter that the taker still needs."""

_END = object()
"""Among the keys of modules that were taken: no more will be."""


@dataclass(slots=True)
class _Loaded:
    """One kernel: the module that copies are made of, which nobody else holds, and copies ready to go."""

    original: nn.Module
    weight: int
    ready: list[nn.Module] = field(default_factory=list)


class LoadedModules:
    """Modules by key (digest and device), each handed out once; least recently used out first.

    A module that was handed out is replaced by a copy in a thread of its own, which takes a twelfth of a load
    (0.1 of 1.2 ms for a kernel of two layers). Threads may share it; a forked child must make its own.
    """

    def __init__(self, max_bytes: int, *, spares: int = SPARES) -> None:
        """``max_bytes`` bounds the weights that ``take`` is told, copies counted; 0 keeps nothing."""
        if max_bytes < 0 or spares < 1:
            raise ValueError(f"max_bytes must be 0 or more and spares 1 or more, not {max_bytes}, {spares}")
        self._max_bytes = max_bytes
        self._spares = spares
        self._entries: OrderedDict[Hashable, _Loaded] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()
        self._taken: queue.SimpleQueue[Hashable] = queue.SimpleQueue()
        self._copier: threading.Thread | None = None
        self._closed = False
        self._hits = self._misses = 0

    def take(self, key: Hashable, weight: int, load: Callable[[], nn.Module]) -> nn.Module:
        """A module of the caller's own, from a ready copy or from ``load``, whose errors it raises.

        ``weight`` is about how many bytes one module takes.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                module = entry.ready.pop() if entry.ready else None
                self._wake(key)
            self._hits += entry is not None
            self._misses += entry is None
        if entry is None:
            module = load()
            self._keep(key, module, weight)
        elif module is None:
            module = _copied(entry.original)
        return module

    def holds(self, key: Hashable) -> bool:
        """Whether a module is there for :meth:`take`, which somebody else may still change."""
        return key in self._entries

    def drop(self, key: Hashable) -> None:
        """Hold nothing under ``key``."""
        with self._lock:
            self._drop(key)

    def counts(self) -> tuple[int, int]:
        """How often a module was there, and how often one had to be loaded."""
        return self._hits, self._misses

    def close(self) -> None:
        """End the thread; what is held stays, and is copied by those who take it."""
        with self._lock:
            self._closed = True
        if self._copier is not None:
            self._taken.put(_END)
            self._copier.join()

    def _keep(self, key: Hashable, module: nn.Module, weight: int) -> None:
        whole = weight * (1 + self._spares)
        if whole > self._max_bytes:
            return
        original = _copied(module)
        with self._lock:
            self._drop(key)
            while self._held + whole > self._max_bytes:
                self._drop(next(iter(self._entries)))
            self._entries[key] = _Loaded(original, whole)
            self._held += whole
            self._wake(key)

    def _drop(self, key: Hashable) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._held -= entry.weight

    def _wake(self, key: Hashable) -> None:
        """Have copies made. Not by an executor: its bookkeeping took as long as the rest of ``take``."""
        if self._closed:
            return
        if self._copier is None:
            self._copier = threading.Thread(target=self._run, name="kernel-copies", daemon=True)
            self._copier.start()
        self._taken.put(key)

    def _run(self) -> None:
        while (key := self._taken.get()) is not _END:
            time.sleep(LINGER_SECONDS)
            with contextlib.suppress(Exception):  # whoever takes one makes the copy, and meets the error
                self._prepare(key)

    def _prepare(self, key: Hashable) -> None:
        while True:
            with self._lock:
                entry = self._entries.get(key)
                if self._closed or entry is None or len(entry.ready) >= self._spares:
                    return
            made = _copied(entry.original)
            with self._lock:
                entry.ready.append(made)


def _copied(module: nn.Module) -> nn.Module:
    """A module that shares nothing with ``module``, its parameters leaves of no graph.

    TorchScript copies a parameter as autograd would: the copy's gradient would go to the original.
    """
    made = copy.deepcopy(module)
    for parameter, original in zip(made.parameters(), module.parameters(), strict=True):
        parameter.detach_().requires_grad_(original.requires_grad)
    return made
