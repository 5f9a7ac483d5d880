"""The jobs that worker processes do, and how one is done: unpack it, confine the process, tell what came.

What a worker tells is data, never a pickle: whoever takes a worker over gains nothing from its parent.
"""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

from esper.blueprint import Blueprint
from esper.errors import BlueprintError, CompilationError
from esper.messages import KernelArtefact, KernelMetadata, Slot
from esper.tezzeret.limits import Limits, confine
from esper.tezzeret.pipeline import Pipeline, StageClock, Trained

Tell = Callable[[str], None]

TRIES = 5
"""How often a job is begun whose worker is killed each time, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job: a kernel or weights where they were made, else the failed stage and the reason.

    ``lost`` says that its process was ended from outside, which says little of the job.
    """

    stage: str
    seconds: float
    reason: str | None = None
    artefact: KernelArtefact | None = None
    weights: bytes | None = None
    lost: bool = False


def given_up(begun: int, why: str | None = None) -> Outcome:
    """The outcome of a job that was lost each time it was begun; ``why`` is the reason of the last time."""
    reason = f"it was begun {begun} times, and each time its worker ended without an outcome"
    return Outcome("queue", 0.0, f"{reason}: {why}" if why else reason)


class Job(Protocol):
    """Something to be done by a worker of this machine; pickled on its way there."""

    @property
    def blueprint(self) -> Blueprint:
        """What the kernel is made of, or should be."""
        ...

    @property
    def slot(self) -> Slot:
        """Where the kernel belongs."""
        ...

    @property
    def key(self) -> Hashable:
        """Equal for jobs that come to the same."""
        ...

    @property
    def filtered_only(self) -> bool:
        """Whether it is not begun where system calls cannot be filtered."""
        ...

    def run(self, tell: Tell) -> KernelArtefact | bytes:
        """Do it, telling each stage that begins: a kernel, or weights. Raises whatever goes wrong."""
        ...


@dataclass(frozen=True, slots=True)
class CompileJob:
    """One attempt to compile, with weights of the kernel's own or ``trained`` ones."""

    pipeline: Pipeline
    blueprint: Blueprint
    slot: Slot
    trained: Trained | None = None
    filtered_only: ClassVar[bool] = False

    @property
    def key(self) -> Hashable:
        """The pipeline's target and configuration, and the id of the kernel."""
        kernel_id = self.pipeline.kernel_id(self.blueprint, self.slot, self.trained)
        return self.pipeline.target, self.pipeline.configuration, kernel_id

    def run(self, tell: Tell) -> KernelArtefact:
        """The validated kernel."""
        clock = StageClock(on_stage=tell)
        return self.pipeline.compile(self.blueprint, self.slot, clock, trained=self.trained)


def attempt_here(job: CompileJob) -> Outcome:
    """Compile in this process, under no limits."""
    clock = StageClock()
    try:
        artefact = job.pipeline.compile(job.blueprint, job.slot, clock, trained=job.trained)
    except (BlueprintError, CompilationError) as error:
        return Outcome(clock.stage, clock.total, str(error))
    return Outcome(clock.stage, clock.total, artefact=artefact)


def serve(connection: int) -> None:
    """Do the one job that comes over the descriptor ``connection``, and tell of it there; then confined."""
    with os.fdopen(os.dup(connection), "rb") as source:
        job, limits = pickle.load(source)
    with os.fdopen(connection, "wb", buffering=0) as out:
        began = time.perf_counter()

        def tell(parts: tuple[bytes, ...] = (), **fields: Any) -> None:
            _write(out, json.dumps(fields | {"seconds": time.perf_counter() - began}).encode() + b"\n")
            for part in parts:
                _write(out, part)

        unfiltered = confine(limits)
        tell(unfiltered=unfiltered)
        try:
            if unfiltered is not None and job.filtered_only:
                raise RuntimeError(unfiltered)
            with _limits_named(limits):
                made = job.run(lambda stage: tell(stage=stage))
        except Exception as error:  # whatever a job does wrong is its outcome
            tell(reason=str(error) or type(error).__name__)
            return
        if isinstance(made, bytes):
            tell((made,), weights=len(made))
            return
        done, parts = in_parts(made)
        tell(parts, done=done)


def in_parts(artefact: KernelArtefact) -> tuple[list[Any], tuple[bytes, bytes, bytes]]:
    """A kernel as JSON, and the bytes that it says the sizes of."""
    parts = (artefact.blueprint.encode(), artefact.program, artefact.weights)
    return [asdict(artefact.metadata), [len(part) for part in parts]], parts


def understand(answer: bytes) -> tuple[Outcome | None, str, str | None]:
    """What a worker told, to its end or as far as it came.

    Returns the outcome, if it came to one, the stage that began last, and why calls were not filtered.
    Raises ``ValueError`` for what no worker of ours would tell.
    """
    stage, unfiltered, seconds = "parse", None, 0.0
    lines = io.BytesIO(answer)
    for line in iter(lines.readline, b""):
        if not line.endswith(b"\n"):
            break  # it was ended in the middle of a line
        told = json.loads(line)
        stage, unfiltered = told.get("stage", stage), told.get("unfiltered", unfiltered)
        seconds = float(told["seconds"])
        if "reason" in told:
            return Outcome(stage, seconds, str(told["reason"])), stage, unfiltered
        if "done" in told:
            artefact = _artefact(told["done"], lines.read())
            return Outcome(stage, seconds, artefact=artefact), stage, unfiltered
        if "weights" in told:
            weights = lines.read()
            if len(weights) != told["weights"]:
                raise ValueError("weights are not as long as was told")
            return Outcome(stage, seconds, weights=weights), stage, unfiltered
    return None, stage, unfiltered


def _artefact(done: tuple[dict[str, Any], list[int]], data: bytes) -> KernelArtefact:
    metadata, sizes = done
    if len(sizes) != 3 or min(sizes) < 0 or sum(sizes) != len(data):
        raise ValueError("the parts of a kernel are not as long as was told")
    for name in ("input_shape", "output_shape", "tags"):
        metadata[name] = tuple(metadata[name])
    blueprint, rest = data[: sizes[0]], data[sizes[0] :]
    return KernelArtefact(KernelMetadata(**metadata), blueprint.decode(), rest[: sizes[1]], rest[sizes[1] :])


@contextmanager
def _limits_named(limits: Limits) -> Iterator[None]:
    """Errors that a limit was behind say which."""
    try:
        yield
    except Exception as error:
        causes: list[BaseException] = [error]
        while (cause := causes[-1].__cause__) is not None:
            causes.append(cause)
        text = "\n".join(map(str, causes))
        if any(isinstance(cause, MemoryError) for cause in causes) or any(
            sign in text for sign in ("can't allocate memory", "std::bad_alloc", os.strerror(errno.ENOMEM))
        ):
            over = f"over its limit of {limits.memory_mb} MiB of memory (tezzeret.limits.memory_mb)"
            raise RuntimeError(over) from error
        # EMFILE and EAGAIN are what the resource limits give where calls are not filtered.
        if any(os.strerror(code) in text for code in (errno.EPERM, errno.EMFILE, errno.EAGAIN)):
            first = str(error).strip().splitlines()[-1]
            raise RuntimeError(
                f"a worker may open nothing, connect to nothing and start nothing: {first}"
            ) from error
        raise


def _write(out: io.FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[out.write(view) :]
