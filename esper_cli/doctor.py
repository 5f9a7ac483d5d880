"""``esper doctor``: is everything that a configuration names there, and does it work?"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from esper_cli.completion import complete_overrides
from esper_cli.terminal import print_json, print_lines, table

EPILOG = "Example: esper doctor +experiment=resnet urza=full"


def doctor(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="OVERRIDES",
            help="As for esper train: what to look at.",
            autocompletion=complete_overrides,
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check each part of a configuration: device, disk, keys, library, Redis, data and network.

    Ends with 1 if a part does not work.
    """
    from esper.assembly.checks import examine
    from esper_cli.config import compose

    findings = list(examine(compose(list(overrides or ()))))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        rows = table(("part", "", "what was found"), whole=("part", ""))
        for finding in findings:
            todo = "" if finding.hint is None else f". To do: {finding.hint}"
            rows.add_row(
                finding.part,
                Text("good" if finding.good else "bad", "green" if finding.good else "red"),
                finding.detail.rstrip(".") + todo,
            )
        print_lines(rows)
    if not all(finding.good for finding in findings):
        raise typer.Exit(1)
