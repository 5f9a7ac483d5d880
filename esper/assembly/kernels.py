"""Compiling for a configuration: its pipeline, and the kernels that a network will ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, open_dict
from torch import nn

from esper.assembly.configured import configured
from esper.assembly.network import usable_device
from esper.assembly.storage import place_of
from esper.assembly.workers import build_workers
from esper.blueprint import Blueprint, from_json
from esper.errors import BlueprintError, ConfigError
from esper.karn.catalogue import Catalogue, fitting, load_catalogue
from esper.messages import CompilationRecord, Slot
from esper.tezzeret.alerts import FailureAlert
from esper.tezzeret.builder import build
from esper.tezzeret.pipeline import DTYPES, Pipeline
from esper.tezzeret.queue_depth import TellQueue
from esper.tezzeret.targets import target_named
from esper.tezzeret.worker import compile_missing, stored_as
from esper.tolaria.events import Listener
from esper.tolaria.shared import Rebuild
from esper.urza.library import KernelLibrary

MAX_THREADS = 1024
"""Where the operating system refuses a thread, torch ends the process without a word."""


_OF_COMPILING = ("workers", "nice", "limits", "tries", "alert_url", "engine")
"""Keys of ``tezzeret`` that say how kernels are compiled, not what they are."""


def build_pipeline(cfg: DictConfig) -> Pipeline:
    """The compilation pipeline that ``cfg.tezzeret`` describes; sets how many threads torch uses.

    Raises ConfigError for a device that cannot be used, and for more threads than torch survives asking for.
    """
    threads = cfg.tolaria.threads
    if not 1 <= threads <= MAX_THREADS:
        raise ConfigError(f"tolaria.threads must be between 1 and {MAX_THREADS}, not {threads}")
    torch.set_num_threads(threads)
    of_pipeline = deepcopy(cfg)
    with open_dict(of_pipeline):
        for key in _OF_COMPILING:
            of_pipeline.tezzeret.pop(key, None)
    pipeline: Pipeline = configured(of_pipeline, "tezzeret")
    usable_device(pipeline.device, "tezzeret.device")
    return pipeline


def rebuilder(pipeline: Pipeline) -> Rebuild:
    """Makes a kernel's module from its blueprint and target; its weights come from a checkpoint."""

    def rebuild(blueprint: str, slot: Slot, name: str) -> nn.Module:
        target = target_named(name, pipeline.target)
        eager = build(from_json(blueprint), slot, seed=pipeline.seed).to(DTYPES[pipeline.dtype])
        program = target.compile(eager)
        target.optimise(program, torch.device(pipeline.device))
        return target.load(target.save(program), pipeline.device)

    return rebuild


def compile_pairs(
    cfg: DictConfig,
    library: KernelLibrary,
    pipeline: Pipeline,
    pairs: Iterable[tuple[Blueprint, Slot]],
    on_result: Callable[[CompilationRecord], None],
    tell: Callable[[str], None],
    *,
    on_queue: TellQueue | None = None,
    hot: bool = False,
) -> list[CompilationRecord]:
    """Compile what ``library`` lacks of ``pairs``, where and with what alerts ``cfg.tezzeret`` says.

    ``tell`` gets lines for the user; see ``compile_missing`` for the rest.
    """
    alert = FailureAlert(place_of(cfg.tezzeret.get("alert_url"), "tezzeret.alert_url"), tell)
    pairs = list(pairs)
    if not pairs:
        return []  # no worker need be started
    with build_workers(cfg, tell) or nullcontext() as workers:
        return compile_missing(
            pipeline,
            library,
            pairs,
            on_result,
            on_failure=alert,
            on_queue=on_queue,
            workers=workers,
            hot=hot,
        )


def missing_kernels(
    cfg: DictConfig,
    library: KernelLibrary,
    pipeline: Pipeline,
    slots: Iterable[Slot],
    listeners: Sequence[Listener],
) -> list[tuple[Blueprint, Slot]]:
    """What the catalogue of ``cfg.karn`` has for ``slots`` and the library lacks.

    A blueprint that cannot be used is left out, and told; a path that leads to none is a BlueprintError.
    """
    catalogue = _catalogue([Path(path) for path in cfg.karn.paths])
    for error in catalogue.errors:
        _tell(listeners, "message", text=f"left out of the catalogue: {error}")
    pairs = [(blueprint, slot) for slot in slots for blueprint in fitting(catalogue.blueprints, slot)]
    return [pair for pair in pairs if stored_as(library, pipeline, *pair) is None]


def fill_library(
    cfg: DictConfig,
    library: KernelLibrary,
    pipeline: Pipeline,
    missing: Sequence[tuple[Blueprint, Slot]],
    listeners: Sequence[Listener],
    on_queue: TellQueue | None = None,
) -> None:
    """Compile what is ``missing`` before other jobs; ``on_queue`` is told how many wait."""
    tried: set[tuple[str, Slot]] = set()

    def compiled(record: CompilationRecord) -> None:
        tried.add((record.blueprint_id, record.slot))  # one that fails may be tried twice
        _tell(listeners, "compile", record=record, done=len(tried), total=len(missing))

    def say(text: str) -> None:
        _tell(listeners, "message", text=text)

    compile_pairs(cfg, library, pipeline, missing, compiled, say, on_queue=on_queue, hot=True)


def _tell(listeners: Sequence[Listener], event: str, **fields: Any) -> None:
    for listener in listeners:
        listener(event, fields)


def _catalogue(paths: Sequence[Path]) -> Catalogue:
    """The blueprints in ``paths``, of which each must be there and some must be good."""
    for path in paths:
        if not path.exists():
            raise BlueprintError(
                f"karn.paths: there is no {path}", hint="name blueprint files, or folders of them"
            )
    catalogue = load_catalogue(paths)
    if catalogue.errors and not catalogue.blueprints:
        raise catalogue.errors[0]
    return catalogue
