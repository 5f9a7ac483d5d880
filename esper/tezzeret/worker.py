"""Compiles what a library lacks, here or in worker processes, and records every attempt."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol

from esper.blueprint import Blueprint
from esper.messages import CompilationRecord, KernelArtefact, Slot
from esper.tezzeret.attempts import Attempt, first_attempt, stand_in_ids
from esper.tezzeret.interrupts import interrupts_noted
from esper.tezzeret.jobs import CompileJob, Outcome, attempt_here
from esper.tezzeret.pipeline import Pipeline
from esper.tezzeret.queue_depth import Depth, TellQueue, told


class Library(Protocol):
    """Where kernels and records go; raises ``LibraryError`` and ``StorageError``, which end the work."""

    def contains(self, kernel_id: str) -> bool:
        """Whether a kernel of that id is stored."""
        ...

    def put(self, artefact: KernelArtefact) -> object:
        """Stores a kernel."""
        ...

    def record_compilation(self, record: CompilationRecord) -> None:
        """Stores the outcome of one attempt."""
        ...


class Workers(Protocol):
    """Who does jobs elsewhere, ``workers`` of them at once: processes of this machine, or of others."""

    @property
    def workers(self) -> int:
        """How many jobs are done at once."""
        ...

    @property
    def serving(self) -> int:
        """How many workers there are, as far as is known."""
        ...

    def submit(self, job: CompileJob, *, hot: bool = False) -> Future[Outcome]:
        """Has ``job`` done, ahead of others if it is ``hot``; what goes wrong in it is its outcome.

        Who asks for what is under way for another waits for the same. Raises ``CompilationError``, here or in
        the future, where nobody can do it.
        """
        ...


LOOK_SECONDS = 0.1
"""How long an interruption may wait while workers do jobs."""

Pair = tuple[Blueprint, Slot]
Told = Callable[[CompilationRecord], None]


def compile_missing(
    pipeline: Pipeline,
    library: Library,
    pairs: Iterable[tuple[Blueprint, Slot]],
    on_result: Told = lambda _: None,
    *,
    on_failure: Told = lambda _: None,
    on_queue: TellQueue | None = None,
    workers: Workers | None = None,
    hot: bool = False,
) -> list[CompilationRecord]:
    """Compiles each pair whose kernel ``library`` lacks, once; returns the records, in the pairs' order.

    What fails is tried in other configurations (``esper.tezzeret.attempts``); every attempt is recorded. A
    failure does not stop the pairs after it. ``on_result`` sees each record as it is stored, ``on_failure``
    the last one of each kernel that no configuration gives; ``on_queue``, at most once a second and from
    another thread, how much waits. Only this process writes to the library. Without ``workers`` it compiles,
    too; with them its jobs go ahead of others if they are ``hot``. SIGINT and SIGTERM are handled between two
    outcomes.
    """
    records: list[CompilationRecord] = []
    pairs = list(pairs)
    depth = Depth(pairs, lambda: 1 if workers is None else workers.serving)
    telling = told(depth, on_queue) if on_queue and pairs else nullcontext()
    with interrupts_noted() as look, telling:
        for attempt, outcome in _outcomes(_missing(pipeline, library, depth.left), workers, hot, depth, look):
            record = record_of(attempt.job, outcome, attempt.asked)
            if outcome.artefact is not None:
                library.put(outcome.artefact)
            library.record_compilation(record)
            records.append(record)
            on_result(record)
            if outcome.artefact is None and attempt.after(outcome) is None:
                on_failure(record)
    return records


def stored_as(library: Library, pipeline: Pipeline, blueprint: Blueprint, slot: Slot) -> str | None:
    """The id of the kernel that is asked for, or of one made instead; None if ``library`` has neither."""
    asked = pipeline.kernel_id(blueprint, slot)
    if library.contains(asked):
        return asked
    others = stand_in_ids(first_attempt(pipeline, blueprint, slot))
    return next(filter(library.contains, others), None)


def _missing(
    pipeline: Pipeline, library: Library, pairs: Iterable[tuple[Blueprint, Slot]]
) -> Iterator[Attempt]:
    seen: set[str] = set()
    for blueprint, slot in pairs:
        kernel_id = pipeline.kernel_id(blueprint, slot)
        if kernel_id not in seen and stored_as(library, pipeline, blueprint, slot) is None:
            yield first_attempt(pipeline, blueprint, slot)
        seen.add(kernel_id)


def _outcomes(
    kernels: Iterator[Attempt],
    workers: Workers | None,
    hot: bool,
    depth: Depth[Pair],
    look: Callable[[], None],
) -> Iterator[tuple[Attempt, Outcome]]:
    """Every attempt at ``kernels``, in their order, each after those at the same kernel that failed.

    A few jobs more than there are workers are under way, so that none waits for the library, and for a slow
    one only when many after it are done. What ``look`` raises between two steps ends it all.
    """
    if workers is None:
        for first in kernels:
            depth.here = True
            attempt: Attempt | None = first
            while attempt is not None:
                look()
                outcome = attempt_here(attempt.job)
                yield attempt, outcome
                attempt = attempt.after(outcome)
        return
    under_way: deque[tuple[Attempt, Future[Outcome]]] = depth.under_way
    while True:
        look()
        while _has_room(under_way, workers.workers) and (new := next(kernels, None)) is not None:
            under_way.append((new, workers.submit(new.job, hot=hot)))
        if not under_way:
            return
        attempt, future = under_way[0]
        if not future.done():
            wait(
                [each for _, each in under_way if not each.done()],
                timeout=LOOK_SECONDS,
                return_when=FIRST_COMPLETED,
            )
            continue
        under_way.popleft()
        outcome = future.result()
        if (again := attempt.after(outcome)) is not None:
            under_way.appendleft((again, workers.submit(again.job, hot=hot)))
        yield attempt, outcome


def _has_room(under_way: Collection[tuple[Attempt, Future[Outcome]]], workers: int) -> bool:
    """Whether one more keeps workers busy; a slow one holds up those after it only when these are many."""
    if len(under_way) >= 16 * workers:
        return False
    return sum(not future.done() for _, future in under_way) < 2 * workers


def record_of(job: CompileJob, outcome: Outcome, asked: Blueprint | None = None) -> CompilationRecord:
    """What a library keeps of an attempt at the kernel of ``asked``, or of the job's own blueprint.

    The reason is that of the failure, with the configuration; of a kernel that was made instead of the one
    asked for it is the configuration alone.
    """
    record = CompilationRecord(
        blueprint_id=(asked or job.blueprint).blueprint_id,
        blueprint_name=job.blueprint.name,
        slot=job.slot,
        target=job.pipeline.target.name,
        status="failed",
        seconds=outcome.seconds,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if outcome.artefact is not None:
        made = replace(record, status="compiled", kernel_id=outcome.artefact.metadata.kernel_id)
        return replace(made, reason=job.pipeline.configuration) if job.pipeline.instead_of else made
    return replace(record, stage=outcome.stage, reason=f"{outcome.reason} [{job.pipeline.configuration}]")
