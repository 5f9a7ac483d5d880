"""What ``esper doctor`` looks at: each part of a configuration, whether it works, and what to do if not."""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig

from esper.assembly.admission import check_tls
from esper.assembly.background import check_background
from esper.assembly.keys import build_key_source
from esper.assembly.network import build_data, build_host, device_of
from esper.assembly.server_check import check_server
from esper.assembly.storage import build_library, library_url, redis_url
from esper.assembly.telemetry import check_sink, sink_names
from esper.assembly.workers import has_broker, watched_broker
from esper.errors import ConfigError, EsperError, LibraryError, SecurityError, StorageError, TierUnavailable
from esper.kasmina import seeded_layers
from esper.tezzeret.limits import filter_refusal
from esper.urza import KernelQuery

ENOUGH_BYTES = 2**30
"""Free space below which a run may not end: checkpoints of small networks take megabytes each."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One part that was looked at: ``detail`` says what was found, ``hint`` what to do about it."""

    part: str
    good: bool
    detail: str
    hint: str | None
    seconds: float


def examine(cfg: DictConfig) -> Iterator[Finding]:
    """Look at each part that ``cfg`` names, one after another. Raises nothing that a part's error says.

    A library on a server is opened, which makes its tables where there are none. Nothing else is made.
    """
    parts: dict[str, Callable[[DictConfig], str]] = {
        "python": _python,
        "runs folder": _runs,
        "keys": _keys,
        "kernel library": _library,
        "compile workers": _workers,
        **({"compile queue": _queue} if has_broker(cfg) else {}),
        **({"redis": _redis} if cfg.urza.redis else {}),
        **({"TLS": check_tls} if cfg.nissa.tls_certificate else {}),
        "metrics server": check_server,
        "data and network": _network,
        **{f"sink {name}": partial(check_sink, name=name) for name in sink_names(cfg)},
        **({"inventing": _inventing} if cfg.karn.get("background") else {}),
    }
    for part, look in parts.items():
        began = time.perf_counter()
        try:
            detail, good, hint = look(cfg), True, None
        except EsperError as error:
            detail, good, hint = error.message, False, error.hint
        yield Finding(part, good, detail, hint, time.perf_counter() - began)


def _python(cfg: DictConfig) -> str:
    device = device_of(cfg)
    name = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return f"{platform.python_version()}, torch {torch.__version__}, trains on {device}{name}"


def _runs(cfg: DictConfig) -> str:
    folder = Path(cfg.runs)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise StorageError(f"nothing can be written in {there}", hint="choose another folder: runs=FOLDER")
    free = shutil.disk_usage(there).free
    if free < ENOUGH_BYTES:
        raise StorageError(
            f"{free / 2**30:.1f} GB are free for {folder}", hint="free some space, or choose runs=FOLDER"
        )
    return f"{folder}, {free / 2**30:.0f} GB free"


def _keys(cfg: DictConfig) -> str:
    source = build_key_source(cfg)
    path = cfg.security.get("path")
    if path is not None and not Path(path).expanduser().exists():
        return f"none yet in {path}; one is made when the first kernel is stored"
    ring = source.load()
    count = "one key" if len(ring.keys) == 1 else f"{len(ring.keys)} keys"
    return f"{count} in {ring.origin}; {ring.primary.id} seals"


def _library(cfg: DictConfig) -> str:
    url = library_url(cfg)
    path = Path(url.removeprefix("sqlite:///")).expanduser()
    if url.startswith("sqlite:///") and not path.exists():
        return f"none yet in {path}; it is made when it is first used"
    with build_library(cfg) as library:
        began = time.perf_counter()
        best = library.query(KernelQuery(limit=1))
        answered = 1e3 * (time.perf_counter() - began)
        if not best:
            return f"no kernels yet, answers in {answered:.0f} ms"
        unknown = set(library.sealed_by()) - {key.id for key in build_key_source(cfg).load().keys}
        if unknown - {""}:
            raise SecurityError(
                f"kernels are sealed with keys that are not there: {', '.join(sorted(unknown))}",
                hint="put your copy of them back; esper keys ls lists the keys",
            )
        library.verify(best[0].kernel_id)
    return f"has kernels, answers in {answered:.0f} ms; the best one is what was sealed"


def _workers(cfg: DictConfig) -> str:
    refusal = filter_refusal()
    if refusal is None:
        return "their system calls are filtered: they can open, connect to and start nothing"
    missing = f"no filter of system calls ({refusal}), so no TorchScript program is imported"
    if cfg.tezzeret.get("workers", 0):
        raise ConfigError(
            f"{missing}, and workers run under resource limits alone",
            hint="in a container, allow seccomp filters; or compile without workers: tezzeret.workers=0",
        )
    return missing


def _queue(cfg: DictConfig) -> str:
    with watched_broker(cfg) as depth:
        assert depth is not None  # a broker is named
        now = depth()
    if not now.workers:
        raise TierUnavailable(
            f"{now}: nothing is compiled", hint="start one: esper worker tezzeret/engine=celery"
        )
    return str(now)


def _redis(cfg: DictConfig) -> str:
    from esper.urza.redis import RedisTier

    key, value = f"doctor:{secrets.token_hex(8)}", secrets.token_bytes(1024)
    with closing(RedisTier(redis_url(cfg) or "")) as tier:
        tier.ping()  # which connects
        began = time.perf_counter()
        tier.put(key, value)
        found = tier.get(key)
        tier.delete(key)
        answered = 1e3 * (time.perf_counter() - began) / 3
    if found != value:
        raise LibraryError(
            "Redis does not give back what was put",
            hint="check maxmemory and maxmemory-policy; allkeys-lru is right for a cache",
        )
    return f"keeps what it is given, answers in {answered:.1f} ms"


def _network(cfg: DictConfig) -> str:
    data = build_data(cfg)
    model = build_host(cfg, data)
    layers = seeded_layers(model).values()
    seeds = sum(len(layer.seeds) for layer in layers)
    parameters = sum(p.numel() for p in model.parameters())
    return f"{data.task}; {parameters:,} parameters, {seeds} seeds in {len(layers)} layers"


def _inventing(cfg: DictConfig) -> str:
    check_background(cfg)
    return f"up to {cfg.karn.budget} inventions a run, {cfg.karn.batch} at a time, in a process of its own"
