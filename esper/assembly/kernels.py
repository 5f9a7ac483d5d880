"""Compiling for a configuration: its pipeline, and the kernels that a network will ask for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn

from esper.assembly.configured import configured
from esper.blueprint import Blueprint
from esper.karn.catalogue import fitting, load_catalogue
from esper.messages import CompilationRecord, Slot
from esper.tezzeret.builder import build
from esper.tezzeret.pipeline import Pipeline
from esper.tezzeret.worker import compile_missing
from esper.tolaria.events import Recorder
from esper.tolaria.orchestrator import Rebuild
from esper.urza.library import KernelLibrary


def build_pipeline(cfg: DictConfig) -> Pipeline:
    """The compilation pipeline that ``cfg.tezzeret`` describes; sets how many threads torch uses."""
    torch.set_num_threads(cfg.tolaria.threads)
    pipeline: Pipeline = configured(cfg, "tezzeret")
    return pipeline


def rebuilder(pipeline: Pipeline) -> Rebuild:
    """Makes a kernel's module from its blueprint alone; its weights come from a checkpoint."""
    target = pipeline.target

    def rebuild(blueprint: str, slot: Slot) -> nn.Module:
        program = target.compile(build(Blueprint.model_validate_json(blueprint), slot, seed=pipeline.seed))
        target.optimise(program, torch.device(pipeline.device))
        return target.load(target.save(program), pipeline.device)

    return rebuild


def fill_library(
    cfg: DictConfig, library: KernelLibrary, pipeline: Pipeline, slots: Iterable[Slot], recorder: Recorder
) -> None:
    """Compile what the catalogue of ``cfg.karn`` has for ``slots`` and the library lacks."""
    catalogue = load_catalogue([Path(path) for path in cfg.karn.paths])
    for error in catalogue.errors:
        recorder.emit("message", text=f"left out of the catalogue: {error}")
    pairs = [(blueprint, slot) for slot in slots for blueprint in fitting(catalogue.blueprints, slot)]
    missing = [pair for pair in pairs if not library.contains(pipeline.kernel_id(*pair))]
    tried: set[tuple[str, Slot]] = set()

    def tell(record: CompilationRecord) -> None:
        tried.add((record.blueprint_id, record.slot))  # one that fails may be tried twice
        recorder.emit("compile", record=record, done=len(tried), total=len(missing))

    compile_missing(pipeline, library, missing, tell)
