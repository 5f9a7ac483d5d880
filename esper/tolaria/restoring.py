"""Putting the network of a checkpoint into a freshly built host: its shape, its kernels, its values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from esper.errors import CheckpointError, GraftError, RunError
from esper.security import Envelope
from esper.tolaria.checkpoints import Checkpoints
from esper.tolaria.lifecycle import SeedLifecycle
from esper.tolaria.rng import rng_state, set_rng_state
from esper.tolaria.shared import Rebuild
from esper.tolaria.structure import Structure, regrow
from esper.tolaria.trial import SeedKey, Trial, restore_trials


def restore_model(
    model: nn.Module, state: Mapping[str, Any], example: Tensor, rebuild: Rebuild, *, hint: str
) -> dict[SeedKey, Trial]:
    """Make the fresh host ``model`` the network of ``state``; returns the kernels in it.

    Raises CheckpointError, with ``hint``, when the network is another one.
    """
    with _fitting(hint):
        regrow(model, state["structure"], example)
        trials = restore_trials(model, state["growth"], rebuild)
        model.load_state_dict(reported_weights(state))
    return trials


def reported_weights(state: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of ``state`` that are measured and exported: the averages, where the run kept some."""
    average = state.get("average") or {"values": {}}
    return {**state["model"], **average["values"]}


def restore_training(
    structure: Structure, seeds: SeedLifecycle, state: Mapping[str, Any], *, hint: str
) -> None:
    """As ``restore_model``, with the optimizer's groups and what is remembered of growth."""
    with _fitting(hint):
        structure.restore(state["structure"])
        seeds.restore(state["growth"])
        structure.model.load_state_dict(state["model"])


def load_start(run: Path, envelope: Envelope) -> dict[str, Any]:
    """The network of the newest checkpoint of the run in the folder ``run``, for a run that begins with it.

    What was learned of growth is left out, and all of the network counts as old. Kernels on trial stay on
    trial, their epochs counted anew; seeds that rest wake after the first epoch. Raises RunError when there
    is no such run, CheckpointError when its checkpoint is damaged.
    """
    if not run.is_dir():
        raise RunError(
            f"tolaria.start: there is no run in {run}", hint="name the folder of one, such as runs/ID"
        )
    state = Checkpoints(run / "checkpoints", envelope).load(past=False)
    growth = state["growth"]
    seeds = [{**seed, "embargoed_until": seed["embargoed_until"] and 0} for seed in growth["seeds"]]
    return {
        "structure": {**state["structure"], "matched": [], "reports": []},
        "growth": {
            "seeds": seeds,
            "trials": [{**trial, "started_epoch": 0} for trial in growth["trials"]],
            "reports": [],
            "resting": [(layer, idx, 0) for layer, idx, _ in growth["resting"]],
        },
        "model": reported_weights(state),
    }


@contextmanager
def generators_kept() -> Iterator[None]:
    """Leave every generator as it was: what is built only to be overwritten draws from them."""
    before = rng_state()
    try:
        yield
    finally:
        set_rng_state(before)


@contextmanager
def _fitting(hint: str) -> Iterator[None]:
    try:
        yield
    except (GraftError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(f"the checkpoint does not fit this network: {reason}", hint=hint) from error
