"""A training run of a configuration, and the export of what it grew."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer

from esper.assembly.auditing import build_run_trail, note_run_ended
from esper.assembly.background import BackgroundInventor, check_background
from esper.assembly.beginning import discards, told_before_start
from esper.assembly.configured import configured, settings
from esper.assembly.kernels import build_pipeline, fill_library, missing_kernels, rebuilder
from esper.assembly.keys import build_envelope, key_made_notice
from esper.assembly.network import build_data, build_host, device_of, slots
from esper.assembly.numerics import compile_of, precision_of
from esper.assembly.resuming import DATA_NAME, other_data
from esper.assembly.storage import build_library
from esper.assembly.telemetry import prepare_telemetry
from esper.blueprint import Blueprint, from_json
from esper.data.splits import DataSplits
from esper.errors import ConfigError, StorageError
from esper.messages import Slot
from esper.nissa.control import ControlRequests
from esper.nissa.journal import JOURNAL_NAME, Journal
from esper.nissa.runs import RunStore
from esper.security.privacy import register_own_places
from esper.tamiyo.emergency import EmergencyPolicy
from esper.tezzeret.builder import build
from esper.tezzeret.pipeline import Pipeline
from esper.tolaria.checkpoints import Checkpoints, Retention
from esper.tolaria.control import RunControl
from esper.tolaria.distributed import (
    Group,
    from_first,
    held_by_first,
    job_id,
    join,
    launched,
    processes_launched,
    restarted,
)
from esper.tolaria.durable import write_atomically
from esper.tolaria.evaluation import HeldOut
from esper.tolaria.events import Listener, Recorder
from esper.tolaria.export import ExportReport, export_network
from esper.tolaria.kernel_start import SteepestStart
from esper.tolaria.orchestrator import SeedOrchestrator
from esper.tolaria.restoring import generators_kept, load_start, restore_model, restore_training
from esper.tolaria.rng import draw_apart, seed_everything
from esper.tolaria.run import Run, RunInfo
from esper.tolaria.shared import SharedCheckpoints, SharedLibrary
from esper.tolaria.stability import Limits
from esper.tolaria.structure import Structure
from esper.tolaria.trainer import Network, Trainer, TrainerSettings
from esper.tolaria.trial import TrialPlan
from esper.tolaria.weight_average import WeightAverage
from esper.urza.library import KernelLibrary

JOB_NAME = "job"
"""The file of a run that says which job of torchrun began it, for when that is restarted."""


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
    _check_bounds(cfg)
    emergencies, limit_settings = _recovery(cfg)
    background = bool(cfg.karn.get("background", False))
    if background:
        check_background(cfg)
    telemetry_for = prepare_telemetry(cfg)
    group = build_group(cfg)
    if restarted() and resume is None:
        resume = from_first(group, lambda: _run_of_job(Path(cfg.runs)))
    data = (data or build_data(cfg)).to(device_of(cfg))
    limits = Limits(math.log(data.classes), **limit_settings)
    pipeline = build_pipeline(cfg)
    # A checkpoint of a run has what the run started from.
    start = (
        load_start(Path(str(cfg.tolaria.start)), build_envelope(cfg))
        if cfg.tolaria.start and not resume
        else None
    )
    fitted = _started(cfg, data, start, pipeline) if start else None
    seed_everything(cfg.seed)
    model = build_host(cfg, data)
    _optimizer(cfg, model)  # made anew below: what is wrong with it is said before there is a folder
    policy, schedule = configured(cfg, "tamiyo"), configured(cfg, "tolaria.schedule")
    if background:
        policy = configured(cfg, "karn.trials", policy=policy)
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
            group, lambda: RunStore(Path(cfg.runs)).open(resume).folder if resume else _new_folder(cfg, data)
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
        recorder = Recorder(journal, listeners, telemetry)
        rebuild = rebuilder(pipeline)
        shared = SharedLibrary(library, group, rebuild)
        task, ema = _task(model, data), cfg.tolaria.get("ema")

        def network(model: nn.Module) -> Network:
            average = None if ema is None else WeightAverage(model, ema)
            held_out = HeldOut(model, data.held_out.x, data.held_out.y, group, average)
            optimizer = _optimizer(cfg, model)
            orchestrator = SeedOrchestrator(
                model,
                library if library is not None and group.size == 1 else shared,
                optimizer,
                held_out,
                recorder,
                _trial_plan(cfg, len(batches)),
                rebuild=rebuild,
                kernel_lr_scale=cfg.tolaria.trial.kernel_lr_scale,
                start=SteepestStart(model, batches) if cfg.tolaria.trial.init == "gradmax" else None,
                run=(info.run_id, task),
                group=group,
            )
            example = data.train.x[:2]
            structure = Structure(model, optimizer, held_out, recorder, example=example, seed=cfg.seed)
            return Network(model, held_out, optimizer, orchestrator, structure)

        checkpoints = held_by_first(
            group,
            lambda: Checkpoints(folder / "checkpoints", build_envelope(cfg, tell_key_made), _retention(cfg)),
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
            settings=_trainer_settings(cfg),
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


def export_run(cfg: DictConfig, run: Path, folder: Path) -> ExportReport:
    """Write the network of the newest checkpoint of the run in ``run`` into ``folder``, free of Esper.

    ``cfg`` is the run's own configuration. Raises CheckpointError, and what ``export_network`` raises.
    """
    data = build_data(cfg)
    model = build_host(cfg, data)
    state = Checkpoints(run / "checkpoints", build_envelope(cfg)).load()
    trials = restore_model(
        model,
        state,
        data.train.x[:2],
        rebuilder(build_pipeline(cfg)),
        hint="export with the model and the seeded layers that the run had",
    )
    kernels = {key: build(from_json(trial.blueprint), trial.slot) for key, trial in trials.items()}
    epochs = state["progress"]["epochs_done"]
    notes = f"Run {run.name}, after epoch {epochs}. x is normalised as in that run: {data.task}."
    return export_network(model, kernels, data.held_out.x[:64], folder.resolve(), notes=notes)


def _check_bounds(cfg: DictConfig) -> None:
    """Refuse settings that no run can be made of; the parts that are instantiated check their own."""
    init = OmegaConf.select(cfg, "tolaria.trial.init")
    if init not in ("default", "gradmax"):
        raise ConfigError(f"tolaria.trial.init must be default or gradmax, not {init}")
    precision_of(cfg), compile_of(cfg)
    bounds = {
        "tolaria.epochs": (1, math.inf),
        "tolaria.flops": (1, math.inf),
        "tolaria.observe_every": (1, math.inf),
        "tolaria.keep_checkpoints": (1, math.inf),
        "tolaria.keep_best": (0, math.inf),
        "tolaria.keep_every": (0, math.inf),
        "tolaria.checkpoint_every": (1, math.inf),
        "tolaria.max_grad_norm": (0, math.inf),
        "tolaria.processes": (1, math.inf),
        "tolaria.restarts": (0, math.inf),
        "tolaria.accumulate": (1, math.inf),
        "tolaria.ema": (0, 1),
        "tolaria.trial.training": (0, math.inf),
        "tolaria.trial.blending": (0, math.inf),
        "tolaria.trial.holding": (0, math.inf),
        "tolaria.trial.embargo": (0, math.inf),
        "tolaria.trial.kernel_lr_scale": (0, math.inf),
        "seed": (0, 2**32 - 1),  # what every generator takes
    }
    for key, (least, most) in bounds.items():
        value = OmegaConf.select(cfg, key)
        if value is None or (least <= value <= most and value != math.inf):
            continue
        if value > most < math.inf:
            raise ConfigError(f"{key} must be at most {most}, not {value}")
        raise ConfigError(f"{key} must be at least {least}, not {value}")  # not a number, too


def _new_folder(cfg: DictConfig, data: DataSplits) -> Path:
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


def _run_of_job(runs: Path) -> str | None:
    """The run that torchrun's job began before it was restarted, if that came to its first checkpoint."""
    for run_id in reversed(RunStore(runs).run_ids()):
        job, checkpoints = runs / run_id / JOB_NAME, runs / run_id / "checkpoints"
        if job.is_file() and job.read_text() == job_id() and any(checkpoints.glob("step-*")):
            return run_id
    return None


def _optimizer(cfg: DictConfig, model: nn.Module) -> Optimizer:
    """The optimizer of the host; every group remembers its peak learning rate for the schedule."""
    optimizer: Optimizer = configured(cfg, "tolaria.optimizer", params=list(model.parameters()))
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def _trainer_settings(cfg: DictConfig) -> TrainerSettings:
    return TrainerSettings(
        epochs=cfg.tolaria.epochs,
        flops=cfg.tolaria.flops,
        observe_every=cfg.tolaria.observe_every,
        max_grad_norm=cfg.tolaria.max_grad_norm,
        precision=precision_of(cfg),
        compile=compile_of(cfg),
        checkpoint_every=cfg.tolaria.get("checkpoint_every"),
        accumulate=cfg.tolaria.get("accumulate") or 1,
    )


def _retention(cfg: DictConfig) -> Retention:
    """Which checkpoints stay; a run that was begun before there was a choice keeps the newest alone."""
    tolaria = cfg.tolaria
    return Retention(tolaria.keep_checkpoints, tolaria.get("keep_best", 0), tolaria.get("keep_every", 0))


def _recovery(cfg: DictConfig) -> tuple[EmergencyPolicy, dict[str, Any]]:
    """What is done in an emergency, and the limits beyond which there is one; by default in older runs."""
    wanted = settings(cfg, "tolaria.recovery") if "recovery" in cfg.tolaria else {}
    policy = {name: wanted.pop(name) for name in ("rollbacks", "rate", "least_rate") if name in wanted}
    return EmergencyPolicy(**policy), wanted


def _trial_plan(cfg: DictConfig, steps_per_epoch: int) -> TrialPlan:
    """Stages that the configuration gives in epochs, in steps."""
    trial = cfg.tolaria.trial
    return TrialPlan(
        training_steps=max(1, round(trial.training * steps_per_epoch)),
        blending_steps=max(1, round(trial.blending * steps_per_epoch)),
        holding_steps=max(1, round(trial.holding * steps_per_epoch)),
        z=trial.z,
        min_gain=trial.min_gain,
        embargo_epochs=trial.embargo,
        fold=trial.fold,
    )
