"""Every mistake in blueprint files, not the first alone, and what is odd though it is allowed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from esper.blueprint.checks import (
    Parameters,
    Problem,
    arity_problems,
    below,
    graph_problems,
    least_problems,
    names_in,
    node_problems,
    normalise,
    normalise_sizes,
    output_problems,
    size_problems,
    size_uses,
    use_problems,
)
from esper.blueprint.documents import DocumentError, KeyPath, Lines
from esper.blueprint.migration import MigrationError, migrate
from esper.blueprint.model import Blueprint
from esper.blueprint.ops import LAYOUTS, OPS
from esper.blueprint.plan import misfit
from esper.blueprint.reading import Finding, examine, finding, read_file
from esper.messages import Slot

MOST = 50
"""Mistakes that are told of one document."""
USUAL = tuple(
    Slot(layout, given, made, stride)
    for layout in LAYOUTS
    for given, made, stride in ((8, 8, 1), (16, 32, 1), (32, 16, 1), (16, 16, 2), (16, 32, 2))
    if layout == "channels" or stride == 1
)
"""What a blueprint is tried for where no slot is named."""


@dataclass
class Linter:
    """Reads files one after the other, and remembers names and graphs across them.

    A blueprint must fit those of ``slots`` that are of its layouts. ``blueprints`` are those without errors.
    An error is what loading refuses, or what a catalogue or a named slot would; all else is a warning.
    """

    slots: Sequence[Slot] = ()
    blueprints: list[Blueprint] = field(default_factory=list)
    _graphs: dict[tuple[str, tuple[str, ...]], Blueprint] = field(default_factory=dict)

    def read(self, path: Path) -> list[Finding]:
        """All that is to be said of one file, in the order of its lines."""
        try:
            documents = read_file(path)
        except DocumentError as refused:
            return [Finding.of_document(refused, str(path))]
        found = chain.from_iterable(self._document(data, lines, str(path)) for data, lines in documents)
        return sorted(found, key=lambda one: one.line or 0)

    def _document(self, data: Any, lines: Lines, file: str) -> list[Finding]:
        blueprint, refusals = examine(data, lines, file)
        if blueprint is None:
            mistakes = chain(refusals, _structural(data, lines, file))
            found = list(dict.fromkeys(islice(mistakes, MOST + 1)))
            return found if len(found) <= MOST else [*found[:MOST], Finding(file, None, "", "", "and more")]

        def placed(problem: Problem) -> Finding:
            return finding(problem.at, problem.message, problem.hint, migrate(data), lines, file)

        errors = [placed(problem) for problem in self._errors(blueprint)]
        warnings = [replace(placed(problem), severity="warning") for problem in self._warnings(blueprint)]
        if not errors:
            self.blueprints.append(blueprint)
            self._graphs.setdefault((blueprint.graph_id, blueprint.layouts), blueprint)
        return errors + warnings

    def _errors(self, blueprint: Blueprint) -> Iterator[Problem]:
        for other in self.blueprints:
            if other.name == blueprint.name and other != blueprint:
                yield Problem(
                    f"another blueprint has that name: {other.where()}", ("name",), "rename one of them"
                )
        yield from _misfits(blueprint, self.slots)

    def _warnings(self, blueprint: Blueprint) -> Iterator[Problem]:
        if twin := self._graphs.get((blueprint.graph_id, blueprint.layouts)):
            yield Problem(f"the same graph as {twin.where()}", (), "keep one of them")
        if lacking := [word for word in ("title", "when", "paper") if not getattr(blueprint, word)]:
            told = f"it has no {' and no '.join(lacking)}, which the library shows with its kernels"
            yield Problem(told, (), f"write {', '.join(f'{word}: ...' for word in lacking)}")
        for name in _unused_sizes(blueprint):
            yield Problem(f"size {name!r} is never used", ("sizes", name), "remove it")
        if not self.slots:
            tried = [slot for slot in USUAL if _accepts(slot, blueprint)]
            misfits = list(_misfits(blueprint, tried))
            if len(misfits) == len(tried):
                yield replace(misfits[0], message=f"it fits none of the usual slots: {misfits[0].message}")


def _accepts(slot: Slot, blueprint: Blueprint) -> bool:
    return any(slot.accepts(layout) for layout in blueprint.layouts)


def _misfits(blueprint: Blueprint, slots: Iterable[Slot]) -> Iterator[Problem]:
    """Why ``blueprint`` cannot be built, for each of ``slots`` of its layouts where it cannot."""
    for slot in slots:
        if _accepts(slot, blueprint) and (found := misfit(blueprint, slot)):
            at: KeyPath = ("nodes", found.node) if found.node else ()
            yield Problem(found.message, at, found.hint)


def _unused_sizes(blueprint: Blueprint) -> list[str]:
    """Sizes that no node needs, not even through another size."""
    used = {name for node in blueprint.nodes for value in node.params.values() if isinstance(value, str)
            for name in names_in(value)}  # fmt: skip
    for name in reversed(blueprint.size_order):
        if name in used:
            used |= size_uses(blueprint.sizes)[name]
    return [name for name in blueprint.sizes if name not in used]


@dataclass(frozen=True, slots=True)
class _Sketch:
    """What can be made out of a node that may be half right; ``whole`` if all inputs could."""

    id: str
    op: str
    inputs: tuple[str, ...]
    params: Parameters
    whole: bool


def _structural(data: Any, lines: Lines, file: str) -> Iterator[Finding]:
    """What the validation of a document would have said next, had its single fields been right."""
    if not isinstance(data, Mapping):
        return
    try:
        data = migrate(data)
    except MigrationError:
        return
    for problem in _problems(data):
        yield finding(problem.at, problem.message, problem.hint, data, lines, file)


def _problems(data: Mapping[str, Any]) -> Iterator[Problem]:
    sizes: dict[str, int | str] = {}
    given = data.get("sizes")
    written = given if isinstance(given, dict) else {}
    yield from below(("sizes",), normalise_sizes(_scalars(written), sizes))
    items = data.get("nodes")
    items = items if isinstance(items, list) else []
    sketches: dict[int, _Sketch] = {}
    for index, item in enumerate(items):
        if isinstance(item, dict) and isinstance(item.get("id"), str):
            sketches[index] = sketch = _sketch(item)
            yield from below(("nodes", index), _field_problems(sketch, item))
    # Where a node cannot be made out at all, what refers to it would look wrong too.
    if len(sketches) == len(items):
        yield from _graph(list(sketches.values()), data.get("output"))
    layouts = data.get("layouts")
    declared = [word for word in LAYOUTS if isinstance(layouts, list) and word in layouts]
    for index, sketch in sketches.items():
        if sketch.op in OPS:
            yield from below(("nodes", index), node_problems(sketch, declared, written))
    yield from size_problems(sizes, written)
    least = data.get("least")
    named = [name for name in least if isinstance(name, str)] if isinstance(least, dict) else []
    yield from least_problems(named, written)


def _graph(sketches: Sequence[_Sketch], output: Any) -> Iterator[Problem]:
    wrong = list(graph_problems(sketches))
    yield from below(("nodes",), wrong)
    if isinstance(output, str) and sketches:
        wrong += (lost := list(output_problems(sketches, output)))
        yield from lost
        if not wrong and all(sketch.whole for sketch in sketches):
            yield from use_problems(sketches, output)


def _field_problems(sketch: _Sketch, item: Mapping[str, Any]) -> Iterator[Problem]:
    """The inputs and parameters of one node, where its op is known; fills in ``sketch.params``."""
    op = OPS.get(sketch.op)
    if op is not None:
        if sketch.whole:
            yield from below(("inputs",), arity_problems(op, sketch.inputs))
        params = item.get("params", {})
        if isinstance(params, dict):
            yield from below(("params",), normalise(op, _scalars(params), sketch.params))


def _sketch(item: Mapping[str, Any]) -> _Sketch:
    given, op = item.get("inputs"), item.get("op")
    inputs = [source for source in given if isinstance(source, str)] if isinstance(given, list) else []
    whole = isinstance(given, list) and len(inputs) == len(given) <= 8
    return _Sketch(item["id"], op if isinstance(op, str) else "", tuple(inputs[:8]), {}, whole)


def _scalars(given: Mapping[str, Any]) -> dict[str, Any]:
    """Without values that validation refuses for their type alone."""
    return {name: value for name, value in given.items() if isinstance(value, bool | int | float | str)}
