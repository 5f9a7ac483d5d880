"""The checkpoints of a run, for people. Importing this does not import PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from esper.assembly.keys import build_envelope
from esper.errors import StorageError
from esper.tolaria.checkpoints.folder import CheckpointFolder, Found
from esper.tolaria.checkpoints.manifest import Manifest
from esper.tolaria.durable import write_atomically


def open_checkpoints(cfg: DictConfig, run: Path) -> CheckpointFolder:
    """Those of the run in the folder ``run``; ``cfg`` is its own configuration, which names its keys."""
    return CheckpointFolder(run / "checkpoints", build_envelope(cfg))


def best_of(found: list[Found]) -> Found | None:
    """The one with the lowest held-out loss among those at the end of an epoch, of equals the oldest."""
    judged = [
        (each.manifest.mark.held_out_loss, each.step, each)
        for each in found
        if each.manifest is not None and not each.manifest.mark.step_in_epoch
    ]
    known = [(loss, step, each) for loss, step, each in judged if loss is not None and loss == loss]
    return min(known, key=lambda item: item[:2])[2] if known else None


def export_weights(cfg: DictConfig, run: Path, name: str | None, file: Path) -> dict[str, Any]:
    """Write the ``state_dict`` of a checkpoint, the newest if ``name`` is None, as safetensors.

    Names are those of the network as it trains, with its seeded layers; with ``tolaria.ema`` the weights are
    the averages, which are what was measured. Returns which checkpoint it is, and
    how many tensors and bytes it has. Raises CheckpointError, UnknownKey and StorageError.
    """
    from safetensors.torch import save

    from esper.tolaria.checkpoints.store import Checkpoints
    from esper.tolaria.restoring import reported_weights

    checkpoints = Checkpoints(run / "checkpoints", build_envelope(cfg))
    found = None if name is None and checkpoints.is_older() else checkpoints.find(name)
    state = checkpoints.load() if found is None else checkpoints.open(found, past=False)
    weights, progress = reported_weights(state), state["progress"]
    of = {"run": run.name, "step": str(progress["global_step"]), "epochs": str(progress["epochs_done"])}
    try:
        write_atomically(file, save(weights, of))
    except OSError as error:
        raise StorageError.from_os(error, file, "cannot write") from error
    size = sum(tensor.nbytes for tensor in weights.values())
    return {**of, "file": str(file), "tensors": len(weights), "bytes": size}


def last_good(checkpoints: CheckpointFolder, found: Found) -> bool:
    """Whether ``found`` is good and no other is, as far as manifests and sizes tell."""
    good = [each.path for each in checkpoints.all() if each.manifest is not None]
    return good == [found.path]


def described(found: Found, best: bool) -> dict[str, Any]:
    """A checkpoint as plain data; of one that cannot be used, its step and why."""
    manifest: Manifest | None = found.manifest
    mark = manifest.mark if manifest else None
    return {
        "name": found.name,
        "step": found.step,
        "epochs": mark.epochs if mark else None,
        "step_in_epoch": mark.step_in_epoch if mark else None,
        "held_out_loss": mark.held_out_loss if mark else None,
        "bytes": manifest.size if manifest else None,
        "created_at": manifest.created_at if manifest else None,
        "state": "good" if manifest else "damaged",
        "best": best,
        "error": None if found.error is None else found.error.message,
        "path": str(found.path),
    }
