"""The composition root: configuration in, wired objects out.

Nothing else builds its own collaborators, and ``DictConfig`` goes no further than this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import hydra.utils
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from torch.optim import Optimizer

from esper.blueprint import Blueprint
from esper.data.splits import DataSplits
from esper.errors import ConfigError, EsperError, StorageError
from esper.karn.catalogue import fitting, load_catalogue
from esper.kasmina import seeded_layers, wrap
from esper.messages import CompilationRecord, KernelMetadata, Slot
from esper.nissa.api import create_app
from esper.nissa.journal import JOURNAL_NAME, Journal
from esper.nissa.monitor import Monitor
from esper.nissa.runs import RunStore
from esper.nissa.server import MetricsServer, access_notice
from esper.tezzeret.builder import build
from esper.tezzeret.pipeline import Pipeline
from esper.tezzeret.worker import compile_missing
from esper.tolaria.checkpoint import Checkpoints, write_atomically
from esper.tolaria.evaluation import HeldOut
from esper.tolaria.events import Listener, Recorder
from esper.tolaria.export import ExportReport, export_network
from esper.tolaria.orchestrator import Rebuild, SeedOrchestrator, restore_trials
from esper.tolaria.rng import seed_everything
from esper.tolaria.run import Run, RunInfo
from esper.tolaria.trainer import Trainer, TrainerSettings
from esper.tolaria.trial import TrialPlan
from esper.urza.library import KernelLibrary, open_library


def build_library(cfg: DictConfig) -> KernelLibrary:
    """The kernel library that ``cfg.urza`` describes; raises LibraryError or StorageError."""
    target = _instantiate(cfg, "tezzeret.target")

    def load(metadata: KernelMetadata, program: bytes) -> nn.Module:
        module: nn.Module = target.load(program, metadata.device)
        return module

    return open_library(cfg.urza.url, load, memory_bytes=cfg.urza.memory_bytes)


def build_pipeline(cfg: DictConfig) -> Pipeline:
    """The compilation pipeline that ``cfg.tezzeret`` describes; sets how many threads torch uses."""
    torch.set_num_threads(cfg.tolaria.threads)
    pipeline: Pipeline = _instantiate(cfg, "tezzeret")
    return pipeline


def build_data(cfg: DictConfig) -> DataSplits:
    """The data set that ``cfg.data`` names; raises DataError."""
    data: DataSplits = _instantiate(cfg, "data")
    return data


def build_model(cfg: DictConfig, data: DataSplits) -> nn.Module:
    """The host network of ``cfg.model``, unwrapped.

    Constructor arguments that are null in the configuration and named ``in_channels``, ``in_features``,
    ``image_size`` or ``classes`` are filled in from the data.
    """
    channels, *space = data.sample_shape
    facts = {
        "in_channels": channels,
        "in_features": data.train.x[0].numel(),
        "image_size": space[-1] if space else None,
        "classes": data.classes,
    }
    known = {key: facts[key] for key, value in cfg.model.items() if value is None and key in facts}
    model: nn.Module = _instantiate(cfg, "model", **known)
    return model


def build_training(cfg: DictConfig, *, listeners: Sequence[Listener] = (), resume: str | None = None) -> Run:
    """A run, ready to start: a new one, or with ``resume`` the run of that id from its newest checkpoint.

    ``listeners`` are told each event as it happens. Raises any EsperError that the configuration earns.
    """
    device = _device(cfg.tolaria.device)
    _check_bounds(cfg)
    data = build_data(cfg).to(device)
    seed_everything(cfg.seed)
    model = _place(build_model(cfg, data), cfg, device)
    wrap(model, data.train.x[:2], **_plain(cfg, "kasmina"))
    folder = RunStore(Path(cfg.runs)).open(resume).folder if resume else _new_folder(cfg)
    recorder = Recorder(Journal(folder / JOURNAL_NAME), listeners)
    policy = _instantiate(cfg, "tamiyo")
    library = build_library(cfg)
    pipeline = build_pipeline(cfg)
    if policy.needs_kernels:
        _fill(library, pipeline, cfg, _slots(model), recorder)
    batches = data.batches(cfg.tolaria.batch_size, cfg.seed, **_plain(cfg, "tolaria.augment"))
    optimizer = _optimizer(cfg, model)
    info = RunInfo(folder.name, folder, cfg.experiment or "run", data.task, cfg.seed)
    held_out = HeldOut(model, data.held_out.x, data.held_out.y)
    orchestrator = SeedOrchestrator(
        model,
        library,
        optimizer,
        held_out,
        recorder,
        _trial_plan(cfg, len(batches)),
        rebuild=_rebuild(pipeline),
        kernel_lr_scale=cfg.tolaria.trial.kernel_lr_scale,
        run=(info.run_id, info.task),
    )
    trainer = Trainer(
        model=model,
        batches=batches,
        held_out=held_out,
        optimizer=optimizer,
        schedule=_instantiate(cfg, "tolaria.schedule"),
        policy=policy,
        orchestrator=orchestrator,
        checkpoints=Checkpoints(folder / "checkpoints", keep=cfg.tolaria.keep_checkpoints),
        recorder=recorder,
        settings=TrainerSettings(
            epochs=cfg.tolaria.epochs,
            observe_every=cfg.tolaria.observe_every,
            max_grad_norm=cfg.tolaria.max_grad_norm,
            autocast=cfg.tolaria.autocast,
        ),
    )
    run = Run(info, trainer, data.test)
    if resume:
        run.restore()
    return run


def export_run(cfg: DictConfig, run: Path, folder: Path) -> ExportReport:
    """Write the network of the newest checkpoint of the run in ``run`` into ``folder``, free of Esper.

    ``cfg`` is the run's own configuration. Raises CheckpointError, and what ``export_network`` raises.
    """
    data = build_data(cfg)
    model = _place(build_model(cfg, data), cfg, torch.device("cpu"))
    wrap(model, data.train.x[:2], **_plain(cfg, "kasmina"))
    state = Checkpoints(run / "checkpoints").load()
    pipeline = build_pipeline(cfg)
    trials = restore_trials(model, state["growth"], _rebuild(pipeline))
    model.load_state_dict(state["model"])
    kernels = {
        key: build(Blueprint.model_validate_json(trial.blueprint), trial.slot)
        for key, trial in trials.items()
    }
    notes = (
        f"Run {run.name}, after epoch {state['epoch']}. The input is {data.task}, normalised as the run did."
    )
    return export_network(model, kernels, data.held_out.x[:64], folder.resolve(), notes=notes)


def serve(cfg: DictConfig, *, say: Callable[[str], None]) -> None:
    """Serve metrics, health and the API over ``cfg.runs`` until SIGINT or SIGTERM.

    ``say`` is told where it listens and who can read it. Raises ServerError when the port is taken.
    """
    with build_library(cfg) as library:
        monitor = Monitor(RunStore(Path(cfg.runs), keep_packets=False), library.compilations)
        server = MetricsServer(create_app(monitor), host=cfg.nissa.host, port=cfg.nissa.port)
        say(access_notice(cfg.nissa.host))
        server.run(on_ready=lambda url: say(f"serving {cfg.runs} at {url}"))


def _check_bounds(cfg: DictConfig) -> None:
    """Refuse numbers that no run can be made of; the parts that are instantiated check their own."""
    at_least = {
        "tolaria.epochs": 1,
        "tolaria.threads": 1,
        "tolaria.observe_every": 1,
        "tolaria.keep_checkpoints": 1,
        "tolaria.trial.embargo": 0,
        "seed": 0,
    }
    for key, least in at_least.items():
        value = OmegaConf.select(cfg, key)
        if value < least:
            raise ConfigError(f"{key} must be at least {least}, not {value}")


def _new_folder(cfg: DictConfig) -> Path:
    """The folder of a new run, with the configuration that it can be resumed under."""
    folder = RunStore(Path(cfg.runs)).create(cfg.experiment or "run")
    path = folder / "config.yaml"
    try:
        write_atomically(path, OmegaConf.to_yaml(cfg).encode())
    except OSError as error:
        raise StorageError.from_os(error, path, "cannot write") from error
    return folder


def _place(model: nn.Module, cfg: DictConfig, device: torch.device) -> nn.Module:
    model.to(device)
    if cfg.tolaria.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    return model


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"tolaria.device={name}: {reason}", hint="use cpu, cuda or auto") from error
    return device


def _optimizer(cfg: DictConfig, model: nn.Module) -> Optimizer:
    """The optimizer of the host; every group remembers its peak learning rate for the schedule."""
    optimizer: Optimizer = _instantiate(cfg, "tolaria.optimizer", params=list(model.parameters()))
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def _trial_plan(cfg: DictConfig, steps_per_epoch: int) -> TrialPlan:
    trial = cfg.tolaria.trial
    return TrialPlan(
        training_steps=max(1, round(trial.training * steps_per_epoch)),
        blending_steps=max(1, round(trial.blending * steps_per_epoch)),
        holding_steps=max(1, round(trial.holding * steps_per_epoch)),
        z=trial.z,
        min_gain=trial.min_gain,
        embargo_epochs=trial.embargo,
    )


def _rebuild(pipeline: Pipeline) -> Rebuild:
    """A kernel's module from its blueprint alone; its weights come from the checkpoint."""
    target = pipeline.target

    def rebuild(blueprint: str, slot: Slot) -> nn.Module:
        program = target.compile(build(Blueprint.model_validate_json(blueprint), slot, seed=pipeline.seed))
        target.optimise(program, torch.device(pipeline.device))
        return target.load(target.save(program), pipeline.device)

    return rebuild


def _fill(
    library: KernelLibrary, pipeline: Pipeline, cfg: DictConfig, slots: Iterable[Slot], recorder: Recorder
) -> None:
    """Compile what the catalogue has for ``slots``, before training, so that runs can be repeated."""
    catalogue = load_catalogue([Path(path) for path in cfg.karn.paths])
    for error in catalogue.errors:
        recorder.emit("message", text=f"left out of the catalogue: {error}")
    pairs = _pairs(catalogue.blueprints, slots)
    done = 0

    def tell(record: CompilationRecord) -> None:
        nonlocal done
        done += 1
        recorder.emit("compile", record=record, done=done, total=len(pairs))

    compile_missing(pipeline, library, pairs, tell)


def slots_of(cfg: DictConfig) -> list[Slot]:
    """The slots of the network that ``cfg`` describes, each once, in the order of its layers."""
    data = build_data(cfg)
    model = build_model(cfg, data)
    wrap(model, data.train.x[:2], **_plain(cfg, "kasmina"))
    return _slots(model)


def _slots(model: nn.Module) -> list[Slot]:
    slots: dict[Slot, None] = {}
    for layer in seeded_layers(model).values():
        for idx in range(len(layer.seeds)):
            slots[layer.slot("series", idx)] = None
            if not layer.parallel_refusal():
                slots[layer.slot("parallel", idx)] = None
    return list(slots)


def _pairs(blueprints: Iterable[Blueprint], slots: Iterable[Slot]) -> list[tuple[Blueprint, Slot]]:
    known = list(blueprints)
    return [(blueprint, slot) for slot in slots for blueprint in fitting(known, slot)]


def _plain(cfg: DictConfig, key: str) -> dict[str, Any]:
    """The node ``key`` as keyword arguments."""
    return dict(OmegaConf.to_container(OmegaConf.select(cfg, key), resolve=True))  # type: ignore[arg-type]


def _instantiate(cfg: DictConfig, key: str, **kwargs: Any) -> Any:
    """The object that the node ``key`` describes; raises ConfigError for what cannot be built."""
    node = OmegaConf.select(cfg, key)
    _check_targets(cfg, OmegaConf.to_container(node, resolve=True), key)
    try:
        return hydra.utils.instantiate(node, **kwargs, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, EsperError):
            raise cause from error
        reason = str(cause or error).splitlines()[0]
        raise ConfigError(f"{key}: {reason}", hint="look at it with: esper train --cfg job") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from error


def _check_targets(cfg: DictConfig, node: Any, key: str) -> None:
    """Refuse to call what the user has not allowed: a configuration is data, ``_target_`` makes it code."""
    if isinstance(node, dict):
        target = node.get("_target_")
        if target is not None and not str(target).startswith(tuple(cfg.allow_targets)):
            module = str(target).partition(".")[0]
            raise ConfigError(
                f"{key}._target_ is {target}, which is not among allow_targets",
                hint=f"if you trust it, add 'allow_targets=[esper.,torch.optim.,{module}.]'",
            )
        for name, child in node.items():
            _check_targets(cfg, child, f"{key}.{name}")
    elif isinstance(node, list):
        for index, child in enumerate(node):
            _check_targets(cfg, child, f"{key}[{index}]")
