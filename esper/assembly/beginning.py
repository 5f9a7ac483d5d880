"""A run before it starts: its folder, what is told of it, and nothing left of one that comes to nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from esper.assembly.resuming import DATA_NAME
from esper.data.splits import DataSplits
from esper.errors import StorageError
from esper.messages import CompileQueue
from esper.nissa.journal import Journal
from esper.nissa.runs import RunStore
from esper.tezzeret.queue_depth import TellQueue
from esper.tolaria.distributed import job_id, launched
from esper.tolaria.durable import write_atomically

JOB_NAME = "job"
"""The file of a run that says which job of torchrun began it, for when that is restarted."""


def new_folder(cfg: DictConfig, data: DataSplits) -> Path:
    """The folder of a new run, with the configuration that it can be resumed under, and on what data."""
    folder = RunStore(Path(cfg.runs)).create(cfg.experiment or "run")
    path = folder / "config.yaml"
    try:
        write_atomically(path, OmegaConf.to_yaml(cfg).encode())
        path = folder / DATA_NAME
        write_atomically(path, data.digest().encode())
        if launched():
            path = folder / JOB_NAME
            write_atomically(path, job_id().encode())
    except OSError as error:
        raise StorageError.from_os(error, path, "cannot write") from error
    return folder


def run_of_job(runs: Path) -> str | None:
    """The run that torchrun's job began before it was restarted, if that came to its first checkpoint."""
    for run_id in reversed(RunStore(runs).run_ids()):
        job, checkpoints = runs / run_id / JOB_NAME, runs / run_id / "checkpoints"
        if job.is_file() and job.read_text() == job_id() and any(checkpoints.glob("step-*")):
            return run_id
    return None


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
