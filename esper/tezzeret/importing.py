"""Kernels from elsewhere, made anew here: from a kernel file, or from the weights of a TorchScript program.

No program of a stranger is kept, however well it behaves: what has been seen of it is what it did under
limits, and where it was seen, it might have told anything. What passes from there is weights, which are
data; the kernel is then compiled, in another process, from a blueprint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import ClassVar

import safetensors
import safetensors.torch
from torch import Tensor

from esper.blueprint import Blueprint
from esper.errors import RefusedProgram
from esper.messages import Slot
from esper.tezzeret.archive import check_archive
from esper.tezzeret.builder import build
from esper.tezzeret.jobs import CompileJob, Outcome, Tell, attempt_here
from esper.tezzeret.kernelfile import KernelFile, check_weights, one_line, read_kernel
from esper.tezzeret.pipeline import DTYPES, Pipeline, Trained
from esper.tezzeret.pool import WorkerPool
from esper.tezzeret.torchscript import TorchScriptTarget
from esper.tezzeret.validation import validate

ZIP = b"PK\x03\x04"


@dataclass(frozen=True, slots=True)
class WeightsJob:
    """Take the weights of a TorchScript program that computes what ``blueprint`` does in ``slot``.

    Its weights must have the names, shapes and dtype that those of the blueprint's kernel have.
    """

    pipeline: Pipeline
    blueprint: Blueprint
    slot: Slot
    program: bytes
    filtered_only: ClassVar[bool] = True

    @property
    def key(self) -> Hashable:
        """Pipeline, blueprint, slot and program."""
        return self.pipeline, self.blueprint.blueprint_id, self.slot, hashlib.sha256(self.program).digest()

    def run(self, tell: Tell) -> bytes:
        """The weights as safetensors; raises whatever is wrong with the program."""
        target, budget = TorchScriptTarget(), self.pipeline.budget
        tell("read")
        stored = check_archive(self.program, budget.bytes)
        tell("load")
        program = target.load(self.program)
        tell("check")
        target.check(program)
        tell("weights")
        eager = build(self.blueprint, self.slot, budget=budget).to(dtype=DTYPES[self.pipeline.dtype])
        weights = _as_in(eager.state_dict(), program.state_dict(), stored)
        eager.load_state_dict(weights)
        tell("validate")
        validate(program, eager, self.slot)
        return safetensors.torch.save(weights)


def _as_in(wanted: dict[str, Tensor], found: dict[str, Tensor], stored: int) -> dict[str, Tensor]:
    """``found``, laid out plainly; ``RuntimeError`` unless names, dtypes and shapes are as ``wanted``.

    They must take as many bytes as were ``stored``: PyTorch leaves what is missing in a file to chance.
    """
    if wanted.keys() != found.keys():
        raise RuntimeError(f"its weights are {_words(found)}; those of its blueprint {_words(wanted)}")
    for name, value in found.items():
        like = wanted[name]
        if (value.dtype, value.layout, value.shape) != (like.dtype, like.layout, like.shape):
            raise RuntimeError(
                f"its {name} is {value.dtype} {tuple(value.shape)}; "
                f"that of its blueprint {like.dtype} {tuple(like.shape)}"
            )
    storages = {
        storage.data_ptr(): storage for storage in (value.untyped_storage() for value in found.values())
    }
    held = sum(storage.nbytes() for storage in storages.values())
    if held != stored:
        raise RuntimeError(f"its weights take {held:,} bytes, and {stored:,} are stored")
    return {name: value.detach().clone().contiguous() for name, value in found.items()}


def _words(names: dict[str, Tensor]) -> str:
    few = sorted(names)[:8]
    return ", ".join(few) + (f" and {len(names) - len(few)} more" if len(few) < len(names) else "")


class Importer:
    """Makes kernels of files from elsewhere, by ``pipeline``, in the processes of ``pool``."""

    def __init__(self, pipeline: Pipeline, pool: WorkerPool) -> None:
        self._pipeline = pipeline
        self._pool = pool

    def kernel(self, data: bytes, of: tuple[Blueprint, Slot] | None = None) -> tuple[CompileJob, Outcome]:
        """The job that made the kernel of the file ``data``, and its outcome; its tags have ``imported``.

        A TorchScript program is taken for one of the blueprint and slot in ``of``.

        Raises:
            RefusedProgram: the file is damaged or of another kind, or no valid kernel comes of it.
            CompilationError: no worker can be started.
        """
        file = self._of_program(data, of) if data.startswith(ZIP) else read_kernel(data)
        job, outcome = self._compile(file)
        if outcome.artefact is None:
            raise _refused(outcome)
        metadata = outcome.artefact.metadata
        metadata = replace(metadata, tags=tuple(sorted({*metadata.tags, "imported"})))
        return job, replace(outcome, artefact=replace(outcome.artefact, metadata=metadata))

    def _of_program(self, program: bytes, of: tuple[Blueprint, Slot] | None) -> KernelFile:
        if of is None:
            raise RefusedProgram(
                "a TorchScript program is not safe to load, and does not say what it computes",
                hint="for its weights alone: --blueprint FILE --shape LAYOUT:IN:OUT",
            )
        outcome = self._pool.submit(WeightsJob(self._pipeline, *of, program)).result()
        if outcome.weights is None:
            raise _refused(outcome)
        try:
            weights = safetensors.torch.load(outcome.weights)
        except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise RefusedProgram("what its worker told is no weights") from error
        check_weights(weights, self._pipeline.dtype)
        origin = f"a TorchScript program, SHA-256 {hashlib.sha256(program).hexdigest()}"
        return KernelFile(*of, self._pipeline.dtype, weights, decision=origin)

    def _compile(self, file: KernelFile) -> tuple[CompileJob, Outcome]:
        if file.dtype not in DTYPES:
            raise RefusedProgram(f"its dtype is {file.dtype!r}, none of {', '.join(DTYPES)}")
        pipeline = replace(self._pipeline, dtype=file.dtype)
        trained = Trained(file.weights, file.parent_kernel, file.run_id, file.decision)
        job = CompileJob(pipeline, file.blueprint, file.slot)
        if file.kernel_id == pipeline.kernel_id(file.blueprint, file.slot):
            # It has the weights that it starts with, or says so: then it is that kernel, by the same id.
            _, outcome = found = self._attempt(job)
            made = outcome.artefact
            if made is not None and made.metadata.weights_digest == trained.digest():
                return found
        return self._attempt(replace(job, trained=trained))

    def _attempt(self, job: CompileJob) -> tuple[CompileJob, Outcome]:
        outcome = self._done(job)
        if outcome.stage in ("optimise", "validate") and outcome.artefact is None and job.pipeline.optimise:
            job = replace(job, pipeline=replace(job.pipeline, optimise=False))
            outcome = self._done(job)
        return job, outcome

    def _done(self, job: CompileJob) -> Outcome:
        if job.pipeline.device == "cpu":
            return self._pool.submit(job).result()
        return attempt_here(job)  # workers have no GPU; blueprint and weights are data


def _refused(outcome: Outcome) -> RefusedProgram:
    reason = str(outcome.reason).strip()
    if outcome.stage == "load":
        reason = reason.partition("\n")[0]  # the lines after it are the program's own
    return RefusedProgram(f"{one_line(str(outcome.stage))}: {one_line(reason)}")
