"""The metrics server of a configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from esper.assembly.catalogue import LibraryCatalogue, redis_check
from esper.assembly.storage import build_library
from esper.nissa.api import create_app
from esper.nissa.monitor import Monitor
from esper.nissa.runs import RunStore
from esper.nissa.server import MetricsServer, access_notice


def serve(cfg: DictConfig, *, say: Callable[[str], None]) -> None:
    """Serve metrics, health and the API over ``cfg.runs`` until SIGINT or SIGTERM.

    ``say`` is told where it listens and who can read it. Raises ServerError when the port is taken.
    """
    with build_library(cfg) as library:
        catalogue = LibraryCatalogue(library)
        monitor = Monitor(
            RunStore(Path(cfg.runs), keep_packets=False),
            catalogue.compilations,
            components=redis_check(cfg),
            tiers=catalogue.tiers,
        )
        app = create_app(monitor, catalogue)
        server = MetricsServer(app, host=cfg.nissa.host, port=cfg.nissa.port, on_stop=app.state.hub.stop)
        say(access_notice(cfg.nissa.host))
        server.run(on_ready=lambda url: say(f"serving {cfg.runs} at {url}"))
