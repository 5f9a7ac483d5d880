"""A run that is told event by event, from wherever they come, and as it was at the end of any epoch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from esper.nissa.journal import Event, number
from esper.nissa.run_view import RunView


class ToldRun(RunView):
    """A run as far as it was told. Its ``folder`` need not be there: only the name of it is used."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, keep_packets=False)

    def tell(self, events: Iterable[Event], *, alive: bool) -> None:
        """Take in what happened since, in its order, and whether the run's process lives."""
        self._alive = alive
        for event in events:
            self._apply(event)

    def refresh(self) -> RunView:
        """There is nothing to read; returns itself."""
        return self


class EventLog:
    """The events of a run without what a view has no use for: of each epoch the numbers, and what changed.

    An epoch of 500 layers takes a hundred kilobytes in the journal, and a few hundred bytes here.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._states: dict[str, Any] = {}

    def add(self, events: Iterable[Event]) -> None:
        """Append them, in their order."""
        for event in events:
            if event["event"] in ("run_started", "rollback"):
                self._states = {}
            elif event["event"] == "seed":
                # Whatever is said of the layer next is news, even if it is what was said last.
                self._states.pop(str(event.get("layer")), None)
            self.events.append(self._slim(event) if event["event"] == "epoch" else event)

    def _slim(self, event: Event) -> Event:
        try:
            packet = event["packet"]
            states = {name: layer.get("seed_states") for name, layer in packet["layer_metrics"].items()}
        except (KeyError, TypeError, AttributeError):
            return event  # no view understands it either
        changed = {
            name: {"seed_states": now}
            for name, now in states.items()
            if now is not None and self._states.get(name) != now
        }
        self._states.update(states)
        numbers = {name: value for name, value in packet.items() if not isinstance(value, (dict, list))}
        return {**event, "packet": {**numbers, "layer_metrics": changed}}


def until_epoch(events: Sequence[Event], epoch: int) -> Sequence[Event]:
    """The events up to the end of ``epoch`` (from 0) as it was lived last, with all before the next began.

    Raises ValueError when no such epoch was finished.
    """
    ended = [place for place, event in enumerate(events) if _finished_epoch(event) == epoch]
    if not ended:
        raise ValueError(f"epoch {epoch} is not among the events")
    for place in range(ended[-1] + 1, len(events)):
        event = events[place]
        began = event.get("epoch") if event["event"] in ("seed", "fault") else None
        if event["event"] in ("preparing", "run_started", "rollback", "epoch") or (
            isinstance(began, int) and began > epoch
        ):
            return events[:place]
    return events


def _finished_epoch(event: Event) -> int | None:
    try:
        return int(event["packet"]["epoch"]) if event["event"] == "epoch" else None
    except (KeyError, TypeError, ValueError):
        return None


def with_numbers(value: Any) -> Any:
    """``value`` with the strings that stand for numbers that JSON lacks as those numbers."""
    if isinstance(value, dict):
        return {key: with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_numbers(item) for item in value]
    return number(value) if value in ("NaN", "Infinity", "-Infinity") else value
