"""The configuration of a proof: what is checked, what is replaced for an arm, what a folder is bound to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from esper.assembly.configured import quoted
from esper.assembly.proving.jobs import Compose, Job, Task
from esper.errors import ConfigError

MODES = {"growth": "proof", "rescue": "rescue", "size": "size"}
"""What ``mode`` may be, and how the folder of such a proof ends."""

_COMPILING = (
    "tezzeret.fallbacks",
    "tezzeret.engine",
    "tezzeret.nice",
    "tezzeret.workers",
    "tezzeret.limits",
    "tezzeret.tries",
    "tezzeret.alert_url",
    "karn.generator",
)
_KEEPING = ("tolaria.checkpoint_every", "tolaria.keep_best", "tolaria.keep_every", "tolaria.recovery")
_SERVING = tuple(
    f"nissa.{name}"
    for name in (
        *("anonymous", "hosts", "tokens", "limits", "nice", "sinks", "signals_every", "buffer", "mirror"),
        *("tls_certificate", "tls_key", "tls_minimum", "tls_client_ca", "tls_client_crl", "tls_clients"),
    )
)
_APART = (
    "seeds",
    "seed",
    "runs",
    "security",
    "audit",
    "log",
    "prove.folder",
    "prove.jobs",
    *_COMPILING,
    *_KEEPING,
    *_SERVING,
)
"""What may differ between calls over one folder: no number depends on it."""


class Settings:
    """What the user asked for. ``given`` are the overrides from which ``compose`` made ``cfg``.

    ``config`` is what a folder is bound to, ``digest`` its SHA-256.

    Raises ConfigError for settings that no proof can be made of.
    """

    def __init__(self, cfg: DictConfig, compose: Compose, given: Sequence[str]) -> None:
        _check(cfg)
        self.cfg = cfg
        self.given = tuple(given)
        self.experiment: str = cfg.experiment or "run"
        self.folder = Path(cfg.prove.folder or f"experiments/{self.experiment}_{MODES[cfg.mode]}")
        self.seeds = range(cfg.prove.first_seed, cfg.prove.first_seed + cfg.seeds)
        self.width_key = _width_key(cfg)
        self.config = _bound(cfg)
        self.digest = _digest(self.config)
        self._compose = compose

    def compose(self, overrides: Iterable[str]) -> DictConfig:
        """The configuration as given, but for what ``overrides`` replace: a group with all its keys."""
        return self._compose(list(self._combined(overrides)))

    def task(self, job: Job, start: str | None) -> Task:
        """``job`` with every override that its run has; ``start`` is a run's folder below the proof's."""
        root = self.folder / "runs"
        own = [f"seed={job.seed}", f"runs={quoted(str(root))}", *job.overrides]
        if start is not None:
            own.append(f"tolaria.start={quoted(str(self.folder / start))}")
        overrides = self._combined((*self.cfg.prove.overrides, *own))
        return Task(job, self._compose, overrides, root, curve=self.cfg.mode == "rescue")

    def _combined(self, overrides: Iterable[str]) -> tuple[str, ...]:
        last = {_key(override): override for override in overrides}
        kept = (o for o in self.given if not any(_key(o) == r or _key(o).startswith(f"{r}.") for r in last))
        return (*kept, *last.values())


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def _check(cfg: DictConfig) -> None:
    if cfg.mode not in MODES:
        raise ConfigError(
            f"mode must be one of {', '.join(MODES)}, not {cfg.mode!r}", hint="see: esper prove --help"
        )
    if cfg.tolaria.start:
        raise ConfigError(
            "tolaria.start has no meaning here: every run of a proof starts as its arm says",
            hint="leave it out; mode=rescue trains the network that it starts from",
        )
    for key, whole in (("epochs", True), ("learning_rate", False)):
        value = cfg.prove.rescue[key]
        fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if value is not None and not (fits and value > 0):
            kind = "whole number" if whole else "number"
            raise ConfigError(f"prove.rescue.{key} must be null or a {kind} above 0, not {value!r}")
    least = {"seeds": 2, "prove.first_seed": 0, "prove.width_step": 1, "prove.jobs": 1}
    for key, bound in least.items():
        value = OmegaConf.select(cfg, key)
        if value < bound:
            raise ConfigError(f"{key} must be at least {bound}, not {value}")


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


def _bound(cfg: DictConfig) -> dict[str, Any]:
    """The configuration without what may differ between calls over one folder, as plain data.

    What is null is left out: a key that a later version adds, and nobody uses, changes nothing.
    """
    plain = OmegaConf.to_container(cfg)
    assert isinstance(plain, dict)
    for path in _APART:
        *groups, key = path.split(".")
        node: dict[Any, Any] = plain
        for group in groups:
            node = node[group]
        node.pop(key, None)
    found: dict[str, Any] = _without_null(plain)
    return found


def _digest(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _without_null(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    kept = {key: _without_null(value) for key, value in node.items()}
    return {key: value for key, value in kept.items() if value is not None and value != {}}
