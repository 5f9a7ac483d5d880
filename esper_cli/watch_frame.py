"""A run as one picture that fills a terminal: curves, layers, adaptations, caches, checkpoints, alerts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, islice

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from esper.nissa.api.run_pages import alerts_of
from esper.nissa.calibration import growth_impact
from esper.nissa.run_records import Adaptation, RunStatus
from esper.nissa.run_view import RunView
from esper_cli.curves import Curves, Mark, Series
from esper_cli.parts import as_many_as_fit, cut_to, layer_lines, legend, progress_line
from esper_cli.report import VERDICT_STYLES, adaptation_cells, grouped
from esper_cli.terminal import count, duration, percent

NARROW = 56
"""Columns below which one curve has the whole width and the other is left out."""

LONGEST_CURVE = 16
"""Lines beyond which a curve says no more."""

PACE_EPOCHS = 10
"""The time that is left comes from the pace of so many of the latest epochs."""

MOST_ADAPTATIONS = 100
"""No terminal shows more."""

STATUS_STYLES = {
    RunStatus.RUNNING: "bold green",
    RunStatus.PAUSED: "bold blue",
    RunStatus.FINISHED: "bold green",
    RunStatus.INTERRUPTED: "bold yellow",
    RunStatus.FAILED: "bold red",
    RunStatus.STOPPED: "bold red",
}
_MARKS = {
    "kept": ("▲", "^", "bold green"),
    "culled": ("✕", "x", "yellow"),
    "failed": ("!", "!", "red"),
    "grown": ("◆", "W", "bold cyan"),
    "grafted": ("△", "o", "cyan"),
}
"""How an adaptation is marked on the axis: by its verdict, or by its status while it has none."""

_LABEL = 8


@dataclass(frozen=True, slots=True)
class WatchFrame:
    """``view`` as of ``now`` in as many lines as there are; ``note`` is said beside the run's name."""

    view: RunView
    now: datetime
    note: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, lines = options.max_width, max(6, (options.height or console.height) - 1)
        unicode = not options.ascii_only
        head: list[RenderableType] = [self._name(width), self._progress(width), self._numbers(width)]
        alerts = self._alerts(width)
        tail = [*self._queue(width), *self._caches(width), *self._checkpoint(width)]
        room = lines - len(head) - len(tail)
        alerts = cut_to(alerts, max(1, room // 6), width, "alerts")
        room -= len(alerts)
        layers = self._layers(width - _LABEL, max(2, room // 4), unicode)
        adaptations = self._adaptations(width, unicode)
        lower = min(len(adaptations), max(2, room // 3))
        curve = min(LONGEST_CURVE, room - len(layers) - lower)
        if curve < 4:
            curve = 0
        latest = adaptations[-max(0, room - len(layers) - curve) or len(adaptations) :]
        yield from head
        if curve:
            yield self._curves(width, curve)
        below = chain(
            _labelled("layers", layers), _labelled("adapted", latest), tail, _labelled("alerts", alerts)
        )
        yield from islice(below, lines - len(head) - curve)

    def _name(self, width: int) -> Text:
        view = self.view
        status = Text(view.status.value, STATUS_STYLES.get(view.status, "bold"))
        what = f"  {view.experiment or 'no experiment'} on {view.task}" if view.task else ""
        name = Text.assemble((view.run_id, "bold"), (what, "dim"))
        aside = Text.assemble((f"{self.note}  " if self.note else "", "cyan"), status)
        name.truncate(max(1, width - len(aside) - 2), overflow="ellipsis")
        gap = max(1, width - len(name) - len(aside))
        line = Text.assemble(name, " " * gap, aside)
        line.truncate(width)
        return line

    def _progress(self, width: int) -> Table:
        view = self.view
        if view.preparing and view.status.goes_on:
            began = view.started_at if view.started_at and not view.epochs else self.now
            return progress_line("preparing", 0.0, f"in {duration(_passed(began, self.now))}", width)
        done = view.last.epoch + 1 if view.last else 0
        share = min(1.0, done / view.total_epochs) if view.total_epochs else 0.0
        left = _seconds_left(view)
        words = f"{duration(left)} left" if left is not None else f"in {duration(view.seconds)}"
        return progress_line(f"epoch {done}/{view.total_epochs}", share, words, width)

    def _numbers(self, width: int) -> Text:
        view, last = self.view, self.view.last
        if last is None:
            what = "kernels are compiled before the first epoch" if view.preparing else "no epoch is done yet"
            return Text(what[:width], style="dim")
        best = max(epoch.accuracy for epoch in view.epochs)
        parts = [
            f"loss {last.loss:.4f}",
            f"held-out {last.held_out_loss:.4f}",
            f"accuracy {percent(last.accuracy)}",
            f"best {percent(best)}",
            f"{count(last.samples_per_second)} samples/s",
        ]
        return Text(as_many_as_fit(parts, width))

    def _curves(self, width: int, lines: int) -> RenderableType:
        epochs = self.view.epochs
        training = Series("training", "dim", {item.epoch: item.loss for item in epochs})
        held_out = Series("held-out", "blue", {item.epoch: item.held_out_loss for item in epochs})
        marks = [mark for item in self.view.adaptations if (mark := _mark(item))]
        marks += _rollback_marks(self.view)
        loss = Curves("loss", (training, held_out), lines, marks)
        if width < NARROW:
            return loss
        accuracy = Series("held-out", "blue", {item.epoch: item.accuracy for item in epochs})
        both = Table.grid(expand=True)
        both.add_column(width=width // 2)
        both.add_column(width=width - width // 2)
        both.add_row(loss, Curves("accuracy", (accuracy,), lines, marks, show=percent))
        return both

    def _layers(self, width: int, room: int, unicode: bool) -> list[Text]:
        """How many seeds are in each state, and the layers; where not all fit, those with kernels first."""
        states = {name: [seed.state for seed in seeds] for name, seeds in self.view.seeds.items()}
        if not states:
            return []
        lines = list(layer_lines(states, width, unicode=unicode))
        if len(lines) >= room:
            busy = {name for name, seeds in self.view.seeds.items() if any(seed.active for seed in seeds)}
            order = sorted(states, key=lambda name: name not in busy)
            lines = list(layer_lines({name: states[name] for name in order}, width, unicode=unicode))
        shown = cut_to(lines, room - 1, width, "layers")
        return [legend(states, width, unicode=unicode, counted=True), *shown]

    def _adaptations(self, width: int, unicode: bool) -> list[Text]:
        """One line each, the latest last; refusals in a row for one reason are one line."""
        losses = {epoch.epoch: epoch.held_out_loss for epoch in self.view.epochs}
        alike = list(grouped(self.view.adaptations))[-MOST_ADAPTATIONS:]
        rows = [_adaptation_cells(items, losses, unicode) for items in alike]
        return _adaptation_lines(rows, width - _LABEL)

    def _queue(self, width: int) -> Iterator[Text]:
        """What is compiled for the run now."""
        queue = self.view.queue
        if queue is None or not queue.waiting + queue.compiling:
            return
        age = queue.oldest_seconds(self.now)
        parts = [str(queue), *([f"the oldest for {duration(age)}"] if queue.oldest else [])]
        yield from _labelled("kernels", [Text(as_many_as_fit(parts, width - _LABEL))])

    def _caches(self, width: int) -> Iterator[Text]:
        parts = []
        for name, tier in sorted(self.view.cache.items(), key=lambda item: not item[1].errors):
            asked = tier.hits + tier.misses
            rate = f"{100 * tier.hits / asked:.0f} % of {count(asked)}" if asked else "not asked"
            errors = f", {count(tier.errors)} errors" if tier.errors else ""
            open_ = ", left alone" if tier.state not in (None, "closed") else ""
            parts.append(f"{name} {rate}{errors}{open_}")
        if parts:
            yield from _labelled("caches", [Text(as_many_as_fit(parts, width - _LABEL))])

    def _checkpoint(self, width: int) -> Iterator[Text]:
        saved = self.view.checkpoint
        if saved is None:
            return
        age = _passed(saved.at, self.now)
        took = f"took {_short(saved.seconds)}, of which training waited {_short(saved.paused)}"
        parts = [f"{duration(age)} ago", took]
        yield from _labelled("saved", [Text(as_many_as_fit(parts, width - _LABEL))])

    def _alerts(self, width: int) -> list[Text]:
        """The newest first: those that are about now before those with a time."""
        lines = []
        for alert in sorted(alerts_of(self.view), key=lambda a: a["at"] or "9", reverse=True):
            at = "" if alert["at"] is None else f"{datetime.fromisoformat(alert['at']):%H:%M} "
            hint = f" ({alert['hint']})" if alert["hint"] else ""
            line = Text(f"{at}{alert['kind']}: {alert['text']}{hint}".replace("\n", " "), style="red")
            line.truncate(width - _LABEL, overflow="ellipsis")
            lines.append(line)
        return lines


def _labelled(label: str, lines: Sequence[Text]) -> Iterator[Text]:
    for place, line in enumerate(lines):
        yield Text.assemble((f"{'' if place else label:<{_LABEL}}", "dim"), line)


def _adaptation_cells(
    alike: Sequence[Adaptation], losses: Mapping[int, float], unicode: bool
) -> tuple[list[Text], list[str]]:
    """When, where and what became of it; and what it did to the held-out split, or why, in parts."""
    first = alike[0]
    epoch, where, verdict, _, _, reason = adaptation_cells(first, "\n")
    if len(alike) > 1:
        epoch = Text("-".join(dict.fromkeys(str(item.epoch + 1) for item in (first, alike[-1]))))
        verdict = Text(f"{len(alike)} refused", VERDICT_STYLES["refused"])
    mark = _mark(first)
    glyph = Text((mark.glyph if unicode else mark.plain) + " ", mark.style) if mark else Text("  ")
    impact = [reason.plain]
    if (trial := first.trial) is not None:
        # What the seed itself brings, on against off: the losses have the rest of training in them.
        gain = f"gain {trial.gain:+.4f} ± {trial.gain_error:.4f}"
        impact = [gain, f"{trial.loss_before:.4f} -> {trial.loss_after:.4f}"]
    elif first.status == "grown" and (found := growth_impact(losses, first.epoch)) is not None:
        span = "epoch" if found.epochs == 1 else f"{found.epochs} epochs"
        impact = [f"held-out loss {-100 * found.after:+.1f} % in {span}"]
    return [epoch, where.split("\n")[0], Text.assemble(glyph, verdict)], impact


def _adaptation_lines(rows: Sequence[tuple[Sequence[Text], Sequence[str]]], width: int) -> list[Text]:
    widths = [max(len(cells[column]) for cells, _ in rows) for column in range(3)] if rows else []
    lines = []
    for (epoch, place, verdict), impact in rows:
        fills = [" " * (wide - len(cell)) for wide, cell in zip(widths, (epoch, place, verdict), strict=True)]
        line = Text.assemble(fills[0], epoch, "  ", place, fills[1], "  ", verdict, fills[2], "  ")
        line.append(as_many_as_fit(impact, width - len(line)) or impact[0])
        line.truncate(width, overflow="ellipsis")
        lines.append(line)
    return lines


def _mark(item: Adaptation) -> Mark | None:
    """How it is marked on the axis; None for one that changed nothing."""
    look = _MARKS.get(item.trial.verdict if item.trial else item.status)
    return Mark(item.epoch, *look) if look else None


def _rollback_marks(view: RunView) -> Iterator[Mark]:
    for rollback in view.rollbacks:
        yield Mark(rollback.to_epoch, "«", "<", "bold red")


def _seconds_left(view: RunView) -> float | None:
    """At the pace of the latest epochs; None when the run does not go on or has no pace yet."""
    latest = view.epochs[-PACE_EPOCHS - 1 :]
    if view.status is not RunStatus.RUNNING or len(latest) < 2 or not view.total_epochs:
        return None
    pace = (latest[-1].at - latest[0].at).total_seconds() / (len(latest) - 1)
    return max(0.0, pace * (view.total_epochs - latest[-1].epoch - 1))


def _passed(since: datetime, now: datetime) -> float:
    return max(0.0, (now - since).total_seconds())


def _short(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "an unknown time"
    return f"{1e3 * seconds:.1f} ms" if seconds < 0.1 else duration(seconds)
