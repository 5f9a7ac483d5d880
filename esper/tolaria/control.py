"""What people ask of a run while it trains, looked for between two steps: to pause, to go on, to go back."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from esper.errors import EsperError, StorageError
from esper.nissa.control import ControlRequest, ControlRequests
from esper.tolaria.checkpoints import Mark
from esper.tolaria.distributed import ALONE, Group
from esper.tolaria.events import Recorder
from esper.tolaria.progress import Rollback
from esper.tolaria.recovery import embargo, go_on

if TYPE_CHECKING:
    from esper.tolaria.trainer import Trainer

LOOK_SECONDS = 1.0
"""One process looks for requests this often, however seldom its steps are watched."""

POLL_SECONDS = 0.1
"""How often a paused run looks whether it is to go on."""

_TURN_SECONDS = 1.0
"""Of many processes the first lets the others wait no longer at a time: between they take Ctrl-C."""


class RollbackAsked(Exception):
    """Raised between two steps to go back to ``state``, of the checkpoint ``name``; the loop catches it."""

    def __init__(self, request: ControlRequest, name: str, state: dict[str, Any]) -> None:
        super().__init__(f"back to {name}")
        self.request = request
        self.name = name
        self.state = state


class RunControl:
    """The requests to one run and what became of them; the same in all processes of ``group``.

    ``requests`` are read in the first process, which alone has them. ``waited`` counts the seconds that the
    run was paused.
    """

    def __init__(
        self, requests: ControlRequests | None = None, recorder: Recorder | None = None, group: Group = ALONE
    ) -> None:
        self._requests = requests
        self._recorder = recorder
        self._group = group
        self._left: deque[ControlRequest] = deque()
        self._told_unreadable = False
        self._looked = 0.0
        self.paused = False
        self.waited = 0.0

    def between_steps(self, trainer: Trainer, watched: bool) -> None:
        """Do what was asked; returns once the run is to go on. All processes call it at the same steps.

        Looks where a step is ``watched``; one process alone looks when it has not for long, too. Raises
        RollbackAsked, and KeyboardInterrupt while the run is paused.
        """
        if self._recorder is None:
            return
        if not watched and (self._group.size > 1 or time.perf_counter() - self._looked < LOOK_SECONDS):
            return
        self._take(0.0)
        while self._left:
            self._carry_out(self._left.popleft(), trainer)
        while self.paused:
            began = time.perf_counter()
            try:
                self._take(_TURN_SECONDS)
            finally:
                self.waited += time.perf_counter() - began
            while self._left:
                self._carry_out(self._left.popleft(), trainer)

    def rolled_back(self, asked: RollbackAsked, trainer: Trainer) -> None:
        """Carry out what ``between_steps`` raised, and say so."""
        _go_back(trainer, asked)
        self._tell(asked.request, trainer)

    def refuse_rest(self, trainer: Trainer) -> None:
        """Refuse what was not read before the training ended, for it cannot be done any more."""
        if self._requests is None:
            return
        self._left += self._come()
        while self._left:
            self._tell(self._left.popleft(), trainer, "the training has ended")

    def _carry_out(self, request: ControlRequest, trainer: Trainer) -> None:
        if request.action == "rollback":
            self._find(request, trainer)
        elif self.paused == (request.action == "pause"):
            word = "paused already" if self.paused else "not paused"
            self._tell(request, trainer, f"the run is {word}")
        elif request.action == "pause":
            # Whatever becomes of the process meanwhile, the run can go on from here. What is to be saved may
            # show to be unstable: then it pauses once it has gone back.
            self._left.appendleft(request)
            trainer.saving.here()
            self._left.popleft()
            self.paused = True
            self._tell(request, trainer)
        else:
            self.paused = False
            self._tell(request, trainer)

    def _find(self, request: ControlRequest, trainer: Trainer) -> None:
        """Raise RollbackAsked with the checkpoint that was meant, or refuse."""
        trainer.saving.settle()
        try:
            marks = trainer.checkpoints.marks()
            name = _meant(request, marks, trainer.progress.global_step)
            state = None if name is None else trainer.checkpoints.load(name)
        except EsperError as error:
            return self._tell(request, trainer, str(error))
        if name is None or state is None:
            there = ", ".join(f"step {mark.step} (epoch {mark.epochs})" for _, mark in marks[:5])
            return self._tell(request, trainer, f"there is no such checkpoint; there are: {there or 'none'}")
        raise RollbackAsked(request, name, state)

    def _tell(self, request: ControlRequest, trainer: Trainer, refused: str = "") -> None:
        assert self._recorder is not None
        self._recorder.emit(
            "control",
            request=request.request,
            action=request.action,
            outcome="refused" if refused else "done",
            reason=refused,
            epoch=trainer.progress.epochs_done,
            step=trainer.progress.global_step,
        )

    def _take(self, seconds: float) -> None:
        """Wait so long for requests, at most, and keep them for all processes."""
        found = self._wait(seconds)
        if self._group.size > 1:
            there = torch.tensor(len(found))
            self._group.copy_from_first(there)
            found = self._group.broadcast(found) if int(there) else []
        self._left += found
        self._looked = time.perf_counter()

    def _wait(self, seconds: float) -> list[ControlRequest]:
        if self._requests is None:
            return []
        deadline = time.perf_counter() + seconds
        while not (found := self._come()) and time.perf_counter() < deadline:
            time.sleep(POLL_SECONDS)
        return found

    def _come(self) -> list[ControlRequest]:
        assert self._requests is not None
        assert self._recorder is not None
        try:
            return self._requests.take()
        except StorageError as error:  # no reason to end a training that goes well
            if not self._told_unreadable:
                self._recorder.emit("message", text=f"requests to the run cannot be read: {error}")
            self._told_unreadable = True
            return []


def _meant(request: ControlRequest, marks: Sequence[tuple[str, Mark]], step: int) -> str | None:
    """The checkpoint of ``marks``, newest first, that is to be gone back to from ``step``."""
    for name, mark in marks:
        if request.epoch is not None:
            fits = (mark.epochs, mark.step_in_epoch) <= (request.epoch, 0)
        else:
            fits = mark.step <= request.step if request.step is not None else mark.step < step
        if fits:
            return name
    return None


def _go_back(trainer: Trainer, asked: RollbackAsked) -> None:
    """Put ``trainer`` where it was; what has grown since rests for a while, or the same would come again."""
    began = time.perf_counter()
    before, left = trainer.seeds, trainer.progress
    trainer.renew(asked.state)
    progress = trainer.progress
    note = Rollback("request", "", left.epochs_done, left.global_step, progress.global_step)
    progress.carry_on_from(left, note)
    embargo(trainer, dict.fromkeys(e.target for e in left.adapted if e.epoch >= progress.epochs_done))
    told = {"kind": "request", "detail": "it was asked for", "skipped": None}
    go_on(trainer, asked.name, before, note, told, began, "it was asked for")
