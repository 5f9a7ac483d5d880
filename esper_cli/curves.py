"""Curves of numbers over epochs as characters: dots of Braille, or stars where a terminal has no Unicode."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

LABEL = 8
"""Columns for the numbers at the side."""

_BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bit of each dot of a cell, by row and column; added to U+2800."""

LOGARITHMIC_FROM = 5.0
"""Curves whose largest value is that many times their smallest are drawn on a logarithmic scale."""

LARGEST = 1e100
"""Values beyond are left out as infinite ones are: their difference may be no number any more."""


@dataclass(frozen=True, slots=True)
class Series:
    """One curve: its name, the style it is drawn in, and values by epoch."""

    name: str
    style: str
    values: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened in an epoch, drawn on the axis: a glyph, its ASCII form and style."""

    epoch: int
    glyph: str
    plain: str
    style: str


@dataclass(frozen=True, slots=True)
class Curves:
    """``series`` over one axis in ``lines`` lines, the last one drawn on top; epochs count from 0.

    Values that are not finite are left out. The first line names the curves, the last one is the axis with
    ``marks`` on it.
    """

    title: str
    series: Sequence[Series]
    lines: int
    marks: Sequence[Mark] = ()
    show: Callable[[float], str] = "{:.3g}".format

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, unicode = options.max_width, not options.ascii_only
        yield self._heading(width)
        across, rows = width - LABEL - 2, self.lines - 2
        points = {epoch for series in self.series for epoch, v in series.values.items() if _is_drawn(v)}
        if across < 4 or rows < 1 or not points:
            yield Text("no epoch yet"[:width], style="dim")
            return
        epochs = min(points), max(max(points), min(points) + 1)
        scale = _Scale.of(self.series)
        canvas = _Canvas(across, rows, unicode)
        for series in self.series:
            canvas.draw(series, epochs, scale)
        yield from self._rows(canvas, scale, rows, unicode)
        yield self._axis(across, epochs, unicode)

    def _heading(self, width: int) -> Text:
        text = Text(self.title, style="bold")
        for series in self.series:
            text.append("  ").append(series.name, series.style)
        text.truncate(width)
        return text

    def _rows(self, canvas: _Canvas, scale: _Scale, rows: int, unicode: bool) -> Iterator[Text]:
        for row, line in enumerate(canvas.rows()):
            at_end = row in (0, rows - 1)
            label = self.show(scale.low if row else scale.high) if at_end else ""
            edge = ("┤" if at_end else "│") if unicode else "|"
            fitting = label if len(label) <= LABEL else ""  # the beginning of a number is another number
            yield Text.assemble((f"{fitting:>{LABEL}} {edge}", "dim"), line)

    def _axis(self, across: int, epochs: tuple[int, int], unicode: bool) -> Text:
        """The epochs at both ends, and what happened between them."""
        first, last = str(epochs[0] + 1), str(epochs[1] + 1)
        cells: list[tuple[str, str]] = [("─" if unicode else "-", "dim")] * across
        for mark in sorted(self.marks, key=lambda mark: mark.epoch):
            if epochs[0] <= mark.epoch <= epochs[1]:
                share = (mark.epoch - epochs[0]) / (epochs[1] - epochs[0])
                cells[round(share * (across - 1))] = (mark.glyph if unicode else mark.plain, mark.style)
        corner = "└" if unicode else "+"
        end = across - len(last)
        if all(style == "dim" for _, style in cells[max(0, end - 1) :]):
            cells[end:] = [(digit, "dim") for digit in last]
        return Text.assemble((f"{first:>{LABEL}} {corner}", "dim"), *cells)


def _is_drawn(value: float) -> bool:
    return abs(value) < LARGEST  # which is false of NaN, too


@dataclass(frozen=True, slots=True)
class _Scale:
    low: float
    high: float
    logarithmic: bool

    @classmethod
    def of(cls, series: Sequence[Series]) -> _Scale:
        values = [value for one in series for value in one.values.values() if _is_drawn(value)]
        low, high = min(values), max(values)
        return cls(low, high, low > 0 and high > LOGARITHMIC_FROM * low)

    def place(self, values: np.ndarray) -> np.ndarray:
        """Where each of ``values`` is between the lowest (0) and the highest (1)."""
        if self.high == self.low:
            return np.full(len(values), 0.5)
        if self.logarithmic:
            low, high = math.log(self.low), math.log(self.high)
            placed: np.ndarray = (np.log(values) - low) / (high - low)
            return placed
        return (values - self.low) / (self.high - self.low)


class _Canvas:
    """A grid of cells with 2 dots across and 4 down each (1 and 1 without Unicode)."""

    def __init__(self, across: int, rows: int, unicode: bool) -> None:
        self._dots = (2, 4) if unicode else (1, 1)
        self._unicode = unicode
        self._bits = np.zeros((rows, across), dtype=int)
        self._styles = [[""] * across for _ in range(rows)]

    def draw(self, series: Series, epochs: tuple[int, int], scale: _Scale) -> None:
        """Draw one curve; where many epochs share a column, from their lowest value to their highest."""
        known = [(epoch, value) for epoch, value in sorted(series.values.items()) if _is_drawn(value)]
        if not known:
            return
        rows, across = self._bits.shape
        columns, lines = across * self._dots[0], rows * self._dots[1]
        at = np.array([epoch for epoch, _ in known], dtype=float)
        x = (at - epochs[0]) / (epochs[1] - epochs[0]) * (columns - 1)
        y = (1.0 - scale.place(np.array([value for _, value in known]))) * (lines - 1)
        before: float | None = None
        for column in range(math.ceil(x[0] - 0.5), math.floor(x[-1] + 0.5) + 1):
            within = y[(x >= column - 0.5) & (x < column + 0.5)]
            found = within if len(within) else np.interp([column], x, y)
            low, high = float(found.min()), float(found.max())
            if before is not None:
                low, high = min(low, before), max(high, before)
            for line in range(round(low), round(high) + 1):
                self._set(column, line, series.style)
            before = float(found[-1])

    def _set(self, column: int, line: int, style: str) -> None:
        (wide, high), (row, cell) = self._dots, (line // self._dots[1], column // self._dots[0])
        bit = _BRAILLE[line % high][column % wide] if self._unicode else 1
        self._bits[row, cell] |= bit
        self._styles[row][cell] = style

    def rows(self) -> Iterator[Text]:
        """The lines of the picture, from the top."""
        for bits, styles in zip(self._bits, self._styles, strict=True):
            text = Text()
            for bit, style in zip(bits, styles, strict=True):
                filled = chr(0x2800 + int(bit)) if self._unicode else "*"
                text.append(filled if bit else " ", style)
            yield text
