"""The kernel library of a configuration. Importing this does not import PyTorch."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from esper.assembly.auditing import build_auditor
from esper.assembly.configured import check_targets, configured
from esper.assembly.keys import build_keys
from esper.errors import ConfigError, LibraryError
from esper.messages import KernelMetadata
from esper.security import Envelope
from esper.security.redaction import redact, secrets_of_url
from esper.urza.breaker import CircuitBroken
from esper.urza.encrypted import Encrypted
from esper.urza.library import Changes, KernelLibrary
from esper.urza.measured import Measured
from esper.urza.opening import open_library
from esper.urza.tiers import Tier

if TYPE_CHECKING:
    from torch import nn


def build_library(
    cfg: DictConfig,
    *,
    on_key_made: Callable[[str], None] = lambda _: None,
    adopt_later: bool = False,
    make: bool = True,
) -> KernelLibrary:
    """The kernel library that ``cfg.urza`` describes, sealed with the keys of ``cfg.security``.

    A file that is not there is made, or without ``make`` a LibraryError.

    What loads its kernels is made when the first of them is fetched. ``on_key_made`` is told where a key lies
    that was made for it. A library of an older version is sealed with a key that was made just now; one that
    is not sealed though there are keys is refused, unless ``adopt_later`` leaves that to its ``adopt``.
    Raises ConfigError, LibraryError, StorageError or SecurityError.
    """
    check_targets(cfg, "tezzeret.target")
    if cfg.urza.memory_bytes < 0:
        raise ConfigError(f"urza.memory_bytes must be at least 0, not {cfg.urza.memory_bytes}")

    @cache
    def target() -> Any:
        return configured(cfg, "tezzeret.target")

    def load(metadata: KernelMetadata, program: bytes) -> nn.Module:
        from esper.tezzeret.targets import target_named

        return target_named(metadata.target, target()).load(program, metadata.device)

    made: list[str] = []

    def key_made(place: str) -> None:
        made.append(place)
        on_key_made(place)

    url, redis = library_url(cfg), redis_url(cfg)
    if not make:
        _demand_file(url)
    keys = build_keys(cfg, key_made)
    envelope = Envelope(keys)
    with ExitStack() as opened:
        caches = [_redis(redis, envelope, opened)] if redis else []
        changes = _changes(redis) if redis else None
        return open_library(
            url,
            load,
            envelope=envelope,
            caches=caches,
            changes=changes,
            auditor=build_auditor(cfg, keys),
            memory_bytes=cfg.urza.memory_bytes,
            adopting=lambda: bool(made),
            adopt_later=adopt_later,
            on_close=opened.pop_all().close,
        )


def library_url(cfg: DictConfig) -> str:
    """The URL of the record, read from where ``cfg.urza.url`` says; ConfigError if it is not there."""
    return place_of(cfg.urza.url, "urza.url") or ""


def redis_url(cfg: DictConfig) -> str | None:
    """The URL of the Redis server, None for none, read from where ``cfg.urza.redis`` says; ConfigError."""
    return place_of(cfg.urza.redis, "urza.redis")


def broker_url(cfg: DictConfig) -> str:
    """The URL of the broker of compile workers, read from where ``cfg.tezzeret.engine.broker`` says."""
    return place_of(cfg.tezzeret.engine.broker, "tezzeret.engine.broker") or ""


def _demand_file(url: str) -> None:
    from esper.urza.sqlite import path_of

    path = path_of(url) if url.startswith("sqlite://") else None
    if path is not None and not path.exists():
        hint = "check the path; an absolute one takes four slashes: sqlite:////data/kernels.db"
        raise LibraryError(f"there is no kernel library at {path}", hint=hint)


def _redis(url: str, envelope: Envelope, opened: ExitStack) -> Tier:
    """A Redis server that holds sealed bytes only, and is left alone while it fails."""
    from esper.urza.redis import RedisTier

    return CircuitBroken(Encrypted(Measured(opened.enter_context(closing(RedisTier(url)))), envelope))


def _changes(url: str) -> Changes:
    from esper.urza.invalidation import Invalidation

    return Invalidation(url)


def place_of(value: str | None, key: str) -> str | None:
    """``value``, or the URL in the environment variable or file that it names: no configuration holds it."""
    found = _found(value, key)
    redact.register(*secrets_of_url(found or ""))
    return found


def _found(value: str | None, key: str) -> str | None:
    kind, _, name = (value or "").partition(":")
    if kind == "env":
        found = os.environ.get(name, "").strip()
        if not found:
            hint = f"set it to a URL, or {key} to file:PATH"
            raise ConfigError(f"{key} is in the environment variable {name}, which is not set", hint=hint)
        return found
    if kind == "file":
        try:
            return Path(name).expanduser().read_text().strip()
        except OSError as error:
            raise ConfigError(f"{key} is in the file {name}: {error.strerror or error}") from error
    return value
