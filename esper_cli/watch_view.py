"""The ways in which ``esper watch`` shows a run: the whole terminal, one picture, lines, or JSON."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Protocol, Self

from rich.live import Live

from esper.nissa.journal import Event, dumps
from esper.nissa.replay import ToldRun, with_numbers
from esper_cli.display import PlainDisplay
from esper_cli.terminal import PipeConsole, console
from esper_cli.watch_frame import WatchFrame

REDRAW_SECONDS = 1.0
"""Ages in the picture are no older than that."""

PAUSE_SECONDS = 0.5
"""The picture is drawn no sooner than that after the last one: of a long run it costs 0.1 s."""


class Viewer(Protocol):
    """Shows a run. Entered before the first events and left after the last."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def show(self, run: ToldRun, events: Sequence[Event]) -> None:
        """Show ``run``, which ``events`` were told just now."""


class JsonViewer:
    """Each event as a line of JSON, as it stands in the journal."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def show(self, _run: ToldRun, events: Sequence[Event]) -> None:
        """Print them."""
        sys.stdout.writelines(dumps(event) + "\n" for event in events)
        sys.stdout.flush()


class LineViewer(JsonViewer):
    """Each event that is news as a line for people, as ``esper train`` prints it."""

    def __init__(self) -> None:
        self._display = PlainDisplay(console())

    def show(self, _run: ToldRun, events: Sequence[Event]) -> None:
        """Print them; those that cannot be understood are left out, as in every view of a run."""
        for event in events:
            fields = with_numbers(event)
            try:
                self._display(event["event"], fields)
            except (KeyError, TypeError, ValueError, AttributeError):
                continue


class FrameViewer(JsonViewer):
    """One picture of the run as it is at the end, or as it was when what ``note`` says had just happened."""

    def __init__(self, note: str = "") -> None:
        self._note = note
        self._run: ToldRun | None = None

    def __exit__(self, *exc: object) -> None:
        if exc[0] is None and self._run is not None:
            # Whoever reads a pipe wants the picture as well; Rich takes COLUMNS and LINES, or 80 by 25.
            PipeConsole(highlight=False).print(self._frame(self._run))

    def show(self, run: ToldRun, _events: Sequence[Event]) -> None:
        """Keep it for the end."""
        self._run = run

    def _frame(self, run: ToldRun) -> WatchFrame:
        then = run.updated_at if self._note else None
        return WatchFrame(run, then or datetime.now(UTC), self._note)


class LiveViewer(FrameViewer):
    """The picture on the whole terminal, drawn anew when something happens; the last one stays."""

    def __init__(self) -> None:
        super().__init__()
        self._live = Live(console=console(), screen=True, auto_refresh=False, redirect_stderr=False)
        self._drawn = -math.inf
        self._news = False

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()
        super().__exit__(*exc)

    def show(self, run: ToldRun, events: Sequence[Event]) -> None:
        """Draw it, if there is news or the last picture has become old."""
        super().show(run, events)
        self._news = self._news or bool(events)
        if time.monotonic() - self._drawn >= (PAUSE_SECONDS if self._news else REDRAW_SECONDS):
            self._live.update(self._frame(run), refresh=True)
            self._drawn, self._news = time.monotonic(), False
