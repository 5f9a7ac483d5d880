"""``esper serve-metrics``: the HTTP side of Nissa, over what training runs wrote."""

from __future__ import annotations

from typing import Annotated

import typer

from esper_cli.completion import complete_overrides

EPILOG = "Example: esper serve-metrics --port 9464"


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
    host: Annotated[
        str | None, typer.Option(help="Listen on this address; loopback unless told otherwise.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Listen on this port; 0 takes any.")
    ] = None,
    tls_self_signed: Annotated[
        bool, typer.Option("--tls-self-signed", help="To try TLS: with a certificate that is made now.")
    ] = False,
) -> None:
    """Serve the page, /health, /metrics and the API until Ctrl-C.

    Reads what training runs wrote, while they run and after. On loopback whoever is on this machine may read;
    anything else needs a token (esper token), and any other address TLS.
    """
    from esper.assembly.serving import serve
    from esper_cli.config import compose

    cfg = compose(list(overrides or ()))
    cfg.nissa.host = host or cfg.nissa.host
    cfg.nissa.port = cfg.nissa.port if port is None else port
    serve(cfg, say=typer.echo, self_signed=tls_self_signed)
