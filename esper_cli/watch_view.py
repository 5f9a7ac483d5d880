"""The ways in which ``esper watch`` shows a run: the whole terminal, one picture, lines, or JSON."""

from __future__ import annotations

import math
import sys
import time
from bisect import bisect_left
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Protocol, Self

from rich.console import Group
from rich.live import Live
from rich.text import Text

from esper.nissa.journal import Event, dumps
from esper.nissa.replay import EventLog, ToldRun, until_epoch, with_numbers
from esper_cli.display import PlainDisplay
from esper_cli.terminal import PipeConsole, console
from esper_cli.watch_frame import WatchFrame
from esper_cli.watch_keys import Keys

REDRAW_SECONDS = 1.0
"""Ages in the picture are no older than that."""

PAUSE_SECONDS = 0.5
"""The picture is drawn no sooner than that after the last one: of a long run it costs 0.1 s."""

STEPS = {"left": -1, "right": 1, "page up": -10, "page down": 10}
"""How many epochs each key goes."""

KEYS = "left, right: epochs  home: the first  end: live  q: leave"


class Viewer(Protocol):
    """Shows a run. Entered before the first events and left after the last."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def show(self, run: ToldRun, events: Sequence[Event]) -> None:
        """Show ``run``, which ``events`` were told just now."""

    def wait(self, seconds: float) -> bool:
        """Let so much time pass, or less; whether more is to be shown."""

    @property
    def busy(self) -> bool:
        """Whether somebody looks at what was before, and the run's end has to wait."""


class _Still:
    """What all viewers have that no keys reach."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    @property
    def busy(self) -> bool:
        """Never: nobody can look back."""
        return False

    def wait(self, seconds: float) -> bool:
        """Let so much time pass."""
        time.sleep(seconds)
        return True


class JsonViewer(_Still):
    """Each event as a line of JSON, as it stands in the journal."""

    def show(self, _run: ToldRun, events: Sequence[Event]) -> None:
        """Print them."""
        sys.stdout.writelines(dumps(event) + "\n" for event in events)
        sys.stdout.flush()


class LineViewer(_Still):
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


class FrameViewer(_Still):
    """One picture of the run as it is at the end, or as it was when what ``note`` says had just happened."""

    def __init__(self, note: str = "") -> None:
        self._note = note
        self._run: ToldRun | None = None

    def __exit__(self, *exc: object) -> None:
        if exc[0] is None and self._run is not None:
            # Whoever reads a pipe wants the picture as well; Rich takes COLUMNS and LINES, or 80 by 25.
            PipeConsole().print(self._frame(self._run))

    def show(self, run: ToldRun, _events: Sequence[Event]) -> None:
        """Keep it for the end."""
        self._run = run

    def _frame(self, run: ToldRun) -> WatchFrame:
        then = run.updated_at if self._note else None
        return WatchFrame(run, then or datetime.now(UTC), self._note)


class LiveViewer(FrameViewer):
    """The picture on the whole terminal, drawn anew when something happens; the last one stays.

    Keys go back to earlier epochs and forward again, to where it is live.
    """

    def __init__(self) -> None:
        super().__init__()
        self._live = Live(console=console(), screen=True, auto_refresh=False, redirect_stderr=False)
        self._keys = Keys()
        self._drawn = -math.inf
        self._news = False
        self._log = EventLog()
        self._then: tuple[int, ToldRun] | None = None

    def __enter__(self) -> Self:
        self._keys.__enter__()
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()
        self._keys.__exit__(*exc)
        super().__exit__(*exc)

    @property
    def busy(self) -> bool:
        """Whether an earlier epoch is shown."""
        return self._then is not None

    def show(self, run: ToldRun, events: Sequence[Event]) -> None:
        """Draw it, if there is news or the last picture has become old."""
        if run is not self._run:
            self._log, self._then = EventLog(), None  # it began afresh
        super().show(run, events)
        self._log.add(events)
        self._news = self._news or bool(events)
        if time.monotonic() - self._drawn >= (PAUSE_SECONDS if self._news else REDRAW_SECONDS):
            self._draw()

    def wait(self, seconds: float) -> bool:
        """Let so much time pass, or do what a key says."""
        for key in self._keys.within(seconds):
            if key == "q":
                return False
            self._go(key)
        return True

    def _go(self, key: str) -> None:
        """Show another epoch, of those that there are."""
        assert self._run is not None
        epochs = [item.epoch for item in self._run.epochs]
        if not epochs:
            return
        last = len(epochs) - 1
        place = last + 1 if self._then is None else min(bisect_left(epochs, self._then[0]), last)
        place = {"home": 0, "end": last + 1}.get(key, place + STEPS.get(key, 0))
        if place > last:
            self._then = None
        else:
            then = ToldRun(self._run.folder)
            then.tell(until_epoch(self._log.events, epochs[max(0, place)]), alive=True)
            self._then = epochs[max(0, place)], then
        self._draw()

    def _draw(self) -> None:
        assert self._run is not None
        frame = self._frame(self._run)
        if self._then is not None:
            epoch, then = self._then
            frame = WatchFrame(then, then.updated_at or datetime.now(UTC), f"after epoch {epoch + 1}")
        self._live.update(Group(frame, Text(KEYS, style="dim", no_wrap=True)), refresh=True)
        self._drawn, self._news = time.monotonic(), False
