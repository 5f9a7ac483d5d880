"""A list of any length in a terminal: the first part is a table of Rich, the rest is written in its columns.

Rich takes a millisecond a row, and has to see all rows to know how wide a column is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence

from rich.cells import cell_len, chop_cells

from esper_cli.terminal import console, plain, print_lines, table

_GAP = 2
_LEAST = 8
"""Columns that are left for what may be wrapped, however wide the others become."""

Row = Sequence[str]


class LongTable:
    """Prints rows, a part of them at a time; keeps none of them.

    ``right`` and ``whole`` are as in :func:`esper_cli.terminal.table`; only the last column may be wrapped.
    """

    def __init__(
        self, columns: Sequence[str], *, right: Iterable[str] = (), whole: Iterable[str] = ()
    ) -> None:
        self._columns = columns
        self._right, self._whole = set(right), set(whole)
        self._widths: list[int] = []
        """Of all columns but the last."""
        self._in_columns = True
        self._room = console().width

    def print(self, rows: Sequence[Row]) -> None:
        """Print the next rows; columns are as wide as the first of them need, and grow with later ones."""
        if self._widths:
            sys.stdout.writelines(line + "\n" for row in rows for line in self._lines(row))
            return
        first = table(self._columns, right=self._right, whole=self._whole)
        for row in rows:
            first.add_row(*row)
        self._widths = [max(map(_width, column)) for column in zip(self._columns, *rows, strict=True)][:-1]
        out = console()
        self._in_columns = first.__rich_measure__(out, out.options).minimum <= out.width
        print_lines(first)

    def _lines(self, row: Row) -> Iterator[str]:
        cells = [plain(cell) for cell in row]
        if not self._in_columns:
            filled = [f"{name} {cell}" for name, cell in zip(self._columns, cells, strict=True) if cell]
            yield filled[0]
            yield from (f"  {line}" for line in filled[1:])
            return
        start = "".join(self._padded(place, cell) for place, cell in enumerate(cells[:-1]))
        wrapped = _wrapped(cells[-1], max(self._room - _width(start), _LEAST))
        yield start + next(wrapped)
        yield from (" " * _width(start) + line for line in wrapped)

    def _padded(self, place: int, cell: str) -> str:
        width = _width(cell)
        if width > self._widths[place]:
            self._widths[place] = width
        space = " " * (self._widths[place] - width)
        right = self._columns[place] in self._right
        return (space + cell if right else cell + space) + " " * _GAP


def _width(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)


def _wrapped(text: str, room: int) -> Iterator[str]:
    """``text`` in lines of at most ``room`` cells, broken between words where that is possible."""
    line = ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if _width(longer) <= room:
            line = longer
            continue
        if line:
            yield line
        *whole, line = chop_cells(word, room) or [""]
        yield from whole
    yield line
