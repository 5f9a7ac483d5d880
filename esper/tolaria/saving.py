"""When a run is saved: checkpoints that are begun, waited for and told of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from esper.tolaria.checkpoints import BackgroundSaver, Mark, Saved
from esper.tolaria.recovery import check_values
from esper.tolaria.training_state import unchanged_until_step

if TYPE_CHECKING:
    from esper.tolaria.trainer import Trainer


class Saving:
    """Writes the checkpoints of ``trainer`` in the background, one at a time."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._saver = BackgroundSaver(trainer.checkpoints)
        self.step = 0
        """Optimizer steps at the newest checkpoint."""

    def hold(self) -> None:
        """Wait until what is being written may change."""
        self._saver.hold()

    def begin(self) -> None:
        """Begin to write a checkpoint; the one before it is told of once it is on the disk.

        Raises Unstable instead when what it would hold is not sound.
        """
        trainer, done = self._trainer, self._trainer.progress
        trainer.look()
        check_values(trainer.model, done.epochs_done, done.global_step)
        self.settle()
        done.adapted = done.watched(done.epochs_done, trainer.limits)
        trainer.checkpoints.pin(each.step for each in done.adapted)
        self.step = done.global_step
        in_epoch = 0 if trainer.so_far is None else trainer.so_far.steps
        last = done.history[-1:]
        mark = Mark(done.global_step, done.epochs_done, in_epoch, last[0].loss if last else None)
        state = trainer.state()
        if trainer.group.rank == 0:
            self._saver.begin(mark, state, unchanged_until_step(trainer))

    def here(self) -> None:
        """As ``begin``, and wait until it is on the disk; nothing if the newest checkpoint is from here."""
        if self.step != self._trainer.progress.global_step:
            self.begin()
        self.settle()

    def settle(self) -> None:
        """Wait until no checkpoint is being written any more."""
        self._tell(self._saver.wait())

    def tell(self) -> None:
        """Tell of what is on the disk by now."""
        self._tell(self._saver.finished())

    def _tell(self, written: list[Saved]) -> None:
        for saved in written:
            self._trainer.recorder.emit(
                "checkpoint",
                epoch=saved.mark.epochs,
                step=saved.mark.step,
                path=saved.path.name,
                paused=saved.paused,
                seconds=saved.seconds,
            )
