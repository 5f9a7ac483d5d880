"""``esper runs rm``: remove runs, so that the audit trail knows of it."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Annotated

import typer

from esper.errors import ConfigError, RunError
from esper_cli.runs import Overrides, RunId, open_store
from esper_cli.runs_control import app
from esper_cli.terminal import print_lines

__all__ = ["app"]  # of runs.py, with the command of this file


@app.command("rm", epilog="Example: esper runs rm 20261123-181502-resnet-3f2a --yes")
def remove(
    run: RunId,
    overrides: Overrides = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a run with its checkpoints and results; what its trials showed stays in the library.

    Of one whose folder is gone already this is your word for it, which esper audit verify wants.
    """
    from esper.assembly.removing import remove_run
    from esper_cli.config import compose

    with suppress(RunError):  # of one that is gone already: by its whole id alone
        run = open_store(overrides or ()).find(run)
    if not yes and not _agreed(run):
        print_lines("Nothing was removed.")
        return
    if remove_run(compose(list(overrides or ())), run):
        print_lines(f"removed {run}")
    else:
        print_lines(f"{run} was gone already; the audit trail has your word that it may be")


def _agreed(run: str) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("removing a run asks first, and there is no terminal to ask", hint="add --yes")
    return typer.confirm(f"Remove {run} with its checkpoints and results?")
