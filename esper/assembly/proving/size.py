"""The arms of ``mode=size``: does growth end at the size that the task needs?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from esper.assembly.proving.jobs import Job
from esper.assembly.proving.settings import Settings
from esper.assembly.proving.widths import Widths
from esper.proof.results import Result

BEYOND = 2.0
"""The widest static network over the widest grown one: growth may have ended too soon."""


class SizeArms:
    """The grown network, and static ones of a row of widths, each trained for as many epochs."""

    policies = ("tamiyo=never",)
    """Overrides that the arms need."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.widths = Widths(settings)

    def phases(self, results: Mapping[Job, Result]) -> Iterator[tuple[list[Job], int]]:
        """Jobs that may be trained in any order, and about how many come after them.

        The ``results`` of a phase must be there before the next is asked for.
        """
        seeds = self.settings.seeds
        grown = [Job("grown", seed, ()) for seed in seeds]
        yield grown, 10 * len(seeds)
        widest = max(self.widths.holding(results[job].parameters) for job in grown)
        row = self.widths.row(round(BEYOND * widest))
        yield [Job(f"width-{w}", seed, self.widths.static(w), w) for w in row for seed in seeds], 0
