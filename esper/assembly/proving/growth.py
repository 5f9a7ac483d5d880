"""The arms of ``mode=growth``: growth beside the static networks that could have been trained instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from esper.assembly.proving.jobs import Job
from esper.assembly.proving.settings import Settings
from esper.assembly.proving.widths import Widths
from esper.proof.results import Result

SWEEP = 5
"""Widths between the small network and the large one."""


class GrowthArms:
    """The grown network, and its controls: small, large, sizes between, and growth at random."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.widths = Widths(settings)

    @property
    def policies(self) -> list[str]:
        """Overrides that the arms need; what cannot be composed is said before hours are spent."""
        random = self.settings.cfg.prove.random
        return ["tamiyo=never", *([f"tamiyo={random}"] if random else [])]

    def phases(self, results: Mapping[Job, Result]) -> Iterator[tuple[list[Job], int]]:
        """Jobs that may be trained in any order, and about how many come after them.

        The ``results`` of a phase must be there before the next is asked for.
        """
        seeds = self.settings.seeds
        grown = [Job("grown", seed, ()) for seed in seeds]
        # Fewer where sizes lie close together.
        yield grown, len(seeds) * (4 + SWEEP + bool(self.settings.cfg.prove.random))
        yield list(self._controls([results[job] for job in grown])), 0

    def _controls(self, grown: Sequence[Result]) -> Iterator[Job]:
        seeds, static = self.settings.seeds, self.widths.static
        flops = {run.seed: f"tolaria.flops={run.training_flops:.0f}" for run in grown}
        large = {run.seed: self.widths.holding(run.parameters) for run in grown}
        for seed in seeds:
            yield Job("small", seed, ("tamiyo=never",))
        for seed in seeds:
            yield Job("small_flops", seed, ("tamiyo=never", flops[seed]))
        for seed in seeds:
            yield Job("large", seed, static(large[seed]), large[seed])
        for seed in seeds:
            yield Job("large_flops", seed, (*static(large[seed]), flops[seed]), large[seed])
        for width in self.widths.between(max(large.values()), SWEEP):
            for seed in seeds:
                yield Job(f"sweep-{width}", seed, (*static(width), flops[seed]), width)
        for run in grown if self.settings.cfg.prove.random else ():
            yield Job("random", run.seed, self._at_random(run))

    def _at_random(self, run: Result) -> tuple[str, ...]:
        """As often as ``run`` adapted, and then; a run that never did has no other chance either."""
        if not run.adapted_at:
            return ("tamiyo=never",)
        at = ",".join(f"{share:.6g}" for share in run.adapted_at)
        return (f"tamiyo={self.settings.cfg.prove.random}", f"tamiyo.at=[{at}]")
