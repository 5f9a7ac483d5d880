"""The metrics server of a configuration."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from esper.assembly.admission import access_notice, build_admission, build_connection_limit, build_tls
from esper.assembly.catalogue import LibraryCatalogue, redis_check
from esper.assembly.storage import build_library
from esper.assembly.telemetry import mirrored
from esper.assembly.workers import queue_check, watched_broker
from esper.errors import ConfigError
from esper.nissa.api.application import create_app
from esper.nissa.api.kept_metrics import KeptMetrics
from esper.nissa.http.guard import Guard
from esper.nissa.http.server import MetricsServer
from esper.nissa.http.tls import RenewedTls
from esper.nissa.runs import RunStore
from esper.security.privacy import hidden, register_own_places, register_place


def serve(cfg: DictConfig, *, say: Callable[[str], None], self_signed: bool = False) -> None:
    """Serve metrics, health, the API and the page over ``cfg.runs`` until SIGINT or SIGTERM.

    ``say`` is told where it listens and who is let in. Raises ServerError when the port is taken, or others
    than this machine could come in without TLS and tokens.
    """
    nice = _niceness(cfg)
    tls = build_tls(cfg, self_signed=self_signed, say=say)
    admission = build_admission(cfg, tls=tls is not None)
    with build_library(cfg) as library, mirrored(cfg) as mirror, watched_broker(cfg) as broker:
        catalogue = LibraryCatalogue(library)
        monitor = KeptMetrics(
            RunStore(Path(cfg.runs), keep_packets=False),
            catalogue.compilations,
            components={**redis_check(cfg), **mirror, **queue_check(broker)},
            broker=broker,
            tiers=catalogue.tiers,
            own={"TLS": tls.check} if isinstance(tls, RenewedTls) else {},
        )
        register_own_places(cfg.runs)
        names = "tls_certificate", "tls_key", "tls_client_ca", "tls_client_crl"
        register_place(*filter(None, (cfg.nissa[name] for name in names)))
        app = create_app(monitor, catalogue, clean=hidden)
        server = MetricsServer(
            Guard(app, admission),
            host=cfg.nissa.host,
            port=cfg.nissa.port,
            tls=tls,
            connections=build_connection_limit(cfg),
            on_stop=app.state.hub.stop,
        )
        say(access_notice(admission))
        os.nice(nice)  # a run beside it goes first
        # A full collection over all that is imported takes 0.12 s, in which nobody is answered.
        gc.collect()
        gc.freeze()
        server.run(on_ready=lambda url: say(f"serving {cfg.runs} at {url}"))


def _niceness(cfg: DictConfig) -> int:
    """By how much the priority of this process is to be lower than a run's."""
    nice = int(cfg.nissa.nice)
    if not 0 <= nice <= 19:
        raise ConfigError(f"nissa.nice must be between 0 and 19, not {nice}")
    return nice
