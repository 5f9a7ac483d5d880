"""What ``esper train`` shows while it trains: a live region in a terminal, lines anywhere else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from esper.messages import SeedState
from esper_cli.progress import RunProgress, describe
from esper_cli.terminal import duration, percent

GLYPHS: Mapping[SeedState, tuple[str, str, str]] = {
    SeedState.DORMANT: ("·", ".", "dim"),
    SeedState.GERMINATED: ("○", "o", "cyan"),
    SeedState.TRAINING: ("◔", "t", "blue"),
    SeedState.BLENDING: ("◑", "b", "magenta"),
    SeedState.HOLDING: ("◕", "h", "yellow"),
    SeedState.FOSSILIZED: ("●", "F", "bold green"),
    SeedState.CULLED: ("✕", "x", "red"),
    SeedState.EMBARGOED: ("□", "-", "dim red"),
    SeedState.ERROR_RECOVERY: ("!", "!", "bold red"),
}
"""Glyph, its form where the terminal has no Unicode, and style of each state of a seed."""

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
        unicode = not options.ascii_only
        rows = list(self._seeds(width, unicode))
        room = lines - 2
        shown = rows if len(rows) <= room else rows[: max(0, room - 1)]
        yield from shown
        if len(shown) < len(rows):
            yield Text(f"… {len(rows) - len(shown)} more lines of layers"[:width], style="dim")

    def _bar(self, width: int) -> Table:
        run = self.progress
        if run.compiled is not None:
            done, total = run.compiled
            label, completed, left = f"compiling kernels {done}/{total}", done / max(1, total), ""
        elif not run.total_epochs:
            label, completed, left = "preparing", 0.0, ""
        else:
            label = f"epoch {min(run.epoch + 1, run.total_epochs)}/{run.total_epochs}"
            completed = run.done
            left = f"{duration(run.seconds_left)} left" if run.seconds_left is not None else ""
        grid = Table.grid(padding=(0, 1), expand=False)
        grid.add_column(no_wrap=True)
        grid.add_column()
        grid.add_column(no_wrap=True)
        room = width - len(label) - len(left) - 8
        bar = ProgressBar(total=1.0, completed=completed, width=max(4, min(40, room)))
        grid.add_row(Text(label, style="bold"), bar, Text(f"{100 * completed:3.0f}% {left}"))
        return grid

    def _numbers(self, width: int) -> Text:
        run = self.progress
        parts = [f"loss {run.loss:.4f}"] if run.loss is not None else []
        if run.held_out_loss is not None and run.accuracy is not None:
            parts += [f"accuracy {percent(run.accuracy)}", f"held-out loss {run.held_out_loss:.4f}"]
        if run.faults:
            parts.append(f"{run.faults} faults")
        if run.rollbacks:
            parts.append(f"{run.rollbacks} rollbacks")
        while len("  ".join(parts)) > width:
            parts.pop()  # half a number is worse than none
        return Text("  ".join(parts))

    def _seeds(self, width: int, unicode: bool) -> Iterator[Text]:
        """The layers side by side, as many as fit, and what the glyphs among them mean."""
        layers = list(self.progress.seeds.items())
        if not layers:
            return
        glyphs = {name: _glyphs(states, unicode) for name, states in layers}
        longest = max(len(name) for name in glyphs)
        cell = min(width, longest + 1 + max(len(text) for text in glyphs.values()) + 3)
        across = max(1, width // cell)
        for start in range(0, len(layers), across):
            line = Text()
            for name, _ in layers[start : start + across]:
                line.append(name[: cell - 4 - len(glyphs[name])].ljust(cell - 4 - len(glyphs[name])))
                line.append(" ").append_text(glyphs[name]).append("   ")
            line.truncate(width)
            yield line
        present = [state for state in SeedState if any(state in states for _, states in layers)]
        legend = Text("  ").join(
            Text(f"{GLYPHS[state][0 if unicode else 1]} {state.lower().replace('_', ' ')}", GLYPHS[state][2])
            for state in present
        )
        legend.truncate(width)
        yield legend


def _glyphs(states: list[SeedState], unicode: bool) -> Text:
    text = Text()
    for state in states:
        full, plain, style = GLYPHS[state]
        text.append(full if unicode else plain, style)
    return text


def _failed(event: str, fields: Mapping[str, Any]) -> bool:
    return event == "compile" and fields["record"].status == "failed"


def _style(event: str, fields: Mapping[str, Any]) -> str:
    if event == "trial":
        return _VERDICT_STYLES.get(fields["report"]["verdict"], "")
    return _EVENT_STYLES.get(event, "")
