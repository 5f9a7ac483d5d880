"""Compiles what a library lacks, here or in worker processes, and records every attempt."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol

from esper.blueprint import Blueprint
from esper.messages import CompilationRecord, KernelArtefact, Slot
from esper.tezzeret.jobs import CompileJob, Outcome, attempt_here
from esper.tezzeret.pipeline import Pipeline

RETRIED = ("compile", "optimise", "validate")
"""Stages that another configuration may get through; parse, build and metadata do not depend on it."""


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

    def submit(self, job: CompileJob, *, hot: bool = False) -> Future[Outcome]:
        """Has ``job`` done, ahead of others if it is ``hot``; what goes wrong in it is its outcome.

        Who asks for what is under way for another waits for the same. Raises ``CompilationError``, here or in
        the future, where nobody can do it.
        """
        ...


Told = Callable[[CompilationRecord], None]


def compile_missing(
    pipeline: Pipeline,
    library: Library,
    pairs: Iterable[tuple[Blueprint, Slot]],
    on_result: Told = lambda _: None,
    *,
    on_failure: Told = lambda _: None,
    workers: Workers | None = None,
    hot: bool = False,
) -> list[CompilationRecord]:
    """Compiles each pair whose kernel ``library`` lacks, once; returns the records, in the pairs' order.

    A failure in a stage that depends on the configuration is tried once more, unoptimised; both attempts are
    recorded. A failure does not stop the pairs after it. ``on_result`` sees each record as it is stored,
    ``on_failure`` the last one of each kernel that no configuration gives. Only this process writes to the
    library. Without ``workers`` it compiles, too; with them its jobs go ahead of others if they are ``hot``.
    """
    records: list[CompilationRecord] = []
    for job, outcome in _outcomes(_missing(pipeline, library, pairs), workers, hot):
        record = record_of(job, outcome)
        if outcome.artefact is not None:
            library.put(outcome.artefact)
        library.record_compilation(record)
        records.append(record)
        on_result(record)
        if outcome.artefact is None and _next_attempt(job, outcome) is None:
            on_failure(record)
    return records


def _missing(
    pipeline: Pipeline, library: Library, pairs: Iterable[tuple[Blueprint, Slot]]
) -> Iterator[CompileJob]:
    seen: set[str] = set()
    for blueprint, slot in pairs:
        kernel_id = pipeline.kernel_id(blueprint, slot)
        if kernel_id not in seen and not library.contains(kernel_id):
            yield CompileJob(pipeline, blueprint, slot)
        seen.add(kernel_id)


def _outcomes(
    jobs: Iterator[CompileJob], workers: Workers | None, hot: bool
) -> Iterator[tuple[CompileJob, Outcome]]:
    """Every attempt at ``jobs``, in their order, each second one after its first.

    A few jobs more than there are workers are under way, so that none waits for the library.
    """
    if workers is None:
        for first in jobs:
            job: CompileJob | None = first
            while job is not None:
                outcome = attempt_here(job)
                yield job, outcome
                job = _next_attempt(job, outcome)
        return
    under_way: deque[tuple[CompileJob, Future[Outcome]]] = deque()
    while True:
        while len(under_way) < 2 * workers.workers and (new := next(jobs, None)) is not None:
            under_way.append((new, workers.submit(new, hot=hot)))
        if not under_way:
            return
        job, future = under_way.popleft()
        outcome = future.result()
        if (again := _next_attempt(job, outcome)) is not None:
            under_way.appendleft((again, workers.submit(again, hot=hot)))
        yield job, outcome


def _next_attempt(job: CompileJob, outcome: Outcome) -> CompileJob | None:
    """The job with the configuration that is tried next, None where there is none that may help."""
    if outcome.artefact is not None or outcome.stage not in RETRIED or not job.pipeline.optimise:
        return None
    return replace(job, pipeline=replace(job.pipeline, optimise=False))


def record_of(job: CompileJob, outcome: Outcome) -> CompilationRecord:
    """What a library keeps of an attempt."""
    record = CompilationRecord(
        blueprint_id=job.blueprint.blueprint_id,
        blueprint_name=job.blueprint.name,
        slot=job.slot,
        target=job.pipeline.target.name,
        status="failed",
        seconds=outcome.seconds,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if outcome.artefact is not None:
        return replace(record, status="compiled", kernel_id=outcome.artefact.metadata.kernel_id)
    return replace(record, stage=outcome.stage, reason=f"{outcome.reason} [{job.pipeline.configuration}]")
