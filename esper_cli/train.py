"""``esper train``: compose a configuration, train, and say what came of it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from esper.errors import ConfigError
from esper_cli.completion import complete_names, complete_overrides
from esper_cli.runs import run_ids
from esper_cli.train_job import AUTO, Output, TrainJob, resume_run

HYDRA_PANEL = "Hydra"

EPILOG = """
[bold]Examples[/bold]

a residual network on real images, and its control without growth

  esper train +experiment=resnet

  esper train +experiment=resnet tamiyo=never

a sweep with one run a seed; your own ./experiments/mine.yaml; going on after Ctrl-C

  esper train -m +experiment=smoke seed=0,1,2

  esper train +experiment=mine

  esper train --resume latest

  esper train --resume auto +experiment=resnet
"""


def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="OVERRIDES",
            help="What differs from the defaults: +experiment=NAME, GROUP=OPTION, KEY=VALUE.",
            autocompletion=complete_overrides,
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Go on with a run from its last good checkpoint: an id, the start of one, latest, or auto: "
            "the latest that is not finished.",
            autocompletion=complete_names(lambda: [AUTO, "latest", *run_ids()]),
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the summary alone.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON; everything else goes to stderr.")
    ] = False,
    multirun: Annotated[
        bool,
        typer.Option(
            "--multirun", "-m", help="Train once for each combination.", rich_help_panel=HYDRA_PANEL
        ),
    ] = False,
    cfg: Annotated[
        str | None,
        typer.Option(
            "--cfg",
            "-c",
            metavar="job|hydra|all",
            help="Print the configuration.",
            rich_help_panel=HYDRA_PANEL,
        ),
    ] = None,
    package: Annotated[
        str | None,
        typer.Option(
            "--package", "-p", help="Print this part of it, with --cfg.", rich_help_panel=HYDRA_PANEL
        ),
    ] = None,
    resolve: Annotated[
        bool, typer.Option("--resolve", help="Resolve ${...}, with --cfg.", rich_help_panel=HYDRA_PANEL)
    ] = False,
    info: Annotated[
        str | None,
        typer.Option(
            "--info",
            metavar="defaults|defaults-tree|config|plugins|searchpath|all",
            help="Print how the configuration came about.",
            rich_help_panel=HYDRA_PANEL,
        ),
    ] = None,
    config_dir: Annotated[
        Path | None,
        typer.Option("--config-dir", help="One more folder of groups.", rich_help_panel=HYDRA_PANEL),
    ] = None,
    hydra_help: Annotated[
        bool, typer.Option("--hydra-help", help="Print Hydra's own help.", rich_help_panel=HYDRA_PANEL)
    ] = False,
) -> None:
    """Train a network that grows while it trains.

    The run is written into a folder of its own below runs/, and the end says where.
    """
    from esper_cli import config

    given = list(overrides or ())
    flags = [
        *(["--multirun"] if multirun else []),
        *(["--cfg", cfg] if cfg else []),
        *(["--package", package] if package else []),
        *(["--resolve"] if resolve else []),
        *(["--info", info] if info else []),
        *(["--config-dir", str(config_dir)] if config_dir else []),
        *(["--hydra-help"] if hydra_help else []),
    ]
    _check_flags(flags, cfg, info, resume)
    output = Output(quiet=quiet, as_json=as_json)
    if resume is not None:
        resume_run(resume, given, output)
        return
    with tempfile.TemporaryDirectory(prefix="esper-") as failures:
        job = TrainJob(output, sweep=multirun, failures=failures)
        config.run(job, flags, given)
        job.finish()


def _check_flags(flags: Sequence[str], cfg: str | None, info: str | None, resume: str | None) -> None:
    """Refuse what Hydra's parser would refuse with a usage page."""
    choices = {
        "--cfg": (cfg, ("job", "hydra", "all")),
        "--info": (info, ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")),
    }
    for flag, (value, allowed) in choices.items():
        if value is not None and value not in allowed:
            raise ConfigError(f"{flag} takes {', '.join(allowed)}, not {value!r}")
    if resume is not None and flags:
        raise ConfigError(
            f"--resume goes on with one run as it was configured, so {flags[0]} has no meaning beside it",
            hint="leave one of the two out",
        )
    modes = [flag for flag in flags if flag in ("--multirun", "--cfg", "--info")]
    if len(modes) > 1:
        raise ConfigError(f"{' and '.join(modes)} exclude each other", hint="leave one of them out")
    if "--cfg" not in flags and ("--resolve" in flags or "--package" in flags):
        raise ConfigError("--resolve and --package say what --cfg prints", hint="add --cfg job")
