"""What ``esper train`` shows while it trains: a live region in a terminal, lines anywhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from esper_cli.parts import as_many_as_fit, cut_to, layer_lines, legend, progress_line
from esper_cli.progress import RunProgress, describe
from esper_cli.terminal import duration, percent

_EVENT_STYLES = {
    "decision": "bold cyan",
    "fault": "red",
    "rollback": "bold red",
    "seed": "dim",
    "compile": "dim",
    "run_failed": "red",
}
_VERDICT_STYLES = {"kept": "bold green", "culled": "yellow", "failed": "red"}


class Display(Protocol):
    """Receives the events of one run. Entered before the first and left after the last."""

    @property
    def progress(self) -> RunProgress:
        """How the run stands."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        """Take one event in."""


class QuietDisplay:
    """Shows nothing and still knows how the run stands."""

    def __init__(self) -> None:
        self.progress = RunProgress()
        self._refusals: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        """Take one event in."""
        self.progress.apply(event, fields)

    def _line(self, event: str, fields: Mapping[str, Any]) -> str | None:
        """What to print of an event; the journal has every refusal, people are told each reason once."""
        if event == "decision":
            outcome = fields["outcome"]
            if outcome["status"] != "refused":
                self._refusals.clear()
            elif outcome["reason"] in self._refusals:
                return None
            else:
                self._refusals.add(outcome["reason"])
        return describe(event, fields)


class PlainDisplay(QuietDisplay):
    """One line for each epoch, decision, change of a seed, verdict and fault."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        """Take one event in and print it."""
        super().__call__(event, fields)
        line = self._line(event, fields)
        if line is not None:
            self.console.print(
                Text(line, style=_style(event, fields)), soft_wrap=not self.console.is_terminal
            )
            self.console.file.flush()


class LiveDisplay(QuietDisplay):
    """The run at a glance at the bottom of the terminal; decisions and verdicts scroll by above it."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self._live = Live(
            Panel(self.progress), console=console, refresh_per_second=4, transient=True, redirect_stderr=False
        )

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        """Take one event in; the region redraws itself."""
        super().__call__(event, fields)
        if event in ("epoch", "compile") and not _failed(event, fields):
            return  # the region shows these
        line = self._line(event, fields)
        if line is not None:
            self._live.console.print(Text(line, style=_style(event, fields)))


class Panel:
    """Progress, losses and the seeds of each layer, in as many lines as the terminal has to spare."""

    def __init__(self, progress: RunProgress) -> None:
        self.progress = progress

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, lines = options.max_width, max(3, console.height - 2)
        yield self._bar(width)
        yield self._numbers(width)
        seeds, unicode = self.progress.seeds, not options.ascii_only
        layers = list(layer_lines(seeds, width, unicode=unicode))
        if layers:
            layers.append(legend(seeds, width, unicode=unicode, counted=False))
        yield from cut_to(layers, lines - 2, width, "layers")

    def _bar(self, width: int) -> Table:
        run = self.progress
        if run.compiled is not None:
            done, total = run.compiled
            return progress_line(f"compiling kernels {done}/{total}", done / max(1, total), "", width)
        if not run.total_epochs:
            return progress_line("preparing", 0.0, "", width)
        left = f"{duration(run.seconds_left)} left" if run.seconds_left is not None else ""
        label = f"epoch {min(run.epoch + 1, run.total_epochs)}/{run.total_epochs}"
        return progress_line(label, run.done, left, width)

    def _numbers(self, width: int) -> Text:
        run = self.progress
        parts = [f"loss {run.loss:.4f}"] if run.loss is not None else []
        if run.held_out_loss is not None and run.accuracy is not None:
            parts += [f"accuracy {percent(run.accuracy)}", f"held-out loss {run.held_out_loss:.4f}"]
        if run.faults:
            parts.append(f"{run.faults} faults")
        if run.rollbacks:
            parts.append(f"{run.rollbacks} rollbacks")
        return Text(as_many_as_fit(parts, width))


def _failed(event: str, fields: Mapping[str, Any]) -> bool:
    return event == "compile" and fields["record"].status == "failed"


def _style(event: str, fields: Mapping[str, Any]) -> str:
    if event == "trial":
        return _VERDICT_STYLES.get(fields["report"]["verdict"], "")
    return _EVENT_STYLES.get(event, "")
