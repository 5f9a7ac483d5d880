"""``esper checkpoints``: list, show, verify, remove and export the checkpoints of a run."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from esper.errors import CheckpointError, ConfigError, RunError, UnknownKey
from esper.nissa.run_records import RunStatus
from esper_cli.completion import complete_names
from esper_cli.importing import importing_pytorch
from esper_cli.runs import AsJson, open_store, run_ids
from esper_cli.terminal import count, duration, print_json, print_lines, table

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from esper.nissa.runs import RunView
    from esper.tolaria.checkpoints import CheckpointFolder, Found

app = typer.Typer(no_args_is_help=True, help="List, show, verify, remove and export checkpoints of runs.")

_RUNS = complete_names(lambda: ["latest", *run_ids()])


def _words(metavar: str) -> Any:
    text = (
        "A run's id, the start of one, or latest; a checkpoint's name or step; overrides such as runs=FOLDER."
    )
    return typer.Argument(metavar=metavar, help=text, autocompletion=_RUNS, show_default=False)


OneRun = Annotated[list[str] | None, _words("[RUN] [KEY=VALUE]...")]
RunAndName = Annotated[list[str] | None, _words("[RUN] [NAME] [KEY=VALUE]...")]


class Place(NamedTuple):
    """What the words of a command name: a run, its configuration, its checkpoints, and what is left."""

    view: RunView
    cfg: DictConfig
    checkpoints: CheckpointFolder
    rest: list[str]

    @property
    def name(self) -> str | None:
        """The one word after the run."""
        return self.rest[0] if self.rest else None


@app.command("ls", epilog="Example: esper checkpoints ls latest")
def list_checkpoints(words: OneRun = None, as_json: AsJson = False) -> None:
    """List the checkpoints of a run, of the latest one unless told otherwise; the newest first.

    Good is what has a manifest of ours and files of the right size; every byte is read by verify.
    """
    if not words and not run_ids():
        empty = "No runs yet, so no checkpoints. Start one with: esper train +experiment=smoke"
        print_json([]) if as_json else print_lines(empty)
        return
    place = _place(words, most=0)
    rows = _described(place)
    if as_json:
        print_json(rows)
    elif rows:
        print_lines(_table(rows))
    else:
        print_lines(_none(place))


@app.command("show", epilog="Example: esper checkpoints show latest 1200")
def show_checkpoint(words: RunAndName = None, as_json: AsJson = False) -> None:
    """Show a checkpoint, the newest unless told otherwise: where the run stood, and its files."""
    place = _place(words, most=1)
    found = place.checkpoints.find(place.name)
    (row,) = [row for row in _described(place) if row["name"] == found.name]
    parts = found.manifest.parts if found.manifest else ()
    row = {"run": place.view.run_id, **row, "parts": {part.name: part.size for part in parts}}
    if as_json:
        print_json(row)
        return
    shown = table(("", ""), whole=("",))
    for name, value in row.items():
        if value is not None and name != "parts":
            shown.add_row(name.replace("_", " "), _plain(name, value))
    for name, size in row["parts"].items():
        shown.add_row(name, _bytes(size))
    print_lines(shown)


@app.command("verify", epilog="Example: esper checkpoints verify latest --all")
def verify_checkpoints(
    words: RunAndName = None,
    all_: Annotated[bool, typer.Option("--all", help="Every checkpoint of the run.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read and authenticate every byte of a checkpoint, the newest unless told otherwise.

    Ends with 7 if one is damaged, and with 12 if the key of one is not at hand.
    """
    place = _place(words, most=0 if all_ else 1)
    chosen = place.checkpoints.all() if all_ else [place.checkpoints.find(place.name)]
    if not chosen:
        print_lines(_none(place))
        return
    results = {found.name: _error(place.checkpoints, found) for found in chosen}
    if as_json:
        print_json([{"name": name, "error": e and e.message} for name, e in results.items()])
    else:
        for name, error in results.items():
            print_lines(f"{name}  good" if error is None else f"{name}  {error.message}")
    for code in [error.exit_code for error in results.values() if error is not None]:
        raise typer.Exit(code)


@app.command("rm", epilog="Example: esper checkpoints rm latest 1200")
def remove_checkpoints(
    words: Annotated[list[str], _words("RUN NAME... [KEY=VALUE]...")],
    force: Annotated[bool, typer.Option("--force", help="Even what the run needs to go on.")] = False,
) -> None:
    """Remove checkpoints, but not the last good one of a run that is not finished."""
    from esper.assembly.checkpoints import last_good

    place = _place(words, most=None)
    if not place.rest:
        raise ConfigError("no checkpoint was named", hint="list them with: esper checkpoints ls RUN")
    for found in [place.checkpoints.find(name) for name in place.rest]:
        needed = place.view.status is not RunStatus.FINISHED and last_good(place.checkpoints, found)
        if needed and not force:
            raise RunError(
                f"{found.name} is the last good checkpoint of run {place.view.run_id}, which is not finished",
                hint="without it the run cannot go on; remove it nevertheless with --force",
            )
        place.checkpoints.remove(found)
        print_lines(f"removed {found.path}")


@app.command("export", epilog="Example: esper checkpoints export latest weights.safetensors --at 1200")
def export_checkpoint(
    words: Annotated[list[str], _words("RUN FILE [KEY=VALUE]...")],
    at: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its name or step; the newest unless given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the weights of a checkpoint as a plain state_dict in safetensors.

    Names are those of the network as it trains; esper runs export writes a network without Esper.
    """
    with importing_pytorch():
        from esper.assembly.checkpoints import export_weights

    place = _place(words, most=1)
    if place.name is None:
        raise ConfigError("no file was named", hint="for example: esper checkpoints export RUN w.safetensors")
    done = export_weights(place.cfg, place.view.folder, at, Path(place.name))
    if as_json:
        print_json(done)
    else:
        print_lines(f"wrote {done['file']}: {done['tensors']} tensors of step {done['step']}")


def _place(words: Sequence[str] | None, *, most: int | None) -> Place:
    """The run of the first word, the latest if there is none; ``most`` words may follow it."""
    from esper.assembly.checkpoints import open_checkpoints
    from esper_cli.config import compose_from

    given = list(words or ())
    names = [word for word in given if "=" not in word] or ["latest"]
    if most is not None and len(names) > most + 1:
        raise ConfigError(f"{names[most + 1]} is one word too many", hint="see --help")
    view = open_store([word for word in given if "=" in word]).open(names[0])
    cfg = compose_from(view.folder / "config.yaml", [])
    return Place(view, cfg, open_checkpoints(cfg, view.folder), names[1:])


def _described(place: Place) -> list[dict[str, Any]]:
    from esper.assembly.checkpoints import best_of, described

    found = place.checkpoints.all()
    best = best_of(found)
    return [described(each, each is best) for each in found]


def _table(rows: Sequence[dict[str, Any]]) -> Any:
    shown = table(
        ("name", "epoch", "held-out loss", "size", "age", "state"),
        right=("epoch", "held-out loss", "size", "age"),
        whole=("name",),
    )
    for row in rows:
        inside = f" + {row['step_in_epoch']} steps" if row["step_in_epoch"] else ""
        state = row["error"] or ("good, best" if row["best"] else "good")
        shown.add_row(
            row["name"],
            "" if row["epochs"] is None else f"{row['epochs']}{inside}",
            "" if row["held_out_loss"] is None else f"{row['held_out_loss']:.4f}",
            "" if row["bytes"] is None else _bytes(row["bytes"]),
            "" if row["created_at"] is None else _age(row["created_at"]),
            state,
        )
    return shown


def _plain(name: str, value: Any) -> str:
    shown = {"bytes": _bytes, "created_at": lambda at: f"{at}, {_age(at)} ago", "best": _yes_or_no}
    return str(shown.get(name, str)(value))


def _yes_or_no(value: bool) -> str:
    return "yes" if value else "no"


def _bytes(size: int) -> str:
    return f"{count(size)}B"


def _age(created_at: str) -> str:
    return duration(max(0.0, (datetime.now(UTC) - datetime.fromisoformat(created_at)).total_seconds()))


def _none(place: Place) -> str:
    run = place.view.run_id
    if place.checkpoints.is_older():
        return f"Run {run} has one of an older format. It can be used: esper train --resume {run}"
    return f"Run {run} has no checkpoints. The first is written when training begins."


def _error(checkpoints: CheckpointFolder, found: Found) -> CheckpointError | UnknownKey | None:
    try:
        checkpoints.verify(found)
    except (CheckpointError, UnknownKey) as error:
        return error
    return None
