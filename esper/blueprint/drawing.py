"""A blueprint as lines of text: a node a line, from ``x`` down, its edges as rails at the left."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from esper.blueprint.checks import INPUT
from esper.blueprint.model import Blueprint, Node
from esper.blueprint.ops import OPS, Shape
from esper.blueprint.plan import Plan

_BOX = {
    # up, down, left, right
    (1, 1, 0, 0): "│", (0, 0, 1, 1): "─", (1, 1, 1, 1): "┼", (1, 1, 1, 0): "┤", (1, 1, 0, 1): "├",
    (1, 0, 1, 0): "╯", (1, 0, 0, 1): "╰", (0, 1, 1, 0): "╮", (0, 1, 0, 1): "╭",
    (1, 0, 1, 1): "┴", (0, 1, 1, 1): "┬", (0, 0, 0, 0): " ",
}  # fmt: skip
_PLAIN = str.maketrans({**dict.fromkeys("┼┤├╯╰╮╭┴┬", "+"), "│": "|", "─": "-", "○": "o", "●": "*", "◉": "@"})


def draw(
    blueprint: Blueprint, plan: Plan | None = None, *, width: int = 80, unicode: bool = True
) -> list[str]:
    """The lines of ``blueprint``, none longer than ``width``; with what flows along each edge of ``plan``.

    A rail that a line of another node crosses goes on below it; the two meet only where there is a corner.
    """
    nodes = walk(blueprint)
    rails = _Rails(nodes)
    step = 2 if 2 * rails.most < width // 2 else 1
    left = step * rails.most + 1
    column = min(max(len(node.id) for node in nodes), 16)
    shapes = {} if plan is None else {node.id: node.shape for node in plan.nodes}
    lines = [rails.row(0, "○", step).ljust(left) + INPUT]
    for node in nodes:
        mark = "◉" if node.id == blueprint.output else "●"
        text = f"{node.id.ljust(column)}  {describe(node)}{flow(shapes.get(node.id))}"
        wrapped = textwrap.wrap(text, width - left, subsequent_indent="  ", break_on_hyphens=False)
        meeting = rails.enter(node, step)
        lines += [meeting] if meeting else []
        lines.append(rails.row(rails.lane[node.id], mark, step).ljust(left) + wrapped[0])
        lines += [rails.row(None, "", step).ljust(left) + more for more in wrapped[1:]]
    for name in blueprint.size_order:
        lines += textwrap.wrap(f"{name} = {blueprint.sizes[name]}{_number(plan, name)}", width)
    return [line.rstrip() if unicode else line.rstrip().translate(_PLAIN) for line in lines]


def walk(blueprint: Blueprint) -> list[Node]:
    """The nodes, each soon after those that it uses: values wait on as few rails as a simple walk can do."""
    by_id = {node.id: node for node in blueprint.nodes}
    done: dict[str, Node] = {}

    def visit(name: str) -> None:
        if name != INPUT and name not in done:
            for source in by_id[name].inputs:
                visit(source)
            done[name] = by_id[name]

    visit(blueprint.output)
    return list(done.values())


def describe(node: Node) -> str:
    """``op(inputs) parameter=value ...``, without parameters that are what they are by default."""
    return " ".join([f"{node.op}({', '.join(node.inputs)})", *parameters(node)])


def parameters(node: Node) -> Iterator[str]:
    """``parameter=value`` for each that is not as by default."""
    for name, parameter in OPS[node.op].parameters.items():
        if node.params[name] != parameter.default:
            yield f"{name}={str(node.params[name]).lower()}"


def flow(shape: Shape | None) -> str:
    """What leaves a node, with an arrow before it."""
    if shape is None:
        return ""
    space = ", pooled" if shape.pooled else f", 1/{shape.stride} of space" if shape.stride > 1 else ""
    return f" -> {shape.features}{space}"


def _number(plan: Plan | None, name: str) -> str:
    return "" if plan is None else f" = {plan.sizes[name]}"


class _Rails:
    """Which value waits on which lane, from the node that makes it to the last that uses it."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.last: Mapping[str, str] = {source: node.id for node in nodes for source in node.inputs}
        self.lanes: list[str | None] = [INPUT]
        self.lane = {INPUT: 0}
        self.most = _most_lanes(nodes, self.last)

    def row(self, marked: int | None, mark: str, step: int) -> str:
        """The rails as they are, with ``mark`` on lane ``marked``."""
        glyphs = [" " if value is None else "│" for value in self.lanes]
        if marked is not None:
            glyphs[marked] = mark
        return (" " * (step - 1)).join(glyphs)

    def enter(self, node: Node, step: int) -> str:
        """Puts the value of ``node`` on a lane; the line where its inputs meet, "" where one lane goes on."""
        before = [value is not None for value in self.lanes]
        sources = {self.lane[source] for source in node.inputs}
        for lane in sources:
            if self.last[self.lanes[lane] or ""] == node.id:
                self.lanes[lane] = None
        ended = [lane for lane in sources if self.lanes[lane] is None]
        free = [lane for lane, value in enumerate(self.lanes) if value is None]
        own = min(ended) if ended else free[0] if free else len(self.lanes)
        if own == len(self.lanes):
            self.lanes.append(None)
            before.append(False)
        self.lanes[own] = node.id
        self.lane[node.id] = own
        involved = sources | {own}
        first, last = min(involved), max(involved)
        if first == last:
            return ""
        line = ""
        for lane in range(len(self.lanes)):
            across = first <= lane <= last
            if lane in involved or (across and not before[lane]):
                ends = (
                    before[lane],
                    self.lanes[lane] is not None,
                    across and lane > first,
                    across and lane < last,
                )
                line += _BOX[tuple(map(int, ends))]  # type: ignore[index]
            else:
                line += "│" if before[lane] else " "
            line += ("─" if first <= lane < last else " ") * (step - 1)
        return line


def _most_lanes(nodes: Sequence[Node], last: Mapping[str, str]) -> int:
    """The most values that wait at once."""
    waiting, most = {INPUT}, 1
    for node in nodes:
        waiting = {value for value in waiting if last[value] != node.id} | {node.id}
        most = max(most, len(waiting))
    return most
