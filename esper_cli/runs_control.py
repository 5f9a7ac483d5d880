"""``esper runs``: have a run that trains pause, go on, or go back."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated, Any

import typer

from esper.errors import ConfigError, RunError
from esper_cli.runs import AsJson, Overrides, RunId, app, open_store
from esper_cli.terminal import print_json, print_lines

__all__ = ["app"]  # of runs.py, with the commands of this file

WAIT_SECONDS = 10.0
LOOK_SECONDS = 0.1

Wait = Annotated[
    float, typer.Option(min=0, max=3600, metavar="SECONDS", help="Wait so long until the run has done it.")
]


@app.command("pause", epilog="Example: esper runs pause latest")
def pause_run(
    run: RunId, overrides: Overrides = None, wait: Wait = WAIT_SECONDS, as_json: AsJson = False
) -> None:
    """Have a run wait between two steps; a checkpoint is written first."""
    _ask(run, overrides, "pause", wait, as_json)


@app.command("resume", epilog="Example: esper runs resume latest")
def resume_run(
    run: RunId, overrides: Overrides = None, wait: Wait = WAIT_SECONDS, as_json: AsJson = False
) -> None:
    """Have a paused run go on. One that has ended goes on with: esper train --resume."""
    _ask(run, overrides, "resume", wait, as_json)


@app.command("rollback", epilog="Example: esper runs rollback latest --epoch 3")
def roll_run_back(
    run: RunId,
    overrides: Overrides = None,
    epoch: Annotated[
        int | None, typer.Option(min=0, help="To the newest checkpoint of at most so many whole epochs.")
    ] = None,
    step: Annotated[
        int | None, typer.Option(min=0, help="To the newest checkpoint of at most so many steps.")
    ] = None,
    wait: Wait = WAIT_SECONDS,
    as_json: AsJson = False,
) -> None:
    """Have a run that trains go back to a checkpoint: to the one before where it is, unless told which."""
    if epoch is not None and step is not None:
        raise ConfigError("rollback takes --epoch or --step, not both")
    _ask(run, overrides, "rollback", wait, as_json, epoch=epoch, step=step)


def _ask(
    run: str, overrides: list[str] | None, action: Any, wait: float, as_json: bool, **bounds: Any
) -> None:
    """Ask, and say what became of it; RunError when the run refuses or ends before it has read that."""
    from esper.assembly.audit_trails import note
    from esper.nissa.control import ask
    from esper.security.audit import Action
    from esper_cli.config import compose

    store = open_store(overrides or ())
    view = store.open(run)
    given = {name: bound for name, bound in bounds.items() if bound is not None}
    note(compose(list(overrides or ())), Action(f"run.{action}.asked", view.run_id, detail=given))
    asked = ask(view.folder, action, **bounds)
    deadline = time.monotonic() + wait
    outcome = view.refresh().controls.get(asked.request)
    while outcome is None and time.monotonic() < deadline:
        if not view.status.goes_on:
            raise RunError(f"run {view.run_id} ended before it read the request")
        time.sleep(LOOK_SECONDS)
        outcome = view.refresh().controls.get(asked.request)
    if outcome is not None and not outcome.done:
        raise RunError(f"run {view.run_id} refused: {outcome.reason}")
    if as_json:
        told = None if outcome is None else outcome.to_json()
        print_json({"run_id": view.run_id, **asdict(asked), "outcome": told})
    elif outcome is None:
        print_lines(f"asked {view.run_id} to {action}; esper runs show {view.run_id} shows when it has")
    else:
        done = {"pause": "is paused", "resume": "goes on", "rollback": "went back"}[asked.action]
        print_lines(f"{view.run_id} {done}, after {outcome.epoch} epochs and {outcome.step} steps")
