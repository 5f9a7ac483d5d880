"""What the API asks of a kernel library, and how long it waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any, Protocol, TypeVar

from esper.errors import LibraryError
from esper.nissa.api.queries import KernelsQuery, TagsBody
from esper.nissa.health import BoundedCall

T = TypeVar("T")

LIBRARY_SECONDS = 1.0
"""How long a request waits for the kernel library before it is reported as not answering."""

MAX_CALLS = 8
"""So many requests wait for the library at once; a library that hangs holds up no more than that."""


class Library(Protocol):
    """A kernel library in plain data. Every method may raise EsperError, and may hang; threads share it."""

    def page(self, query: KernelsQuery) -> dict[str, Any]:
        """``kernels`` and ``next`` as ``api_models.Kernels``; ConfigError for a cursor that is none."""
        ...

    def kernel(self, kernel_id: str) -> dict[str, Any]:
        """As ``api_models.Kernel``; KernelNotFound."""
        ...

    def retag(self, kernel_id: str, tags: TagsBody) -> list[str]:
        """Give and take tags; those that the kernel has now. KernelNotFound."""
        ...

    def note_request(self, action: str, run_id: str, **bounds: int | None) -> None:
        """Enter in the audit trail what is asked of a run, before it is."""
        ...


class BoundedLibrary:
    """Calls a library, if there is one, in threads that a request waits for at most ``LIBRARY_SECONDS``."""

    def __init__(self, library: Library | None) -> None:
        self._library = library
        self._places = threading.Semaphore(MAX_CALLS)

    def __bool__(self) -> bool:
        return self._library is not None

    def __call__(self, ask: Callable[[Library], T]) -> T:
        """What ``ask`` returns or raises; TimeoutError when the library does not answer in time."""
        library = self._library
        if library is None:
            raise LibraryError("this server has no kernel library")
        if not self._places.acquire(blocking=False):
            raise TimeoutError(f"{MAX_CALLS} requests wait for the kernel library already")

        def call() -> T:
            try:
                return ask(library)
            finally:
                self._places.release()

        try:
            # In another thread, who acts is who acts here.
            return BoundedCall(partial(copy_context().run, call), LIBRARY_SECONDS)()
        except TimeoutError as error:
            raise TimeoutError(f"the kernel library: {error}") from None
