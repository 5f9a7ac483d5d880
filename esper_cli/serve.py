"""``esper serve-metrics``: the HTTP side of Nissa, over what training runs wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esper_cli.completion import complete_overrides

if TYPE_CHECKING:
    from esper.messages import CompilationRecord


def serve_metrics(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Overrides of the configuration, such as runs=FOLDER.",
            autocompletion=complete_overrides,
            show_default=False,
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Listen on this address; loopback unless given.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Listen on this port; 9464 unless given, 0 for any.")
    ] = None,
) -> None:
    """Serve /health, /metrics, /api/v1/status and /api/v1/adaptations until Ctrl-C.

    Reads what training runs wrote, while they run and after. There is no authentication yet.
    """
    from esper.assembly import build_library
    from esper.nissa.api import create_app
    from esper.nissa.monitor import Monitor
    from esper.nissa.runs import RunStore
    from esper.nissa.server import DEFAULT_HOST, DEFAULT_PORT, MetricsServer, access_notice
    from esper_cli.config import compose

    cfg = compose(list(overrides or ()))
    address = host or DEFAULT_HOST

    def compilations() -> list[CompilationRecord]:
        with build_library(cfg) as library:  # opened anew: it may be replaced while this serves
            return library.compilations()

    monitor = Monitor(RunStore(Path(cfg.runs), keep_packets=False), compilations)
    server = MetricsServer(create_app(monitor), host=address, port=DEFAULT_PORT if port is None else port)

    def ready(url: str) -> None:
        typer.echo(f"serving the runs in {cfg.runs} at {url}; stop with Ctrl-C")
        typer.echo(access_notice(address), err=True)

    server.run(ready)
