"""Compile jobs and their outcomes as sealed bytes, for the way over a broker that is trusted with neither.

Inside the seal is JSON, never a pickle. A job is sealed under its key and the attempt's id, an outcome under
the same: whoever can write to the broker can delay and drop, and show an old outcome of the same job again,
but make none of their own, nor give one out for another's.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields
from typing import Any

from esper.blueprint import from_json
from esper.errors import CompilationError
from esper.messages import Slot
from esper.security import Envelope
from esper.tezzeret.budget import Budget
from esper.tezzeret.jobs import CompileJob, Outcome, in_parts, understand
from esper.tezzeret.pipeline import Pipeline
from esper.tezzeret.targets import ships, target_named

VERSION = 1


class Wire:
    """Seals and opens what goes over a broker; threads may share one.

    Every method may raise what the envelope raises; those that open, ``SealBroken`` for what no holder of the
    keys sealed for this job.
    """

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope

    def seal_job(self, job: bytes, key: str, attempt: str) -> bytes:
        """What :func:`encoded` gave, for a worker."""
        return self._envelope.seal(job, f"compile job {key} {attempt}")

    def open_job(self, sealed: bytes, key: str, attempt: str) -> CompileJob:
        """The job; raises ``CompilationError`` if it is one of another version of Esper."""
        return decoded(self._envelope.open(sealed, f"compile job {key} {attempt}"))

    def seal_outcome(self, outcome: Outcome, key: str, attempt: str) -> bytes:
        """An outcome, for whoever asked."""
        told: dict[str, Any] = {"stage": outcome.stage, "seconds": outcome.seconds}
        parts: tuple[bytes, ...] = ()
        if outcome.artefact is None:
            told["reason"] = outcome.reason
        else:
            told["done"], parts = in_parts(outcome.artefact)
        data = b"".join((json.dumps(told).encode(), b"\n", *parts))
        return self._envelope.seal(data, f"compile outcome {key} {attempt}")

    def open_outcome(self, sealed: bytes, key: str, attempt: str) -> Outcome:
        """The outcome; raises ``CompilationError`` if it is one of another version of Esper."""
        data = self._envelope.open(sealed, f"compile outcome {key} {attempt}")
        try:
            outcome, _, _ = understand(data)
        except (ValueError, TypeError, LookupError) as error:
            raise _other_version("the outcome of a job") from error
        if outcome is None:
            raise _other_version("the outcome of a job")
        return outcome


def encoded(job: CompileJob) -> tuple[str, bytes]:
    """A key that equal jobs share, and the job as JSON.

    Raises ``CompilationError`` for what other machines do not have: a target that does not ship, and weights
    from a run.
    """
    pipeline = job.pipeline
    if not ships(pipeline.target):
        raise _only_here(f"target {pipeline.target.name} of one's own")
    if job.trained is not None:
        raise _only_here("a kernel with weights from a run")
    settings = {field.name: getattr(pipeline, field.name) for field in fields(pipeline)}
    document = {
        "version": VERSION,
        "kernel_id": pipeline.kernel_id(job.blueprint, job.slot),
        "pipeline": settings | {"target": pipeline.target.name, "budget": asdict(pipeline.budget)},
        "blueprint": job.blueprint.canonical_json(),
        "slot": asdict(job.slot),
    }
    data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(data).hexdigest()[:32], data


def decoded(data: bytes) -> CompileJob:
    """The job of :func:`encoded`; raises ``CompilationError`` if another kernel would come of it here."""
    document = json.loads(data)
    if document.get("version") != VERSION:
        raise _other_version("a job")
    try:
        settings = document["pipeline"]
        settings |= {"target": target_named(settings["target"]), "budget": Budget(**settings["budget"])}
        pipeline, slot = Pipeline(**settings), Slot(**document["slot"])
    except (ValueError, TypeError, KeyError) as error:
        raise _other_version("a job") from error
    job = CompileJob(pipeline, from_json(document["blueprint"]), slot)
    if pipeline.kernel_id(job.blueprint, slot) != document["kernel_id"]:
        raise _other_version("a job")
    return job


def _other_version(what: str) -> CompilationError:
    return CompilationError(
        f"{what} is of another version of Esper",
        stage="queue",
        hint="install the same version on every machine that compiles",
    )


def _only_here(what: str) -> CompilationError:
    return CompilationError(
        f"{what} is compiled on this machine only", stage="queue", hint="tezzeret/engine=local"
    )
