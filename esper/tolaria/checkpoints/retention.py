"""Which checkpoints stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from esper.errors import ConfigError
from esper.tolaria.checkpoints.manifest import Mark


@dataclass(frozen=True, slots=True)
class Retention:
    """The newest ``last`` stay, the ``best`` by held-out loss, and those after each ``every``-th epoch.

    ``best`` and ``every`` look at checkpoints at the end of epochs; 0 is none.
    """

    last: int = 2
    best: int = 0
    every: int = 0

    def __post_init__(self) -> None:
        if self.last < 1:
            raise ConfigError(f"at least one checkpoint must stay, not {self.last}")
        if self.best < 0 or self.every < 0:
            raise ConfigError(f"best and every must be 0 or more, not {self.best} and {self.every}")

    def superfluous(self, marks: Sequence[Mark]) -> list[int]:
        """Positions in ``marks``, which are in the order of their writing, of those that need not stay."""
        stay = set(range(len(marks))[-self.last :])
        whole = [n for n, mark in enumerate(marks) if mark.step_in_epoch == 0]
        judged = [n for n in whole if marks[n].held_out_loss is not None]
        # Of equals the older one, so that a plateau does not push out what came before it.
        stay |= set(sorted(judged, key=lambda n: (marks[n].held_out_loss, n))[: self.best])
        if self.every:
            stay |= {n for n in whole if marks[n].epochs and marks[n].epochs % self.every == 0}
        return [n for n in range(len(marks)) if n not in stay]
