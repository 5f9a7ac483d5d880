"""Parts of a picture of a run that ``esper train`` and ``esper watch`` both draw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from esper.messages import SeedState

GLYPHS: Mapping[str, tuple[str, str, str]] = {
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

UNKNOWN = ("?", "?", "red")
"""Of a state that only a later version knows."""


def progress_line(label: str, share: float, left: str, width: int) -> Table:
    """A bar for ``share`` (0 to 1) between what is done and what is left, in words."""
    grid = Table.grid(padding=(0, 1), expand=False)
    grid.add_column(no_wrap=True)
    grid.add_column()
    grid.add_column(no_wrap=True)
    room = width - len(label) - len(left) - 8
    bar = ProgressBar(total=1.0, completed=share, width=max(4, min(40, room)))
    grid.add_row(Text(label, style="bold"), bar, Text(f"{100 * share:3.0f}% {left}"))
    return grid


def as_many_as_fit(parts: Sequence[str], width: int) -> str:
    """The first of ``parts`` in one line: half a number is worse than none."""
    shown = list(parts)
    while shown and len("  ".join(shown)) > width:
        shown.pop()
    return "  ".join(shown)


def layer_lines(seeds: Mapping[str, Sequence[str]], width: int, *, unicode: bool) -> Iterator[Text]:
    """The layers with a glyph a seed, side by side, as many as fit."""
    glyphs = {name: _glyphs(states, unicode) for name, states in seeds.items()}
    longest = max(map(len, glyphs), default=0)
    cell = min(width, longest + 1 + max(map(len, glyphs.values()), default=0) + 3)
    across = max(1, width // max(1, cell))
    names = list(seeds)
    for start in range(0, len(names), across):
        line = Text()
        for name in names[start : start + across]:
            line.append(name[: cell - 4 - len(glyphs[name])].ljust(cell - 4 - len(glyphs[name])))
            line.append(" ").append_text(glyphs[name]).append("   ")
        line.truncate(width)
        yield line


def legend(seeds: Mapping[str, Sequence[str]], width: int, *, unicode: bool, counted: bool) -> Text:
    """What the glyphs of the states that there are mean, and if ``counted`` how many seeds are in each."""
    numbers = Counter(state for states in seeds.values() for state in states)
    present = sorted(numbers, key=lambda state: [*SeedState, state].index(state))
    parts, short = [], []
    for state in present:
        full, plain, style = GLYPHS.get(state, UNKNOWN)
        glyph, name = full if unicode else plain, state.lower().replace("_", " ")
        parts.append(Text(f"{glyph} {numbers[state]} {name}" if counted else f"{glyph} {name}", style))
        short.append(Text(f"{glyph} {numbers[state]}", style))
    line = Text("  ").join(parts)
    if counted and len(line) > width:
        line = Text("  ").join(short)
    line.truncate(width)
    return line


def cut_to(lines: Sequence[Text], room: int, width: int, of: str) -> list[Text]:
    """``lines``, or as many as there is room for and how many there are more."""
    if len(lines) <= room:
        return list(lines)
    shown = list(lines[: max(0, room - 1)])
    left = Text(f"… {len(lines) - len(shown)} more lines of {of}"[:width], style="dim")
    return [*shown, left] if room > 0 else []


def _glyphs(states: Sequence[str], unicode: bool) -> Text:
    text = Text()
    for state in states:
        full, plain, style = GLYPHS.get(state, UNKNOWN)
        text.append(full if unicode else plain, style)
    return text
