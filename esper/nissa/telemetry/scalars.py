"""Messages as numbers over the steps of a run, for sinks that draw curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from esper.nissa.journal import number
from esper.nissa.telemetry.health_record import FIELDS, unpack
from esper.nissa.telemetry.messages import Message

OF_EPOCH = {
    "train/loss": "loss",
    "held_out/loss": "held_out_loss",
    "held_out/accuracy": "accuracy",
    "learning_rate": "learning_rate",
}
"""Name of a scalar to the field of an epoch's packet that it is."""

NOTED = frozenset({"decision", "trial", "growth", "rollback", "fault", "control", "run_failed"})
"""Events that a sink without a place for events shows as text."""


class Scalar(NamedTuple):
    """``value`` of ``name`` after ``step`` steps of the run; ``labels`` say of which layer and seed."""

    name: str
    step: int
    at: float
    value: float
    labels: Mapping[str, str] = MappingProxyType({})

    @property
    def path(self) -> str:
        """Name and labels as one."""
        return "/".join((self.name, *self.labels.values())) if self.labels else self.name


class Scalars:
    """Gives the scalars of messages, which it is shown in order; of the health of seeds only ``fields``."""

    def __init__(self, fields: Sequence[str] = FIELDS) -> None:
        self._fields = [(FIELDS.index(name), f"seed/{name}") for name in fields]
        self._steps = 0  # of an epoch

    def of(self, message: Message) -> Iterator[Scalar]:
        """The scalars that ``message`` has; none for most events."""
        if message.kind == "step":
            self._steps = int(message.fields["steps"])
            step = self._place(int(message.fields["epoch"]), int(message.fields["step"]))
            yield Scalar("train/step_loss", step, message.at, float(message.fields["loss"]))
        elif message.kind == "health":
            yield from self._of_health(message)
        elif message.name == "epoch":
            yield from _of_epoch(message)

    def _of_health(self, message: Message) -> Iterator[Scalar]:
        record = unpack(message.record)
        step = self._place(record.epoch, record.step)
        for seed, row in enumerate(record.values):
            labels = {"layer": record.layer, "seed": str(seed)}
            for place, name in self._fields:
                yield Scalar(name, step, message.at, float(row[place]), labels)

    def _place(self, epoch: int, step: int) -> int:
        return epoch * self._steps + step


def _of_epoch(message: Message) -> Iterator[Scalar]:
    packet = message.fields["packet"]
    step = int(packet["global_step"])
    for name, source in OF_EPOCH.items():
        yield Scalar(name, step, message.at, number(packet[source]))
    yield Scalar("samples_per_second", step, message.at, number(message.fields["samples_per_second"]))
