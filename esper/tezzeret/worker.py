"""Compiles what a library lacks, and records every attempt."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol

from esper.blueprint import Blueprint
from esper.errors import BlueprintError, CompilationError
from esper.messages import CompilationRecord, KernelArtefact, Slot
from esper.tezzeret.pipeline import Pipeline, StageClock

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


def compile_missing(
    pipeline: Pipeline,
    library: Library,
    pairs: Iterable[tuple[Blueprint, Slot]],
    on_result: Callable[[CompilationRecord], None] | None = None,
) -> list[CompilationRecord]:
    """Compiles each pair whose kernel ``library`` lacks; returns the records in order, one an attempt.

    A failure in a stage that depends on the configuration is tried once more, unoptimised; both attempts are
    recorded. A failure does not stop the pairs after it. ``on_result`` sees each record as it comes.
    """
    records: list[CompilationRecord] = []
    for blueprint, slot in pairs:
        if library.contains(pipeline.kernel_id(blueprint, slot)):
            continue
        for record in _attempts(pipeline, library, blueprint, slot):
            library.record_compilation(record)
            records.append(record)
            if on_result is not None:
                on_result(record)
    return records


def _attempts(
    pipeline: Pipeline, library: Library, blueprint: Blueprint, slot: Slot
) -> Iterable[CompilationRecord]:
    """One attempt, and where that failed and another configuration may help, a second."""
    record = _attempt(pipeline, library, blueprint, slot)
    yield record
    if record.stage in RETRIED and pipeline.optimise:
        yield _attempt(replace(pipeline, optimise=False), library, blueprint, slot)


def _attempt(pipeline: Pipeline, library: Library, blueprint: Blueprint, slot: Slot) -> CompilationRecord:
    clock = StageClock()
    record = CompilationRecord(
        blueprint_id=blueprint.blueprint_id,
        blueprint_name=blueprint.name,
        slot=slot,
        target=pipeline.target.name,
        status="failed",
        seconds=0.0,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    try:
        artefact = pipeline.compile(blueprint, slot, clock)
    except (BlueprintError, CompilationError) as error:
        return replace(record, seconds=clock.total, stage=clock.stage, reason=str(error))
    library.put(artefact)
    return replace(record, status="compiled", seconds=clock.total, kernel_id=artefact.metadata.kernel_id)
