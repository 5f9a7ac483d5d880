"""A proof from its first run to its report; what is finished is kept, and never trained twice."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from esper.assembly.proving.folder import ProofFolder
from esper.assembly.proving.growth import GrowthArms
from esper.assembly.proving.jobs import Compose, Job, Task, Workers
from esper.assembly.proving.rescue import RescueArms
from esper.assembly.proving.settings import Settings
from esper.assembly.proving.size import SizeArms
from esper.proof import growth, rescue, size
from esper.proof.report import markdown
from esper.proof.results import Result

Watcher = Callable[[Job, int, int, float | None], None]
"""Told each job before it starts: its number from 1, of how many, and the seconds left if known."""

MODES: Mapping[str, tuple[type[GrowthArms | RescueArms | SizeArms], Callable[..., dict[str, Any]]]] = {
    "growth": (GrowthArms, growth.analyse),
    "rescue": (RescueArms, rescue.analyse),
    "size": (SizeArms, size.analyse),
}
"""What is trained, and what is said of it, by ``mode``."""


class Proof:
    """The runs of one proof and the folder that they land in. Build it, then ``run`` it.

    ``given`` are the user's overrides, from which ``compose`` made ``cfg``.

    Raises ConfigError for settings that no proof can be made of, and for a folder that holds the proof of
    another configuration.
    """

    def __init__(self, cfg: DictConfig, compose: Compose, given: Sequence[str]) -> None:
        self.settings = Settings(cfg, compose, given)
        arms, self._analyse = MODES[cfg.mode]
        self.arms = arms(self.settings)
        self._files = ProofFolder(self.settings.folder, self.settings.digest)
        self.results = self._files.load()
        self._walls: list[float] = []  # seconds of the runs of this call, compiling included

    @property
    def folder(self) -> Path:
        """Where all of it lands."""
        return self.settings.folder

    def run(self, watch: Watcher = lambda *_: None) -> dict[str, Any]:
        """Make the runs that are missing, then write and return the proof, plain data.

        Raises any EsperError that a run earns, and KeyboardInterrupt; finished runs are kept.
        """
        for policy in self.arms.policies:
            self.settings.compose([*self.settings.cfg.prove.overrides, policy])
        self._files.prepare()
        jobs: list[Job] = []
        with Workers(self.settings.cfg.prove.jobs) as workers:
            for phase, after in self.arms.phases(self.results):
                jobs += phase
                for done in workers.train(self._tasks(jobs, after, watch)):
                    self.results[done.job] = done.result
                    self._walls.append(done.wall)
                    self._files.save(self.results.values())
        return self._write([self.results[job] for job in jobs])

    def _tasks(self, jobs: Sequence[Job], after: int, watch: Watcher) -> Iterator[Task]:
        """What is to be trained of ``jobs``, each told to ``watch`` as it is taken."""
        for number, job in enumerate(jobs, 1):
            if job not in self.results:
                left = sum(other not in self.results for other in jobs) + after
                watch(job, number, len(jobs) + after, self._seconds(left))
                yield self.settings.task(job, self.results[job.start].run if job.start else None)

    def _seconds(self, runs: int) -> float | None:
        """About how long ``runs`` more take; what is under way counts as not begun."""
        times = self._walls or [result.seconds for result in self.results.values()]
        if not times:
            return None
        at_once: int = min(self.settings.cfg.prove.jobs, runs)
        return runs * sum(times) / len(times) / at_once

    def _write(self, results: Sequence[Result]) -> dict[str, Any]:
        proof = {
            "experiment": self.settings.experiment,
            "mode": self.settings.cfg.mode,
            "command": shlex.join(["esper", "prove", *self.settings.given]),
            "overrides": list(self.settings.given),
            "configuration": self.settings.digest,
            "config": self.settings.config,
            "seeds": list(self.settings.seeds),
            "versions": {
                "esper-morph": version("esper-morph"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            **self._analyse(results),
            "runs": [result.to_json() for result in results],
        }
        self._files.write(proof, markdown(proof))
        return proof
