"""The arms of ``mode=rescue``: what may be done with a network that has converged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from esper.assembly.proving.jobs import Job
from esper.assembly.proving.settings import Settings
from esper.assembly.proving.widths import Widths
from esper.proof.results import Result


class RescueArms:
    """A base that never grows; from it, training on and growing; and the larger network from scratch."""

    policies = ("tamiyo=never",)
    """Overrides that the arms need."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.widths = Widths(settings)
        wanted = settings.cfg.prove.rescue
        rate = wanted.learning_rate
        self._rate = () if rate is None else (f"tolaria.learning_rate={rate}",)
        epochs = wanted.epochs
        self._epochs = () if epochs is None else (f"tolaria.epochs={epochs}", "tolaria.flops=null")

    def phases(self, results: Mapping[Job, Result]) -> Iterator[tuple[list[Job], int]]:
        """Jobs that may be trained in any order, and how many come after them.

        The ``results`` of a phase must be there before the next is asked for.
        """
        seeds = self.settings.seeds
        base = {seed: Job("base", seed, ("tamiyo=never",)) for seed in seeds}
        yield list(base.values()), 3 * len(seeds)
        grown = [Job("grown", seed, (*self._epochs, *self._rate), start=base[seed]) for seed in seeds]
        yield grown, 2 * len(seeds)
        budgets = {job.seed: f"tolaria.flops={results[job].training_flops:.0f}" for job in grown}
        train_on = [
            Job("train_on", seed, ("tamiyo=never", *self._rate, budgets[seed]), start=base[seed])
            for seed in seeds
        ]
        yield [*train_on, *self._large([results[job] for job in grown], budgets)], 0

    def _large(self, grown: list[Result], budgets: Mapping[int, str]) -> Iterator[Job]:
        for run in grown:
            width = self.widths.holding(run.parameters)
            yield Job("large", run.seed, (*self.widths.static(width), budgets[run.seed]), width)
