"""The export of what a run grew."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from esper.assembly.kernels import build_pipeline, rebuilder
from esper.assembly.keys import build_envelope
from esper.assembly.network import build_data, build_host
from esper.blueprint import from_json
from esper.tezzeret.builder import build
from esper.tolaria.checkpoints import Checkpoints
from esper.tolaria.export import ExportReport, export_network
from esper.tolaria.restoring import restore_model


def export_run(cfg: DictConfig, run: Path, folder: Path) -> ExportReport:
    """Write the network of the newest checkpoint of the run in ``run`` into ``folder``, free of Esper.

    ``cfg`` is the run's own configuration. Raises CheckpointError, and what ``export_network`` raises.
    """
    data = build_data(cfg)
    model = build_host(cfg, data)
    state = Checkpoints(run / "checkpoints", build_envelope(cfg)).load(past=False)
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
