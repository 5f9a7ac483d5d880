"""A training run of a configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn

from esper.assembly.auditing import build_run_trail, note_run_ended, notes_beginning
from esper.assembly.background import BackgroundInventor, check_background
from esper.assembly.beginning import discards, new_folder, run_of_job, told_before_start
from esper.assembly.configured import configured, settings
from esper.assembly.contract import check_kernels
from esper.assembly.kernels import build_pipeline, fill_library, missing_kernels, rebuilder
from esper.assembly.keys import build_envelope, key_made_notice
from esper.assembly.network import build_data, build_host, device_of, slots
from esper.assembly.resuming import other_data
from esper.assembly.storage import build_library
from esper.assembly.telemetry import prepare_telemetry
from esper.assembly.training_settings import (
    build_optimizer,
    check_bounds,
    recovery,
    retention,
    trainer_settings,
    trial_plan,
)
from esper.blueprint import Blueprint
from esper.data.batches import Batches
from esper.data.splits import DataSplits
from esper.errors import ConfigError
from esper.messages import Slot
from esper.nissa.control import ControlRequests
from esper.nissa.journal import JOURNAL_NAME, Journal
from esper.nissa.runs import RunStore
from esper.security.privacy import register_own_places
from esper.tezzeret.pipeline import Pipeline
from esper.tolaria.checkpoints import Checkpoints
from esper.tolaria.control import RunControl
from esper.tolaria.distributed import (
    Group,
    from_first,
    held_by_first,
    join,
    launched,
    processes_launched,
    restarted,
)
from esper.tolaria.evaluation import HeldOut
from esper.tolaria.events import Listener, Recorder
from esper.tolaria.kernel_start import SteepestStart
from esper.tolaria.orchestrator import SeedOrchestrator
from esper.tolaria.restoring import generators_kept, load_start, restore_model, restore_training
from esper.tolaria.rng import draw_apart, seed_everything
from esper.tolaria.run import Run, RunInfo
from esper.tolaria.shared import Kernels, Rebuild, SharedCheckpoints, SharedLibrary
from esper.tolaria.stability import Limits
from esper.tolaria.structure import Structure
from esper.tolaria.trainer import Network, Trainer
from esper.tolaria.weight_average import WeightAverage
from esper.urza.library import KernelLibrary


def build_training(
    cfg: DictConfig,
    *,
    listeners: Sequence[Listener] = (),
    resume: str | None = None,
    data: DataSplits | None = None,
) -> Run:
    """A run, ready to start: a new one, or with ``resume`` the run of that id from its newest checkpoint.

    ``listeners`` are told each event as it happens; ``data`` replaces those that ``cfg`` names. Raises any
    EsperError that the configuration earns. What is wrong or stopped before training can start leaves no
    folder behind; a process that is killed while kernels are compiled does.
    """
    check_bounds(cfg)
    emergencies, limit_settings = recovery(cfg)
    background = bool(cfg.karn.get("background", False))
    if background:
        check_background(cfg)
    telemetry_for = prepare_telemetry(cfg)
    group = build_group(cfg)
    if restarted() and resume is None:
        resume = from_first(group, lambda: run_of_job(Path(cfg.runs)))
    data = (data or build_data(cfg)).to(device_of(cfg))
    limits = Limits(math.log(data.classes), **limit_settings)
    pipeline = build_pipeline(cfg)
    start = None
    if cfg.tolaria.start and not resume:  # a checkpoint of a run has what the run started from
        start = load_start(Path(str(cfg.tolaria.start)), build_envelope(cfg))
    fitted = _started(cfg, data, start, pipeline) if start else None
    seed_everything(cfg.seed)
    model = build_host(cfg, data)
    build_optimizer(cfg, model)  # made anew below: what is wrong with it is said before there is a folder
    policy, schedule = configured(cfg, "tamiyo"), configured(cfg, "tolaria.schedule")
    if background:
        policy = configured(cfg, "karn.trials", policy=policy)
    if policy.needs_kernels:
        check_kernels(model, pipeline.dtype)
    batches = data.batches(cfg.tolaria.batch_size, cfg.seed, **settings(cfg, "tolaria.augment"))

    def tell_key_made(place: str) -> None:
        for listener in listeners:
            listener("message", {"text": key_made_notice(place)})

    missing: list[tuple[Blueprint, Slot]] = []

    def opened_library() -> KernelLibrary:
        library = opened.enter_context(build_library(cfg, on_key_made=tell_key_made))
        if policy.needs_kernels:
            places = slots(model if fitted is None else fitted)
            missing.extend(missing_kernels(cfg, library, pipeline, places, listeners))
        return library

    def compile_missing() -> None:
        if missing and library is not None and journal is not None:
            about = {"experiment": info.experiment, "task": info.task, "seed": info.seed}
            tell = told_before_start(journal, **about, total_epochs=cfg.tolaria.epochs or 0)
            fill_library(cfg, library, pipeline, missing, listeners, tell)

    with ExitStack() as opened:
        library = held_by_first(group, opened_library)
        folder = from_first(
            group, lambda: RunStore(Path(cfg.runs)).open(resume).folder if resume else new_folder(cfg, data)
        )
        if not resume and group.rank == 0:
            opened.push(discards(folder))
        requests = held_by_first(group, lambda: ControlRequests(folder))
        info = RunInfo(folder.name, folder, cfg.experiment or "run", data.task, cfg.seed)
        register_own_places(cfg.runs)
        trail = build_run_trail(cfg, tell_key_made)
        journal = held_by_first(
            group, lambda: opened.enter_context(Journal(folder / JOURNAL_NAME, trail=trail))
        )
        held_by_first(group, compile_missing)
        telemetry = None if journal is None else telemetry_for(folder, journal)
        if telemetry is not None:
            opened.callback(telemetry.close)
        beginning = (notes_beginning(library, folder),) if library is not None and not resume else ()
        recorder = Recorder(journal, (*listeners, *beginning), telemetry)
        rebuild = rebuilder(pipeline)
        alone = library if group.size == 1 else None
        kernels = alone or SharedLibrary(library, group, rebuild)
        network = _networks(cfg, data, batches, kernels, recorder, rebuild, info.run_id, group)
        checkpoints = held_by_first(
            group,
            lambda: Checkpoints(folder / "checkpoints", build_envelope(cfg, tell_key_made), retention(cfg)),
        )
        trainer = Trainer(
            network=network(model),
            rebuild=lambda: network(build_host(cfg, data)),
            batches=batches,
            schedule=schedule,
            policy=policy,
            limits=limits,
            emergencies=emergencies,
            checkpoints=SharedCheckpoints(checkpoints, group),
            recorder=recorder,
            settings=trainer_settings(cfg),
            invents=background,
            group=group,
            control=RunControl(requests, recorder, group),
        )
        if start is not None:
            with generators_kept():
                restore_training(trainer.structure, trainer.seeds, start, hint=_start_hint(cfg))
        inventor = BackgroundInventor(cfg, lambda: trainer.model, recorder, info.run_id)
        draw_apart(group.rank)
        if background and group.rank == 0:
            recorder.listeners += (inventor,)

        def end_beside() -> None:
            inventor.close()
            if library is not None:
                note_run_ended(library, info.run_id, trail)

        run = Run(info, trainer, data.test, beside=end_beside)
        if resume:
            run.restore()
            if other := other_data(folder, data):
                recorder.emit("message", text=other)
        opened.pop_all()  # the run closes them when it ends
    return run


def build_group(cfg: DictConfig) -> Group:
    """The processes that torchrun started to train this together; raises ConfigError when they are too few.

    Of the settings only whether there are many counts then: how many is torchrun's to say.
    """
    wanted, there = cfg.tolaria.get("processes") or 1, processes_launched()
    if wanted > 1 and not launched():
        raise ConfigError(
            f"tolaria.processes={wanted}, and this process was not started by torchrun",
            hint="start it with: esper train, or torchrun -m esper_cli train",
        )
    if there > 1 and wanted == 1:
        raise ConfigError(
            f"torchrun started {there} processes, and tolaria.processes is 1", hint="add tolaria=ddp"
        )
    return join(device_of(cfg).type)


def _networks(
    cfg: DictConfig,
    data: DataSplits,
    batches: Batches,
    kernels: Kernels,
    recorder: Recorder,
    rebuild: Rebuild,
    run_id: str,
    group: Group,
) -> Callable[[nn.Module], Network]:
    """Makes of a host what training changes, for a run and for each of its rollbacks."""
    ema = cfg.tolaria.get("ema")

    def network(model: nn.Module) -> Network:
        average = None if ema is None else WeightAverage(model, ema)
        held_out = HeldOut(model, data.held_out.x, data.held_out.y, group, average)
        optimizer = build_optimizer(cfg, model)
        orchestrator = SeedOrchestrator(
            model,
            kernels,
            optimizer,
            held_out,
            recorder,
            trial_plan(cfg, len(batches)),
            rebuild=rebuild,
            kernel_lr_scale=cfg.tolaria.trial.kernel_lr_scale,
            start=SteepestStart(model, batches) if cfg.tolaria.trial.init == "gradmax" else None,
            run=(run_id, _task(model, data)),
            group=group,
        )
        example = data.train.x[:2]
        structure = Structure(model, optimizer, held_out, recorder, example=example, seed=cfg.seed)
        return Network(model, held_out, optimizer, orchestrator, structure)

    return network


def _task(model: nn.Module, data: DataSplits) -> str:
    """What trials are filed under: the data, their classes, and the kind of network."""
    return f"{data.task}, {data.classes} classes, {type(model).__name__}"


def _started(cfg: DictConfig, data: DataSplits, start: Mapping[str, Any], pipeline: Pipeline) -> nn.Module:
    """The host that ``start`` makes: what does not fit is said before there is a folder."""
    model = build_host(cfg, data)
    restore_model(model, start, data.train.x[:2], rebuilder(pipeline), hint=_start_hint(cfg))
    return model


def _start_hint(cfg: DictConfig) -> str:
    return f"tolaria.start={cfg.tolaria.start} needs the model and the seeded layers of that run"
