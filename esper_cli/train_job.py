"""One run, or each of a sweep: trained under the display that was asked for, and told of."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from esper.errors import ConfigError, EsperError
from esper_cli.importing import importing_pytorch

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from esper.nissa.run_outline import RunOutline
    from esper_cli.display import Display
    from esper_cli.progress import RunProgress

AUTO = "auto"
"""In place of a run's id: the latest that is not finished."""
_GROUP = "experiment"


@dataclass(frozen=True)
class Output:
    """What the user wants to see."""

    quiet: bool
    as_json: bool

    def display(self, *, parallel: bool) -> Display:
        """The display for this terminal; live where one run has it to itself and it can move its cursor."""
        from esper_cli.display import LiveDisplay, PlainDisplay, QuietDisplay
        from esper_cli.terminal import console

        if self.quiet:
            return QuietDisplay()
        out = console(stderr=self.as_json)
        live = out.is_terminal and not out.is_dumb_terminal and not parallel
        return LiveDisplay(out) if live else PlainDisplay(out)


@dataclass
class TrainJob:
    """What Hydra runs: once, or once for each job of a sweep, in this process or in others.

    Hydra reports an exception of a job in its own words. So a job keeps its error instead of raising it: in
    ``raised`` when there is one job, else as a line at once and an exit code in a file of the folder
    ``failures``, which reaches the process that started the sweep.
    """

    output: Output
    sweep: bool
    failures: str
    raised: list[Exception] = field(default_factory=list)

    def __call__(self, cfg: DictConfig) -> None:
        """Train one run from the configuration that Hydra composed."""
        from hydra.core.hydra_config import HydraConfig

        from esper_cli.config import job_config

        if self.raised:
            return  # an earlier job of this process met what is no mistake of the user's
        hydra = HydraConfig.get()
        parallel = self.sweep and "basic_launcher" not in str(hydra.launcher.get("_target_"))
        try:
            run_once(job_config(cfg), self.output, resume=None, parallel=parallel)
        except Exception as error:
            if self.sweep and isinstance(error, EsperError):
                self._note(error, hydra.job.num, list(hydra.overrides.task))
            elif parallel:
                raise
            else:
                self.raised.append(error)

    def _note(self, error: EsperError, number: int, overrides: Sequence[str]) -> None:
        from esper_cli.terminal import error_line

        typer.echo(f"{error_line(error)} (job {number}: {' '.join(overrides)})", err=True)
        Path(self.failures, f"{number}").write_text(str(error.exit_code))

    def finish(self) -> None:
        """Raise what a single run raised; leave with the first failed job's exit code after a sweep."""
        for error in self.raised:
            raise error
        failed = sorted(Path(self.failures).iterdir(), key=lambda path: int(path.name))
        if failed:
            typer.echo(f"esper: {len(failed)} of the sweep's jobs failed", err=True)
            raise typer.Exit(int(failed[0].read_text()))


def run_once(cfg: DictConfig, output: Output, *, resume: str | None, parallel: bool = False) -> None:
    """Train one run under the display that ``output`` asks for, then report it.

    Raises:
        KeyboardInterrupt: the run was interrupted; what was saved, and how to go on, was said.
    """
    with importing_pytorch():
        from esper.assembly.training import build_training
        from esper.tolaria.distributed import launched, leave, own_rank, processes_launched
        from esper_cli.processes import Shown, following, start
        from esper_cli.report import report_run

    if (cfg.tolaria.get("processes") or 1) > 1 and not launched():
        start(cfg, Shown(output.quiet, output.as_json, resume))
        return
    if own_rank() > 0:
        with following():
            build_training(cfg, resume=resume).run()
            leave()
        return
    interruption = None
    with output.display(parallel=parallel) as display:
        try:
            build_training(cfg, listeners=[display], resume=resume).run()
        except KeyboardInterrupt as error:
            interruption = error
    if interruption is not None:
        told = _interrupted(interruption, processes_launched())
        typer.echo(f"esper: {told}; {_what_is_saved(display.progress, resume)}", err=True)
        raise interruption
    leave()
    run_id = display.progress.run_id
    try:
        report_run(Path(cfg.runs), run_id, as_json=output.as_json)
    except KeyboardInterrupt:
        typer.echo(f"esper: interrupted; the run had finished: esper runs show {run_id}", err=True)
        raise


def _interrupted(interruption: KeyboardInterrupt, processes: int) -> str:
    """What is known of it: torchrun may be quicker to end a process than that is to miss another."""
    if signal.SIGTERM in interruption.args and processes > 1:
        return (
            "interrupted by SIGTERM, with which torchrun ends a process when another one of the run is lost"
        )
    return "interrupted"


def _what_is_saved(progress: RunProgress, resume: str | None) -> str:
    run_id = progress.run_id or resume
    if run_id is None:
        return "training had not begun, so there is no run to go on with; compiled kernels are kept"
    saved = progress.saved or resume is not None
    return f"saved; go on with: esper train --resume {run_id}" if saved else "nothing was saved yet"


def resume_run(run: str, overrides: Sequence[str], output: Output) -> None:
    """Go on with a run, under the configuration that it began with and ``overrides``."""
    from esper.assembly.resuming import changes
    from esper_cli.config import compose, compose_from
    from esper_cli.runs import open_run

    place = [override for override in overrides if override.startswith("runs=")]
    root = Path(compose(place).runs)
    named = f"+{_GROUP}="
    experiment = next((o.removeprefix(named) for o in overrides if o.startswith(named)), None)
    view = _unfinished(root, experiment) if run == AUTO else open_run(run, root)
    if experiment is not None and view.experiment != experiment:
        raise ConfigError(
            f"run {view.run_id} is one of {view.experiment}, not of {experiment}",
            hint="leave +experiment out; a run goes on under its own configuration",
        )
    saved = view.folder / "config.yaml"
    cfg = compose_from(saved, [o for o in overrides if not o.startswith(named)])
    for change in changes(compose_from(saved, []), cfg):
        typer.echo(f"esper: {change}", err=True)
    run_once(cfg, output, resume=view.run_id)


def _unfinished(root: Path, experiment: str | None) -> RunOutline:
    from esper.assembly.checkpoints import open_checkpoints
    from esper.assembly.resuming import newest_unfinished
    from esper.nissa.runs import RunStore
    from esper_cli.config import compose_from

    return newest_unfinished(
        RunStore(root),
        experiment,
        lambda view: open_checkpoints(compose_from(view.folder / "config.yaml", []), view.folder),
        lambda text: typer.echo(f"esper: {text}", err=True),
    )
