"""``esper drill``: faults on purpose, on a short run, before they come by themselves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from esper_cli.completion import complete_names, complete_overrides
from esper_cli.importing import importing_pytorch
from esper_cli.terminal import print_json, print_lines, table

if TYPE_CHECKING:
    from esper.assembly.drill import Rehearsal

EPILOG = """
[bold]Examples[/bold]

  esper drill +experiment=resnet

  esper drill +experiment=resnet --only process-killed --only disk-full
"""

_WORDS = {True: ("survived", "green"), False: ("not survived", "bold red"), None: ("not rehearsed", "dim")}


def _faults() -> Iterable[str]:
    from esper.assembly.drill import FAULTS

    return FAULTS


def drill(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="OVERRIDES",
            help="As for esper train: what to rehearse on.",
            autocompletion=complete_overrides,
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FAULT",
            help="Rehearse this fault, such as process-killed; may be repeated. All unless given.",
            autocompletion=complete_names(lambda: list(_faults())),
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Rehearse faults on a short run of a configuration: failing kernels, kill -9, a full disk, bad data.

    Ends with 1 if one was not survived. No run, no library and no cache of yours is changed.
    """
    with importing_pytorch():
        from esper.assembly.drill import rehearse
    from esper_cli.config import compose

    rehearsals = list(rehearse(compose(list(overrides or ())), only or ()))
    if as_json:
        print_json([asdict(rehearsal) for rehearsal in rehearsals])
    else:
        _print(rehearsals)
    if any(rehearsal.survived is False for rehearsal in rehearsals):
        raise typer.Exit(1)


def _print(rehearsals: Iterable[Rehearsal]) -> None:
    rows = table(
        ("fault", "", "to recover", "what happened"), right=("to recover",), whole=("fault", "", "to recover")
    )
    for rehearsal in rehearsals:
        seconds = "" if rehearsal.seconds is None else f"{rehearsal.seconds:.2f} s"
        rows.add_row(rehearsal.fault, Text(*_WORDS[rehearsal.survived]), seconds, rehearsal.detail)
    print_lines(rows)
