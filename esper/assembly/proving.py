"""A proof beside a claim: the grown network and its controls, trained on paired seeds."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from esper.assembly.network import build_data, build_model
from esper.assembly.training import build_training
from esper.data.splits import DataSplits
from esper.errors import ConfigError, RunError, StorageError
from esper.nissa.runs import RunStore
from esper.proof.report import Result, analyse, markdown
from esper.tolaria.checkpoint import write_atomically

Compose = Callable[[list[str]], DictConfig]
"""From overrides to a checked configuration; raises ConfigError."""

STATE_NAME, PROOF_NAME, REPORT_NAME = "state.json", "proof.json", "report.md"
SWEEP = 5
"""Widths between the small network and the large one."""
MAX_WIDTH = 65_536


@dataclass(frozen=True, slots=True)
class Job:
    """One run to be made: ``overrides`` are those of its arm; ``width`` where it is asked for by width."""

    arm: str
    seed: int
    overrides: tuple[str, ...]
    width: int | None = None


Watcher = Callable[[Job, int, int, float | None], None]
"""Told each job before it starts: its number from 1, of how many, and the seconds left if known."""


class Proof:
    """The runs of one proof and the folder that they land in. Build it, then ``run`` it.

    ``given`` are the user's overrides, from which ``compose`` made ``cfg``.

    Raises ConfigError for settings that no proof can be made of, and for a folder that holds the proof of
    another configuration.
    """

    def __init__(self, cfg: DictConfig, compose: Compose, given: Sequence[str]) -> None:
        _check(cfg)
        self.cfg = cfg
        self.compose = compose
        self.given = list(given)
        self.experiment: str = cfg.experiment or "run"
        self.folder = Path(cfg.prove.folder or f"experiments/{self.experiment}_proof")
        self.seeds = range(cfg.prove.first_seed, cfg.prove.first_seed + cfg.seeds)
        self.width_key = _width_key(cfg)
        self.configuration = _digest(cfg)
        self.results = self._load()
        self._walls: list[float] = []  # seconds of the runs of this call, compiling included
        self._data: DataSplits | None = None

    def run(self, watch: Watcher = lambda *_: None) -> dict[str, Any]:
        """Make the runs that are missing, then write and return the proof, plain data.

        Raises any EsperError that a run earns, and KeyboardInterrupt; finished runs are kept.
        """
        self._prepare_folder()
        grown = [Job("grown", seed, ()) for seed in self.seeds]
        after = len(grown) * (4 + SWEEP + bool(self.cfg.prove.random))  # fewer where sizes lie close together
        self._make(grown, after, watch)
        jobs = [*grown, *self._controls([self.results[job] for job in grown])]
        self._make(jobs, 0, watch)
        return self._write([self.results[job] for job in jobs])

    def _make(self, jobs: Sequence[Job], after: int, watch: Watcher) -> None:
        for number, job in enumerate(jobs, 1):
            if job in self.results:
                continue
            times = self._walls or [result.seconds for result in self.results.values()]
            left = sum(other not in self.results for other in jobs) + after
            watch(job, number, len(jobs) + after, left * sum(times) / len(times) if times else None)
            began = time.perf_counter()
            self.results[job] = self._train(job)
            self._walls.append(time.perf_counter() - began)
            self._save()

    def _train(self, job: Job) -> Result:
        root = self.folder / "runs"
        own = [f"seed={job.seed}", f"runs={_quoted(str(root))}", *job.overrides]
        cfg = self._compose([*self.cfg.prove.overrides, *own])
        summary = build_training(cfg).run()
        view = RunStore(root).open(summary["run_id"])
        adapted = (item.epoch + 1 for item in view.adaptations if item.performed)
        return Result(
            arm=job.arm,
            seed=job.seed,
            overrides=job.overrides,
            run=f"runs/{summary['run_id']}",
            accuracy=summary["test"]["accuracy"],
            loss=summary["test"]["loss"],
            training_flops=summary["training_flops"],
            seconds=summary["seconds"],
            parameters=summary["end"]["parameters"],
            width=job.width,
            adapted_at=tuple(epochs / summary["epochs"] for epochs in adapted),
        )

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration as given, but for what ``overrides`` replace: a group with all its keys."""
        replaced = {_key(override) for override in overrides}
        kept = [
            o for o in self.given if not any(_key(o) == r or _key(o).startswith(f"{r}.") for r in replaced)
        ]
        last = {_key(override): override for override in overrides}
        return self.compose([*kept, *last.values()])

    # The controls

    def _controls(self, grown: Sequence[Result]) -> Iterator[Job]:
        never, flops = "tamiyo=never", {run.seed: f"tolaria.flops={run.training_flops:.0f}" for run in grown}
        large = {run.seed: self._width_of(run.parameters) for run in grown}
        for seed in self.seeds:
            yield Job("small", seed, (never,))
        for seed in self.seeds:
            yield Job("small_flops", seed, (never, flops[seed]))
        for seed in self.seeds:
            yield Job("large", seed, self._static(large[seed]), large[seed])
        for seed in self.seeds:
            yield Job("large_flops", seed, (*self._static(large[seed]), flops[seed]), large[seed])
        for width in self._sweep(max(large.values())):
            for seed in self.seeds:
                yield Job(f"sweep-{width}", seed, (*self._static(width), flops[seed]), width)
        for run in grown if self.cfg.prove.random else ():
            at = ",".join(f"{share:.6g}" for share in run.adapted_at)
            yield Job("random", run.seed, (f"tamiyo={self.cfg.prove.random}", f"tamiyo.at=[{at}]"))

    def _static(self, width: int) -> tuple[str, ...]:
        return ("tamiyo=never", f"{self.width_key}={width}", *self.cfg.prove.static)

    def _sweep(self, large: int) -> list[int]:
        """Up to ``SWEEP`` distinct widths between small and large, in a geometric row."""
        small, step = self._width_of(self._parameters(self.cfg)), self.cfg.prove.width_step
        row = (small * (large / small) ** (i / (SWEEP + 1)) for i in range(1, SWEEP + 1))
        rounded = {step * round(width / step) for width in row}
        return sorted(width for width in rounded if small < width < large)

    def _width_of(self, parameters: int) -> int:
        """The smallest width whose static network has at least as many parameters."""
        step: int = self.cfg.prove.width_step

        def enough(steps: int) -> bool:
            return self._parameters(self._compose(self._static(steps * step))) >= parameters

        high = 1
        while not enough(high):
            high *= 2
            if high * step > MAX_WIDTH:
                raise ConfigError(
                    f"no {self.width_key} up to {MAX_WIDTH} gives a network of {parameters:,} parameters",
                    hint="name what scales the network: prove.width_key=KEY",
                )
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return high * step

    def _parameters(self, cfg: DictConfig) -> int:
        if self._data is None:
            self._data = build_data(self.cfg)
        return sum(p.numel() for p in build_model(cfg, self._data).parameters())

    # The folder

    def _prepare_folder(self) -> None:
        policies = ["tamiyo=never"]
        if self.cfg.prove.random:
            policies.append(f"tamiyo={self.cfg.prove.random}")
        for policy in policies:  # what cannot be composed is said now, not after hours
            self._compose([*self.cfg.prove.overrides, policy])
        self._write_file(self.folder / "runs" / ".gitignore", "*\n")

    def _load(self) -> dict[Job, Result]:
        path = self.folder / STATE_NAME
        if not path.exists():
            return {}
        try:
            state = json.loads(path.read_bytes())
            found = [Result.from_json(item) for item in state["finished"]]
            configuration = state["configuration"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"cannot read {path}: {error}", hint="choose another: prove.folder=FOLDER"
            ) from error
        if configuration != self.configuration:
            raise ConfigError(
                f"{self.folder} holds the proof of another configuration",
                hint="choose another with prove.folder=FOLDER, or remove that one",
            )
        return {Job(r.arm, r.seed, r.overrides, r.width): r for r in found}

    def _save(self) -> None:
        finished = [result.to_json() for result in self.results.values()]
        state = {"configuration": self.configuration, "finished": finished}
        self._write_file(self.folder / STATE_NAME, json.dumps(state, indent=1))

    def _write(self, results: Sequence[Result]) -> dict[str, Any]:
        proof = {
            "experiment": self.experiment,
            "command": shlex.join(["esper", "prove", *self.given]),
            "overrides": self.given,
            "configuration": self.configuration,
            "seeds": list(self.seeds),
            "versions": {
                "esper-morph": version("esper-morph"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            **analyse(results),
            "runs": [result.to_json() for result in results],
        }
        self._write_file(self.folder / PROOF_NAME, json.dumps(proof, indent=1, allow_nan=False))
        self._write_file(self.folder / REPORT_NAME, markdown(proof))
        return proof

    def _write_file(self, path: Path, text: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text.encode())
        except OSError as error:
            raise StorageError.from_os(error, path, "cannot write") from error


def _check(cfg: DictConfig) -> None:
    if cfg.mode != "growth":
        raise ConfigError(f"mode must be growth, not {cfg.mode!r}", hint="leave mode out")
    for key, least in (("seeds", 2), ("prove.first_seed", 0), ("prove.width_step", 1)):
        value = OmegaConf.select(cfg, key)
        if value < least:
            raise ConfigError(f"{key} must be at least {least}, not {value}")


def _width_key(cfg: DictConfig) -> str:
    known = [key for key in (cfg.prove.width_key, "model.width", "model.dim") if key]
    for key in known[:1] if cfg.prove.width_key else known:
        section, _, name = key.rpartition(".")
        if section and name in (OmegaConf.select(cfg, section) or ()):
            return str(key)
    raise ConfigError(
        f"the configuration has no {' and no '.join(known)}",
        hint="name what scales the network: prove.width_key=KEY",
    )


def _digest(cfg: DictConfig) -> str:
    """SHA-256 of the configuration without what may differ between calls over one folder."""
    plain = OmegaConf.to_container(cfg)
    assert isinstance(plain, dict)
    kept = {key: value for key, value in plain.items() if key not in ("seeds", "seed", "runs")}
    kept["prove"] = {key: value for key, value in kept["prove"].items() if key != "folder"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def _quoted(text: str) -> str:
    """``text`` as a value of Hydra's override grammar."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
