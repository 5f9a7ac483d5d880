"""Compile workers of a configuration: those that a command uses, and the one that ``esper worker`` is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import torch
from omegaconf import DictConfig, OmegaConf

from esper.assembly.configured import configured, settings
from esper.assembly.keys import build_envelope
from esper.assembly.storage import broker_url
from esper.errors import ConfigError
from esper.messages import CompileQueue
from esper.tezzeret.broker import Broker
from esper.tezzeret.jobs import TRIES, CompileJob, Outcome
from esper.tezzeret.limits import Limits
from esper.tezzeret.pool import NICE, WorkerPool
from esper.tezzeret.remote import RemoteWorkers
from esper.tezzeret.remote_worker import RemoteWorker
from esper.tezzeret.target import Target
from esper.tezzeret.targets import ships
from esper.tezzeret.wire import Wire

Tell = Callable[[str], None]

MAX_TRIES = 100


def build_workers(cfg: DictConfig, tell: Tell) -> WorkerPool | RemoteWorkers | None:
    """What ``cfg.tezzeret`` has jobs done by, for the caller to close; None where this process compiles.

    ``tell`` gets lines for the user: that system calls cannot be filtered, that no worker answers.
    """
    remote, count = has_broker(cfg), cfg.tezzeret.get("workers", 0)
    if not remote and count == 0:
        return None
    if torch.device(cfg.tezzeret.device).type != "cpu":
        raise ConfigError(
            "workers compile for the CPU, and tezzeret.device is not cpu",
            hint="compile in this process: tezzeret/engine=local tezzeret.workers=0",
        )
    if not remote:
        return _pool(cfg, count, tell, tries=_tries(cfg))
    target: Target = configured(cfg, "tezzeret.target")
    if not ships(target):
        raise ConfigError(
            f"workers on other machines have no target {target.name!r}, which is one of your own",
            hint="compile on this machine: tezzeret/engine=local",
        )
    engine = cfg.tezzeret.engine
    return RemoteWorkers(
        _broker(cfg),
        Wire(build_envelope(cfg)),
        at_once=engine.at_once,
        silence_seconds=engine.silence_seconds,
        outage_seconds=engine.outage_seconds,
        tell=tell,
    )


@contextmanager
def watched_broker(cfg: DictConfig) -> Iterator[Callable[[], CompileQueue] | None]:
    """What tells how many jobs wait at the broker of ``tezzeret.engine``; None where none is named.

    It raises ``TierUnavailable`` where the broker does not answer.
    """
    if not has_broker(cfg):
        yield None
        return
    with _broker(cfg) as broker:
        yield broker.depth


def queue_check(depth: Callable[[], CompileQueue] | None) -> dict[str, Callable[[], str]]:
    """The check of the broker that ``depth`` asks, by its name; it raises ``TierUnavailable``."""
    return {} if depth is None else {"compile queue": lambda: str(depth())}


def serve_jobs(cfg: DictConfig, *, say: Tell) -> None:
    """Do the jobs of the broker in ``tezzeret.engine``, as many at once as cores or ``tezzeret.workers``.

    Until SIGINT or SIGTERM. ``say`` gets a line for each job and what else there is to tell. Raises
    ``ConfigError``, ``CompilationError`` and ``SecurityError``.
    """
    if not has_broker(cfg):
        raise ConfigError("esper worker takes jobs from a broker", hint="tezzeret/engine=celery")
    torch.set_num_threads(1)

    def told(job: CompileJob, outcome: Outcome) -> None:
        end = "compiled" if outcome.artefact else f"failed in {outcome.stage}: {outcome.reason}"
        say(f"{job.blueprint.name} for {job.slot}: {end} ({outcome.seconds:.2f} s)")

    envelope = build_envelope(cfg)
    envelope.authenticate(b"")  # a key that cannot be had is told now
    tries, processes = _tries(cfg), cfg.tezzeret.get("workers") or os.cpu_count() or 1
    with closing(_broker(cfg)) as broker, _pool(cfg, processes, say, tries=1) as pool:
        RemoteWorker(broker, Wire(envelope), pool, tries=tries, on_outcome=told, tell=say).serve()


def has_broker(cfg: DictConfig) -> bool:
    """Whether a broker is named; the configuration of an older run has no engine at all."""
    return OmegaConf.select(cfg, "tezzeret.engine.broker") is not None


def _pool(cfg: DictConfig, count: int, tell: Tell, *, tries: int) -> WorkerPool:
    limits: Limits = configured(cfg, "tezzeret.limits")

    def unfiltered(reason: str) -> None:
        tell(f"worker processes run under resource limits alone: {reason}")

    nice = cfg.tezzeret.get("nice", NICE)
    return WorkerPool(count, limits, nice=nice, tries=tries, on_lost=tell, on_unfiltered=unfiltered)


def _tries(cfg: DictConfig) -> int:
    tries: int = cfg.tezzeret.get("tries", TRIES)
    if not 1 <= tries <= MAX_TRIES:
        raise ConfigError(f"tezzeret.tries must be between 1 and {MAX_TRIES}, not {tries}")
    return tries


def _broker(cfg: DictConfig) -> Broker:
    engine = settings(cfg, "tezzeret.engine")
    if engine["visibility_seconds"] <= cfg.tezzeret.limits.wall_seconds:
        raise ConfigError(
            "tezzeret.engine.visibility_seconds must be above tezzeret.limits.wall_seconds",
            hint="a job that is still being done would be given out again",
        )
    return Broker(broker_url(cfg), engine["queue"], visibility_seconds=engine["visibility_seconds"])
