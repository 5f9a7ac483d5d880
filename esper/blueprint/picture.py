"""A blueprint as an SVG picture, for light and dark pages."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from xml.sax.saxutils import escape

from esper.blueprint.checks import INPUT
from esper.blueprint.drawing import flow, parameters, walk
from esper.blueprint.layers import place
from esper.blueprint.model import Blueprint
from esper.blueprint.plan import Plan

_CHARACTER = 7.25
"""Pixels of one character of the 12-pixel monospaced type."""
_LINE, _PAD, _GAP, _ROW_GAP, _MARGIN = 16, 9, 26, 40, 24
_STYLE = """
.page { fill: #ffffff } .box { fill: #f4f6f9; stroke: #8a94a6; stroke-width: 1.2 }
.end { fill: #e3effd; stroke: #2f6fbe } .edge { fill: none; stroke: #66707f; stroke-width: 1.4 }
.head { fill: #66707f } text { font: 12px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace }
text { fill: #39414f } .id { fill: #10141a; font-weight: bold } .op { fill: #1f5fae }
.title { font-size: 14px }
@media (prefers-color-scheme: dark) {
.page { fill: #14171c } .box { fill: #20252d; stroke: #5f6b7d } .end { fill: #1b314d; stroke: #6aa5ee }
.edge { stroke: #97a2b3 } .head { fill: #97a2b3 } text { fill: #b9c2cf } .id { fill: #f2f5f9 }
.op { fill: #85b8f5 }
}
"""


def picture(blueprint: Blueprint, plan: Plan | None = None) -> str:
    """The graph from ``x`` down to the output; edges enter a node from left to right in their order.

    With a ``plan``, each node also tells what leaves it there.
    """
    labels = _labels(blueprint, plan)
    inputs = {INPUT: (), **{node.id: node.inputs for node in walk(blueprint)}}
    widths = {name: _CHARACTER * max(map(len, lines)) + 2 * _PAD for name, lines in labels.items()}
    placed = place(inputs, widths, _GAP)
    points = [*placed.nodes.values(), *(point for path in placed.edges.values() for point in path)]
    left = min(point.x - point.width / 2 for point in points) - _MARGIN
    heights = {name: _LINE * len(lines) + 2 * _PAD - 4 for name, lines in labels.items()}
    tops = _tops({name: point.layer for name, point in placed.nodes.items()}, heights)
    caption = [blueprint.title or blueprint.name, *_sizes(blueprint, plan)]
    room = _CHARACTER * 1.17 * max(map(len, caption)) + 2 * _MARGIN
    width = max(max(point.x + point.width / 2 for point in points) - left + _MARGIN, room)
    bottom = max(tops[point.layer] + heights[name] for name, point in placed.nodes.items())
    shift = (width - (max(point.x + point.width / 2 for point in points) - left + _MARGIN)) / 2 - left

    parts = []
    for (target, index), path in placed.edges.items():
        end = placed.nodes[target]
        port = end.width * ((index + 1) / (len(inputs[target]) + 1) - 0.5)
        source = next(name for name in inputs[target] if placed.nodes[name] is path[0])
        start = path[0].x + shift, tops[path[0].layer] + heights[source]
        bends = [
            (point.x + shift, y)
            for point in path[1:-1]
            for y in (tops[point.layer], tops[point.layer + 1] - _ROW_GAP)
        ]
        parts.append(_edge([start, *bends, (end.x + port + shift, tops[end.layer] - 5.0)]))
    for name, point in placed.nodes.items():
        box = point.x - point.width / 2 + shift, tops[point.layer], point.width, heights[name]
        parts += _box(name, labels[name], box, name in (INPUT, blueprint.output))
    for index, line in enumerate(caption):
        kind = ' class="id title"' if index == 0 else ""
        at = bottom + 30 + _LINE * 1.2 * index
        parts.append(f'<text x="{_MARGIN}" y="{at:.0f}"{kind}>{escape(line)}</text>')
    height = bottom + 30 + _LINE * 1.2 * len(caption) + _MARGIN / 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width:.0f}" height="{height:.0f}"'
        f' viewBox="0 0 {width:.0f} {height:.0f}">\n<title>{escape(caption[0])}</title>\n'
        f'<style>{_STYLE}</style>\n<defs><marker id="head" viewBox="0 0 8 8" refX="3" refY="4"'
        ' markerWidth="7" markerHeight="7" orient="auto"><path class="head" d="M0 0 L8 4 L0 8 z"/></marker>'
        f'</defs>\n<rect class="page" width="100%" height="100%"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _labels(blueprint: Blueprint, plan: Plan | None) -> dict[str, list[str]]:
    """The lines in the box of each node: id, op, parameters that are not as by default, what leaves it."""
    shapes = {} if plan is None else {node.id: node.shape for node in plan.nodes}
    labels = {INPUT: [INPUT] if plan is None else [INPUT, f"{plan.slot.in_features}"]}
    for node in blueprint.nodes:
        told = textwrap.wrap(" ".join(parameters(node)), 26, break_on_hyphens=False)
        leaving = flow(shapes.get(node.id)).strip()
        labels[node.id] = [node.id, node.op, *told, *([leaving] if leaving else [])]
    return labels


def _sizes(blueprint: Blueprint, plan: Plan | None) -> Iterator[str]:
    for name in blueprint.size_order:
        value = "" if plan is None else f" = {plan.sizes[name]}"
        yield f"{name} = {blueprint.sizes[name]}{value}"


def _tops(layers: Mapping[str, int], heights: Mapping[str, int]) -> list[float]:
    """The top of each layer, and of the one after the last."""
    tops = [float(_MARGIN)]
    for layer in range(1 + max(layers.values())):
        tallest = max((heights[name] for name, at in layers.items() if at == layer), default=0)
        tops.append(tops[-1] + tallest + _ROW_GAP)
    return tops


def _edge(points: Sequence[tuple[float, float]]) -> str:
    """A curve that is vertical at each of ``points``."""
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (y0 + y1) / 2
        path += f" C{x0:.1f} {middle:.1f} {x1:.1f} {middle:.1f} {x1:.1f} {y1:.1f}"
    return f'<path class="edge" d="{path}" marker-end="url(#head)"/>'


def _box(name: str, lines: Sequence[str], box: tuple[float, float, float, int], end: bool) -> Iterator[str]:
    left, top, width, height = box
    kind = "box end" if end else "box"
    yield (
        f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height}" rx="6"/>'
    )
    for index, line in enumerate(lines):
        style = ("id", "op")[index] if index < 2 and name != INPUT else "id" if index == 0 else ""
        at = top + _PAD + 10 + _LINE * index
        yield (
            f'<text class="{style}" x="{left + width / 2:.1f}" y="{at:.1f}"'
            f' text-anchor="middle">{escape(line)}</text>'
        )
