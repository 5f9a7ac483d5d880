"""``esper worker``: compiles for whoever asks over a broker."""

from __future__ import annotations

from typing import Annotated

import typer

from esper_cli.completion import complete_overrides
from esper_cli.importing import importing_pytorch

EPILOG = "Example: ESPER_BROKER_URL=rediss://:PASSWORD@broker.example:6379 esper worker --workers 4"


def worker(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Overrides of the configuration, such as tezzeret.limits.memory_mb=1024.",
            autocompletion=complete_overrides,
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Processes that compile at once; as many as cores unless told otherwise."
        ),
    ] = None,
) -> None:
    """Compile what others ask for over the broker of tezzeret/engine=celery, until Ctrl-C.

    Each job runs in a process of its own under the limits of this machine's configuration. Who asks and who
    compiles have the same keys (security) and the same version of Esper.
    """
    with importing_pytorch():
        from esper.assembly.workers import serve_jobs
        from esper_cli.config import compose

    given = [*(overrides or ()), *([] if workers is None else [f"tezzeret.workers={workers}"])]
    serve_jobs(compose(["tezzeret/engine=celery", *given]), say=lambda text: typer.echo(text, err=True))
