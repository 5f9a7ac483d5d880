"""What is tried for one kernel, one after the other, until a configuration gives it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from esper.blueprint import Blueprint, fits, smaller
from esper.messages import Slot
from esper.tezzeret.jobs import CompileJob, Outcome
from esper.tezzeret.pipeline import Pipeline
from esper.tezzeret.targets import target_named

SMALLER = 3
"""How often the sizes of a blueprint are halved, where it allows that."""

_CONFIGURED = ("compile", "optimise", "validate")
"""Stages that another configuration may get through; parse, build and metadata do not depend on it."""

_SIZED = ("build", *_CONFIGURED)
"""Stages that a smaller kernel may get through; build counts the budget."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A job for the kernel of ``asked``, and what is tried when it fails."""

    job: CompileJob
    asked: Blueprint
    later: tuple[CompileJob, ...]

    def after(self, outcome: Outcome) -> Attempt | None:
        """The attempt to make after ``outcome``; None where there is a kernel, or nothing may help."""
        if outcome.artefact is not None:
            return None
        for index, job in enumerate(self.later):
            shrunk = job.blueprint != self.job.blueprint
            if outcome.stage in (_SIZED if shrunk else _CONFIGURED):
                return Attempt(job, self.asked, self.later[index + 1 :])
        return None


def first_attempt(pipeline: Pipeline, blueprint: Blueprint, slot: Slot) -> Attempt:
    """The kernel as it is asked for; later unoptimised, then for other targets, then smaller."""
    first = CompileJob(pipeline, blueprint, slot)
    return Attempt(first, blueprint, tuple(_others(first)))


def stand_in_ids(first: Attempt) -> Iterator[str]:
    """The ids of the kernels that may stand in for the one that is asked for."""
    for job in first.later:
        yield job.pipeline.kernel_id(job.blueprint, job.slot)


def _others(first: CompileJob) -> Iterator[CompileJob]:
    pipeline = first.pipeline
    if pipeline.optimise:
        yield replace(first, pipeline=replace(pipeline, optimise=False, instead_of="optimised"))
    for name in pipeline.fallbacks:
        if name != pipeline.target.name:
            target = target_named(name)
            yield replace(
                first,
                pipeline=replace(pipeline, target=target, optimise=False, instead_of=pipeline.target.name),
            )
    asked = first.blueprint
    blueprint: Blueprint | None = asked if asked.least and fits(asked, first.slot) else None
    for _ in range(SMALLER):
        if blueprint is None or (blueprint := smaller(blueprint, first.slot)) is None:
            return
        instead = replace(pipeline, instead_of=asked.blueprint_id)
        yield replace(first, blueprint=blueprint, pipeline=instead)
