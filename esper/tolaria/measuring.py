"""What a policy may know at the end of an epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from esper.kasmina import drain, merge_observed, observed, restore_observed
from esper.messages import EpochRecord, SystemStatePacket

if TYPE_CHECKING:
    from esper.tolaria.trainer import Trainer


def measure(trainer: Trainer, epoch: int, loss: float) -> SystemStatePacket:
    """Measure the network on the held-out split after an epoch of mean training ``loss``, in nats.

    The epoch enters the history, and what layers observed is drained.
    """
    progress, model = trainer.progress, trainer.model
    measured = trainer.held_out.evaluate()
    trainer.seeds.contain_faults()
    done = trainer.done(epoch + 1)
    if trainer.group.size > 1:
        restore_observed(model, merge_observed(trainer.group.gather(observed(model))))
    progress.history = progress.history.plus(EpochRecord(epoch, loss, measured.loss, measured.accuracy))
    return SystemStatePacket(
        epoch=epoch,
        global_step=progress.global_step,
        loss=loss,
        accuracy=measured.accuracy,
        layer_metrics=drain(model),
        held_out_loss=measured.loss,
        total_epochs=trainer.total_epochs,
        learning_rate=trainer.optimizer.param_groups[0]["lr"],
        history=progress.history,
        trials=trainer.seeds.reports,
        refusals=progress.refusals,
        growths=trainer.structure.reports,
        widths=trainer.growable_widths() if trainer.policy.needs_widths else {},
        rate_share=max(trainer.schedule.factor(done, progress.grown_at), trainer.schedule.rewarm),
        progress=done,
        inventions=trainer.orchestrator.untried_inventions() if trainer.invents else (),
    )
