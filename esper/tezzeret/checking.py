"""Programs from elsewhere: whether one may be let into a library, found out where it can do no harm."""

from __future__ import annotations

from esper.errors import RefusedProgram
from esper.tezzeret.jobs import CheckJob
from esper.tezzeret.pool import WorkerPool
from esper.tezzeret.torchscript import TorchScriptTarget


def check_program(program: bytes, pool: WorkerPool | None = None) -> None:
    """Load a TorchScript archive in a worker process, and look at all that it holds.

    To load a program is to run what it says, so nothing here does. The worker is one of ``pool``, under its
    limits, else of a pool that is made for this call, which takes seconds.

    Raises:
        RefusedProgram: it cannot be loaded within the limits, or holds what no kernel needs.
        CompilationError: no worker can be started.
    """
    if pool is None:
        with WorkerPool(1) as made:
            return check_program(program, made)
    outcome = pool.submit(CheckJob(TorchScriptTarget(), program)).result()
    if outcome.reason is not None:
        raise RefusedProgram(
            f"the program is refused: {outcome.stage}: {outcome.reason.strip().splitlines()[-1].strip()}",
            hint="compile the kernel here, from its blueprint",
        )
    return None
