"""Where to put the nodes of a graph that flows downward (Sugiyama et al. 1981): layers, order, positions.

Edges that skip layers get a point in each, so that they find their way between the nodes.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

SWEEPS = 12


@dataclass
class Point:
    """A node, or a bend of a long edge (``width`` 0): its layer and the middle of it, in pixels."""

    layer: int
    width: float
    x: float = 0.0
    above: list[Point] = field(default_factory=list, repr=False)
    below: list[Point] = field(default_factory=list, repr=False)


@dataclass(frozen=True, slots=True)
class Placement:
    """Points of the nodes, and for each edge (target, place among its inputs) the points along it."""

    nodes: Mapping[str, Point]
    edges: Mapping[tuple[str, int], Sequence[Point]]


def place(inputs: Mapping[str, Sequence[str]], widths: Mapping[str, float], gap: float) -> Placement:
    """Positions for the nodes of ``inputs``, whose keys stand in topological order."""
    layers = _layers(inputs)
    nodes = {name: Point(layers[name], widths[name]) for name in inputs}
    rows: list[list[Point]] = [[] for _ in range(1 + max(layers.values()))]
    for point in nodes.values():
        rows[point.layer].append(point)
    edges: dict[tuple[str, int], list[Point]] = {}
    for name, sources in inputs.items():
        for index, source in enumerate(sources):
            path = [nodes[source]]
            for layer in range(layers[source] + 1, layers[name]):
                path.append(Point(layer, 0.0))
                rows[layer].append(path[-1])
            path.append(nodes[name])
            edges[name, index] = path
            for upper, lower in pairwise(path):
                upper.below.append(lower)
                lower.above.append(upper)
    _spread(_ordered(rows), gap)
    return Placement(nodes, edges)


def _layers(inputs: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The length of the longest way to each node; one with more users than inputs moves down to them."""
    layers: dict[str, int] = {}
    users: dict[str, list[str]] = {name: [] for name in inputs}
    for name, sources in inputs.items():
        layers[name] = max((layers[source] + 1 for source in sources), default=0)
        for source in set(sources):
            users[source].append(name)
    for name in reversed(list(inputs)):
        if inputs[name] and len(users[name]) > len(set(inputs[name])):
            layers[name] = min(layers[user] for user in users[name]) - 1
    return layers


def _ordered(rows: list[list[Point]]) -> list[list[Point]]:
    """Rows in the order with the fewest crossings that sweeps over the means of neighbours come to."""
    best, fewest = [list(row) for row in rows], _crossings(rows)
    for sweep in range(SWEEPS):
        downward = sweep % 2 == 0
        for fixed, row in pairwise(rows if downward else rows[::-1]):
            spots = {id(point): spot for spot, point in enumerate(fixed)}
            own = {id(point): spot for spot, point in enumerate(row)}
            row.sort(key=lambda point: _mean_spot(point, downward, spots, own))
        crossings = _crossings(rows)
        if crossings < fewest:
            best, fewest = [list(row) for row in rows], crossings
    return best


def _mean_spot(point: Point, downward: bool, spots: Mapping[int, int], own: Mapping[int, int]) -> float:
    """The mean place of the neighbours of ``point`` in the row that is fixed; its own if it has none."""
    near = point.above if downward else point.below
    return sum(spots[id(other)] for other in near) / len(near) if near else own[id(point)]


def _crossings(rows: Sequence[Sequence[Point]]) -> int:
    """How many pairs of edges between neighbouring rows cross."""
    found = 0
    for upper, lower in pairwise(rows):
        spots = {id(point): spot for spot, point in enumerate(lower)}
        before: list[int] = []
        for above in upper:
            for spot in sorted(spots[id(point)] for point in above.below):
                found += len(before) - bisect_right(before, spot)
                insort(before, spot)
    return found


def _spread(rows: Sequence[Sequence[Point]], gap: float) -> None:
    """Each row as near to its neighbours above, then below, then both, as order and widths allow."""
    for sweep in range(2 * SWEEPS):
        last = sweep >= 2 * SWEEPS - 4
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            wanted = []
            for point in row:
                near = point.above + point.below if last else point.above if sweep % 2 == 0 else point.below
                # Bends follow bends more than nodes, so that a long edge is straight.
                weights = [4.0 if point.width == other.width == 0 else 1.0 for other in near]
                pull = sum(weight * other.x for weight, other in zip(weights, near, strict=True))
                wanted.append(pull / sum(weights) if near else point.x)
            _settle(row, wanted, gap)


def _settle(row: Sequence[Point], wanted: Sequence[float], gap: float) -> None:
    """Positions in order and apart, nearest to ``wanted`` in squares: pool what would overlap."""
    offsets = [0.0]
    for left, right in pairwise(row):
        offsets.append(offsets[-1] + (left.width + right.width) / 2 + gap)
    pools: list[tuple[float, int]] = []
    for spot, offset in zip(wanted, offsets, strict=True):
        total, size = spot - offset, 1
        while pools and pools[-1][0] / pools[-1][1] > total / size:
            more, others = pools.pop()
            total, size = total + more, size + others
        pools.append((total, size))
    starts = [total / size for total, size in pools for _ in range(size)]
    for point, start, offset in zip(row, starts, offsets, strict=True):
        point.x = start + offset
