"""Rehearsing faults on a short run of a configuration: what of them does it survive?

Each rehearsal trains the configuration's own network, data and optimizer for a few steps, in a folder that is
removed afterwards, without growth but for the kernel that fails; neither runs nor library are touched.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from omegaconf import DictConfig, OmegaConf, open_dict

from esper.assembly.drill_faults import FailingLibrary, GraftOnce, KernelFault, PoisonedBatches
from esper.assembly.kernels import build_pipeline
from esper.assembly.network import build_data, device_of
from esper.assembly.training import build_training
from esper.data.splits import DataSplits
from esper.errors import ConfigError, EsperError, StorageError
from esper.karn.catalogue import fitting, load_catalogue
from esper.tezzeret.worker import compile_missing
from esper.tolaria.run import Run
from esper.tolaria.stability import first_non_finite
from esper.urza.library import KernelLibrary

EPOCHS: Final = 3
STEPS: Final = 8
"""Of an epoch: a rehearsal is 24 steps, with a checkpoint every fourth."""

SAMPLES: Final = 500
"""Of the held-out and the test split, at most."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """One fault; whether it was survived, None where it cannot come up; the seconds to recover, if any."""

    fault: str
    survived: bool | None
    seconds: float | None
    detail: str


@dataclass(frozen=True, slots=True)
class Ground:
    """What rehearsals share: a short configuration, the weights it leads to, and the Redis that is used."""

    cfg: DictConfig
    undisturbed: str
    redis: str | None


Outcome = tuple[bool | None, float | None, str]


def rehearse(cfg: DictConfig, only: Collection[str] = ()) -> Iterator[Rehearsal]:
    """Rehearse each fault, or those in ``only``, one after another.

    Raises ConfigError for a fault that there is none of, and whatever the configuration earns when nothing
    is wrong: what comes after is judged beside that run.
    """
    if unknown := set(only) - FAULTS.keys():
        raise ConfigError(
            f"no fault is called {', '.join(sorted(unknown))}", hint=f"there are: {', '.join(FAULTS)}"
        )
    with tempfile.TemporaryDirectory(prefix="esper-drill-") as folder:
        short = _short(cfg, Path(folder))
        ground = Ground(short, _train(short).run()["weights_sha256"], cfg.urza.redis)
        for fault, rehearsal in FAULTS.items():
            if only and fault not in only:
                continue
            try:
                outcome = rehearsal(ground)
            except EsperError as error:
                outcome = False, None, error.message
            except Exception as error:  # a defect: to be told of like any other end
                outcome = False, None, f"{type(error).__name__}: {error}"
            yield Rehearsal(fault, *outcome)


def short_data(cfg: DictConfig) -> DataSplits:
    """As many samples as a rehearsal trains on."""
    data = build_data(cfg)
    return data.subset(
        train=min(STEPS * cfg.tolaria.batch_size, len(data.train.y)),
        held_out=min(SAMPLES, len(data.held_out.y)),
        test=min(SAMPLES, len(data.test.y)),
    )


def _short(cfg: DictConfig, folder: Path) -> DictConfig:
    short = deepcopy(cfg)
    changes = {
        "runs": str(folder),
        "tolaria.epochs": EPOCHS,
        "tolaria.flops": None,
        "tolaria.start": None,
        "tolaria.processes": None,
        "tolaria.checkpoint_every": 4,
        "tolaria.observe_every": 4,
        "karn.background": False,
        "urza": {"url": "sqlite://", "redis": None, "memory_bytes": 2**26},
        "tamiyo": {"_target_": "esper.tamiyo.never.NeverGrow"},
    }
    with open_dict(short):
        for key, value in changes.items():
            OmegaConf.update(short, key, value, merge=False)
    return short


def _train(cfg: DictConfig, **arguments: Any) -> Run:
    return build_training(cfg, data=short_data(cfg), **arguments)


def _failing_kernel(cfg: DictConfig, fault: KernelFault) -> Outcome:
    run = _train(cfg)
    faults, trainer = _telling(run, "fault")["fault"], run.trainer
    trainer.policy, trainer.orchestrator.library = GraftOnce(), FailingLibrary([fault])
    run.run()
    if broken := first_non_finite(trainer.model):
        return False, None, f"{broken} holds a non-finite value"
    if len(faults) != 1:
        return False, None, f"the kernel was to fail once, and {len(faults)} faults were told of"
    (seen,) = faults
    return True, None, f"{seen['kind']}: {seen['message']}; the kernel was taken out"


def _raises(ground: Ground) -> Outcome:
    return _failing_kernel(ground.cfg, "raise")


def _gives_nan(ground: Ground) -> Outcome:
    return _failing_kernel(ground.cfg, "nan")


def _killed(ground: Ground) -> Outcome:
    with tempfile.TemporaryDirectory(dir=ground.cfg.runs) as folder:
        own = _in(ground.cfg, folder)
        code, words = _in_another_process(own, "kill")
        if code != -9:
            return False, None, f"the process was to be killed, and ended with {code}: {words}"
        return _resumed(own, ground.undisturbed, "killed by SIGKILL")


def _disk_full(ground: Ground) -> Outcome:
    with tempfile.TemporaryDirectory(dir=ground.cfg.runs) as folder:
        own = _in(ground.cfg, folder)
        code, words = _in_another_process(own, "full")
        if code != StorageError.exit_code:
            return False, None, f"it was to end with {StorageError.exit_code}, and did with {code}: {words}"
        return _resumed(own, ground.undisturbed, f"ended with {code}")


def _in(cfg: DictConfig, folder: str) -> DictConfig:
    own = deepcopy(cfg)
    own.runs = folder
    return own


def _in_another_process(cfg: DictConfig, fault: str) -> tuple[int, str]:
    """The exit code of a process that trains until ``fault``, and its last words."""
    done = subprocess.run(
        [sys.executable, "-m", "esper.assembly.drill_process", fault],
        input=OmegaConf.to_yaml(cfg, resolve=True),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)},
    )
    return done.returncode, (done.stderr.strip().splitlines() or ["without a word"])[-1]


def _resumed(cfg: DictConfig, undisturbed: str, ended: str) -> Outcome:
    (folder,) = (path for path in Path(cfg.runs).iterdir() if path.is_dir())
    began = time.perf_counter()
    run = _train(cfg, resume=folder.name)
    seconds, step = time.perf_counter() - began, run.trainer.progress.global_step
    same = run.run()["weights_sha256"] == undisturbed
    detail = f"{ended}; went on from step {step}, to {'the same' if same else 'other'} weights"
    # A GPU adds in no fixed order, so there the last bits may differ.
    return same or device_of(cfg).type != "cpu", seconds, detail


def _redis_gone(ground: Ground) -> Outcome:
    if not ground.redis:
        return None, None, "not configured: urza.redis is null"
    own = deepcopy(ground.cfg)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # nobody listens there once this is closed
    own.urza.redis, own.urza.memory_bytes = f"redis://127.0.0.1:{port}", 0
    run = _train(own)
    told = _telling(run, "decision", "cache")
    trainer = run.trainer
    layer = next(iter(trainer.seeds.layers.values()))
    library = trainer.orchestrator.library
    assert isinstance(library, KernelLibrary)
    slot = layer.slot("series", 0)
    blueprints = fitting(load_catalogue([Path(path) for path in own.karn.paths]).blueprints, slot)
    compile_missing(build_pipeline(own), library, [(blueprints[0], slot)])
    trainer.policy = GraftOnce()
    run.run()
    grafted = [fields for fields in told["decision"] if fields["outcome"]["status"] == "grafted"]
    errors = told["cache"][-1]["tiers"]["redis"].errors
    detail = f"{errors} calls failed; {len(grafted)} of 1 kernel came from the record"
    return bool(grafted and errors), None, detail


def _telling(run: Run, *events: str) -> dict[str, list[Mapping[str, Any]]]:
    """What the run will tell of ``events``, as it does."""
    told: dict[str, list[Mapping[str, Any]]] = {event: [] for event in events}

    def listen(event: str, fields: Mapping[str, Any]) -> None:
        if event in told:
            told[event].append(fields)

    run.trainer.recorder.listeners += (listen,)
    return told


def _poisoned(ground: Ground) -> Outcome:
    run = _train(ground.cfg)
    trainer = run.trainer
    if not trainer.batches.x.is_floating_point():
        return None, None, "the samples are whole numbers: none can be not a number"
    trainer.batches = PoisonedBatches(trainer.batches, (1, min(3, len(trainer.batches) - 1)))
    rollbacks = _telling(run, "rollback")["rollback"]
    run.run()
    if len(rollbacks) != 1:
        return False, None, f"one rollback was to be enough, and it took {len(rollbacks)}"
    (back,) = rollbacks
    detail = f"{back['detail']}; back from step {back['from_step']} to {back['to_step']}, the batch left out"
    return True, float(back["seconds"]), detail


FAULTS: Final[Mapping[str, Callable[[Ground], Outcome]]] = {
    "kernel-raises": _raises,
    "kernel-nan": _gives_nan,
    "process-killed": _killed,
    "redis-gone": _redis_gone,
    "disk-full": _disk_full,
    "poisoned-batch": _poisoned,
}
"""What is rehearsed, in this order."""
