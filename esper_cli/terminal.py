"""What every command prints through: consoles, tables that fit 80 columns, and numbers for people."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import isfinite
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from esper.errors import EsperError
from esper.security.redaction import redact

UNBOUNDED = 10_000
"""Columns when nobody looks: whoever reads a pipe wants whole ids, one record a line."""


_CODES = {code: "?" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
"""What moves a terminal, which no name that somebody chose shall do."""


class PipeConsole(Console):
    """A console whose reader may leave early, as ``| head`` does, and that prints text as it is.

    Names and tags are anybody's: to Rich ``[/b]`` in one would be an error, and ``:heart:`` a picture.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """``text`` as it is, without codes for a terminal."""
        return super().render_str(text.translate(_CODES), **options)

    def on_broken_pipe(self) -> None:
        """Let the error reach the one handler; Rich would exit on its own with code 1."""
        raise BrokenPipeError


def console(*, stderr: bool = False) -> Console:
    """A console for the terminal, or for a pipe: there without colour, wrapping or truncation."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else UNBOUNDED
    return PipeConsole(stderr=stderr, width=width)


def is_wide() -> bool:
    """Whether a line may be as long as it likes: in a pipe, or in a terminal of 140 columns."""
    return console().width >= 140


def table(columns: Sequence[str], *, right: Iterable[str] = (), whole: Iterable[str] = ()) -> Table:
    """An empty table: columns in ``right`` are aligned right, those in ``whole`` never cut or wrapped."""
    made = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False, padding=(0, 1, 0, 0)
    )
    rightward, uncut = set(right), set(whole)
    for column in columns:
        made.add_column(
            column,
            justify="right" if column in rightward else "left",
            no_wrap=column in uncut or column in rightward,
            overflow="fold",
        )
    return made


def print_lines(*lines: RenderableType, stderr: bool = False) -> None:
    """Print text as it is: no markup, no colour guessed from the words, no line broken (paths get copied)."""
    out = console(stderr=stderr)
    for line in lines:
        if isinstance(line, str):
            out.print(line, soft_wrap=True)
        elif isinstance(line, Table) and line.__rich_measure__(out, out.options).minimum > out.width:
            out.print(*_records(line), sep="\n", soft_wrap=True)
        else:
            out.print(line)


def _records(rows: Table) -> Iterator[Text]:
    """The rows of a table that the terminal is too narrow for: a line a cell, so that none is cut."""
    for cells in zip(*(column.cells for column in rows.columns), strict=True):
        named = zip(rows.columns, cells, strict=True)
        filled = [(column.header, cell) for column, cell in named if str(cell)]
        for position, (header, cell) in enumerate(filled):
            text = cell if isinstance(cell, Text) else Text(str(cell).translate(_CODES))
            flat = Text(", ").join(text.split("\n"))
            yield Text.assemble("  " if position else "", f"{header} " if header else "", flat)


def plain(text: str) -> str:
    """``text`` in one line and without codes for a terminal."""
    return text if text.isprintable() else text.translate(_CODES | {ord("\n"): " ", ord("\t"): " "})


def print_json(data: Any) -> None:
    """Print ``data`` as one JSON document on stdout."""
    sys.stdout.write(_json(data) + "\n")


def print_json_list(items: Iterable[Any]) -> None:
    """As :func:`print_json` for a list of ``items``, of which one at a time is in memory."""
    before = "[\n  "
    for item in items:
        sys.stdout.write(before + _json(item, "\n  "))
        before = ",\n  "
    sys.stdout.write("[]\n" if before[0] == "[" else "\n]\n")


def _json(data: Any, line: str = "\n") -> str:
    """As ``json.dumps`` with an indent of two, which leaves the faster encoder unused; keys are text."""
    inner = line + "  "
    if encode := _SCALARS.get(type(data)):
        return encode(data)
    if isinstance(data, dict) and data:
        parts = [f"{inner}{_encode(key)}: {_json(value, inner)}" for key, value in data.items()]
        return "{" + ",".join(parts) + line + "}"
    if isinstance(data, list | tuple) and data:
        return "[" + ",".join(inner + _json(value, inner) for value in data) + line + "]"
    return _encode(data)


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_SCALARS: dict[type, Callable[[Any], str]] = {str: _encode, int: repr, type(None): lambda _: "null"}
_SCALARS[float] = lambda number: repr(number) if isfinite(number) else _encode(number)
"""What is most of a record; to begin anew for each number is most of what the encoder does."""


def count(number: float) -> str:
    """A count in at most five characters or so: 812, 19.8k, 3.1M, 2.4G."""
    for divisor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= divisor:
            return f"{number / divisor:.3g}{unit}"
    return f"{number:.4g}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """``number`` of what is called so: 1 journal, 2 journals; ``many`` where an s does not do."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def duration(seconds: float) -> str:
    """A time for people: 0.4 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def percent(share: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * share:.1f} %"


def error_line(error: EsperError) -> str:
    """``esper: error: MESSAGE. HINT`` in one line, without secrets."""
    message = redact(" ".join(error.message.split())).removesuffix(".")
    if not error.hint:
        return f"esper: error: {message}"
    hint = redact(" ".join(error.hint.split()))
    if not hint.startswith(("esper ", "pip ")):
        hint = hint[0].upper() + hint[1:]
    return f"esper: error: {message}{'' if message.endswith('?') else '.'} {hint}"
