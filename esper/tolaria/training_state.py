"""All that the rest of a run depends on, taken out of a trainer and put into one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import Tensor

from esper.kasmina import merge_observed, observed, restore_observed
from esper.tolaria.progress import EpochSoFar, Progress
from esper.tolaria.restoring import restore_training
from esper.tolaria.rng import draw_apart, rng_state, set_rng_state

if TYPE_CHECKING:
    from esper.tolaria.trainer import Trainer


def capture(trainer: Trainer) -> dict[str, Any]:
    """Tensors and plain data, as they are and not copied. All processes of a group call it."""
    average = trainer.held_out.average
    return {
        "ranks": _rank_states(trainer),
        "progress": trainer.progress.state(),
        "so_far": _epoch_under_way(trainer),
        "structure": trainer.structure.state(),
        "growth": trainer.seeds.state(),
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.precision.state(),
        "average": None if average is None else average.state(),
        "rng": rng_state(),
        "watch": trainer.watch.state(),
    }


def unchanged_until_step(trainer: Trainer) -> Iterator[Tensor]:
    """What of the state is the same until the optimizer steps again, or an epoch ends."""
    yield from trainer.model.parameters()
    for moments in trainer.optimizer.state.values():
        yield from (moment for moment in moments.values() if isinstance(moment, Tensor))
    if trainer.held_out.average is not None:
        yield from trainer.held_out.average.state()["values"].values()


def put_back(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Make ``trainer``, built from the same configuration, the one that ``state`` was captured from.

    Of the optimizer only the moments are put back: its settings are those of the configuration, so what
    the user overrides on resuming counts. Raises CheckpointError when the network is another one.
    """
    trainer.progress = Progress.from_state(state["progress"])
    trainer.batches.leave_out(trainer.progress.left_out)
    restore_training(
        trainer.structure,
        trainer.seeds,
        state,
        hint="resume with the model and the seeded layers that the run began with",
    )
    configured = trainer.optimizer.state_dict()
    trainer.optimizer.load_state_dict({**configured, "state": state["optimizer"]["state"]})
    trainer.precision.restore(state.get("scaler"))
    if trainer.held_out.average is not None:
        trainer.held_out.average.restore(state.get("average"))
    set_rng_state(state["rng"])
    trainer.watch.restore(state.get("watch", {}))
    draw_apart(trainer.group.rank)
    trainer.so_far = _restore_epoch(trainer, state.get("so_far"))
    _restore_rank(trainer, state.get("ranks") or [])


def _epoch_under_way(trainer: Trainer) -> dict[str, Any] | None:
    """What an epoch under way has gathered, beside what it has changed."""
    if trainer.so_far is None:
        return None
    rates, seen = trainer.structure.block_rates.tables(), observed(trainer.model)
    return {"epoch": asdict(trainer.so_far), "rates": rates, "observed": seen}


def _restore_epoch(trainer: Trainer, state: Mapping[str, Any] | None) -> EpochSoFar | None:
    if state is None:
        return None
    so_far = EpochSoFar(**state["epoch"])
    so_far.loss = so_far.loss.to(trainer.batches.y.device)
    trainer.structure.block_rates.set_tables(state["rates"])
    if trainer.group.rank == 0:
        restore_observed(trainer.model, state["observed"])
    return so_far


def _rank_states(trainer: Trainer) -> list[dict[str, Any]]:
    """What each of many processes has of its own; they differ in nothing else."""
    if trainer.group.size == 1:
        return []
    return trainer.group.gather({"rng": rng_state(), "observed": observed(trainer.model)})


def _restore_rank(trainer: Trainer, ranks: list[dict[str, Any]]) -> None:
    """Put back what each process had of its own, where there are as many as before."""
    if len(ranks) == trainer.group.size:
        set_rng_state(ranks[trainer.group.rank]["rng"])
        restore_observed(trainer.model, ranks[trainer.group.rank]["observed"])
    elif ranks and trainer.group.rank == 0:
        restore_observed(trainer.model, merge_observed([rank["observed"] for rank in ranks]))
