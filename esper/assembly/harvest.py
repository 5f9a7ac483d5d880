"""Kernels that a run kept, with the weights that they learned there, as new kernels of the library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from esper.assembly.kernels import build_pipeline, rebuilder
from esper.assembly.keys import build_envelope
from esper.assembly.network import build_data, build_host
from esper.blueprint import from_json
from esper.errors import RunError
from esper.kasmina import seeded_layers
from esper.messages import KernelMetadata
from esper.tezzeret.pipeline import Trained
from esper.tezzeret.targets import target_named
from esper.tolaria.checkpoints import Checkpoints
from esper.tolaria.restoring import restore_model
from esper.urza.library import KernelLibrary


def harvest(
    cfg: DictConfig,
    run: Path,
    library: KernelLibrary,
    tell: Callable[[KernelMetadata, bool], None] = lambda *_: None,
) -> list[KernelMetadata]:
    """Store every kernel that the run in the folder ``run`` kept, trained as its newest checkpoint has it.

    ``cfg`` is the run's own configuration. ``tell`` learns of each kernel, and whether it is new; one that
    was harvested before stays as it is. Raises RunError where nothing was kept, CheckpointError,
    CompilationError, and what the library raises.
    """
    pipeline = build_pipeline(cfg)
    data = build_data(cfg)
    model = build_host(cfg, data)
    state = Checkpoints(run / "checkpoints", build_envelope(cfg)).load(past=False)
    hint = f"the run {run.name} was made with another version of its model"
    trials = restore_model(model, state, data.train.x[:2], rebuilder(pipeline), hint=hint)
    kept = [trial for trial in trials.values() if trial.finished]
    if not kept:
        raise RunError(
            f"the run {run.name} kept no kernel",
            hint="see what became of its seeds with: esper runs show " + run.name,
        )
    layers = seeded_layers(model)
    found = []
    for trial in kept:
        kernel = layers[trial.layer].seed(trial.seed_idx).kernel
        assert kernel is not None, trial.name  # a seed whose trial is over and kept holds its kernel
        decision = f"epoch {trial.started_epoch}, {trial.layer}, seed {trial.seed_idx}"
        trained = Trained(kernel.state_dict(), trial.kernel_id, run.name, decision)
        blueprint = from_json(trial.blueprint)
        same = replace(pipeline, target=target_named(trial.target, pipeline.target))
        new = not library.contains(same.kernel_id(blueprint, trial.slot, trained))
        artefact = same.compile(blueprint, trial.slot, trained=trained)
        stored = library.put(artefact)
        tell(stored, new)
        found.append(stored)
    return found
