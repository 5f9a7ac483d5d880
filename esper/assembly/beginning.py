"""A run before it starts: what is told of it, and that nothing is left of one that comes to nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from esper.errors import StorageError
from esper.messages import CompileQueue
from esper.nissa.journal import Journal
from esper.tezzeret.queue_depth import TellQueue


def told_before_start(journal: Journal, **about: Any) -> TellQueue:
    """Tells ``journal`` what is compiled before the run starts, and first of all that it prepares."""
    prepares = False

    def tell(queue: CompileQueue) -> None:
        nonlocal prepares
        if not prepares:
            prepares = True
            journal.write("preparing", **about)
        with suppress(StorageError):  # this may be a thread of its own; the run's next event is not in one
            journal.write("compile_queue", **asdict(queue))

    return tell


def discards(folder: Path) -> Callable[..., None]:
    """For an exit stack: removes the folder of a run where there is an error before it has begun."""

    def leave(error: type[BaseException] | None, *_: object) -> None:
        if error is not None:
            shutil.rmtree(folder, ignore_errors=True)

    return leave
