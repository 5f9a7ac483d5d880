"""A part of one blueprint in the place of a part of another."""

from __future__ import annotations

from random import Random

from esper.blueprint import INPUT, Blueprint
from esper.karn.bounds import Bounds
from esper.karn.draft import Draft, DraftNode, renamed
from esper.karn.mutation import TRIES, named
from esper.messages import Slot


def cross(
    first: Blueprint, second: Blueprint, slot: Slot, rng: Random, bounds: Bounds
) -> tuple[Blueprint, str] | None:
    """``first`` with a part of ``second`` in it, and what was done; None if ``TRIES`` gave nothing allowed.

    Either a value of ``first`` comes from what leads to a value of ``second`` (single-point crossover of
    graphs, Miller & Thomson 2000, Cartesian Genetic Programming), through a linear map where the widths
    differ, or both run side by side and are summed. Both must fit ``slot``; so does the result, which is
    within ``bounds`` and has the graph of neither.
    """
    graphs = {first.graph_id, second.graph_id}
    for _ in range(TRIES):
        draft, other = Draft.of(first, slot), Draft.of(second, slot)
        _take_in(draft, second)
        told = _sum(draft, second) if rng.random() < 0.2 else _graft(draft, other, rng)
        if told is None:
            continue
        paper = first.paper if first.paper.startswith("after ") else f"after {first.paper}"
        title = f"{first.name} and {second.name}: {told}"
        made = draft.finished(name="invented", title=title, paper=paper)
        if made and made.graph_id not in graphs and bounds.allow(made, slot):
            return named(made, first), told
    return None


def _sum(draft: Draft, second: Blueprint) -> str:
    draft.output = draft.add("add", draft.output, _inner(second.output))
    return "summed"


def _graft(draft: Draft, other: Draft, rng: Random) -> str | None:
    """What used a value of the first uses one of the second, whose space is the same."""
    target = rng.choice([name for name in draft.shapes if name != draft.output])
    wanted = draft.shapes[target]
    places = [
        name
        for name, shape in other.shapes.items()
        if name not in (INPUT, other.output)
        and (shape.stride, shape.pooled) == (wanted.stride, wanted.pooled)
    ]
    users = [(user, index) for user, index in draft.users(target) if user in draft.shapes]
    if not places or not users:
        return None
    source = rng.choice(places)
    value = _inner(source)
    if other.shapes[source].features != wanted.features:
        value = draft.add("linear", value, out=draft.width(target))
    user, index = rng.choice(users)
    draft.nodes[user].inputs[index] = value
    return f"{target} comes from {source} of {other.origin.name}"


def _take_in(draft: Draft, second: Blueprint) -> None:
    """The nodes and sizes of ``second`` beside those of ``draft``, under names that it cannot have."""
    sizes = {name: f"{name[:28]}_b" for name in second.sizes}
    for name, size in second.sizes.items():
        draft.sizes[sizes[name]] = renamed(size, sizes)
    for node in second.nodes:
        params = {
            key: renamed(value, sizes) if isinstance(value, str) else value
            for key, value in node.params.items()
        }
        draft.nodes[_inner(node.id)] = DraftNode(node.op, [_inner(one) for one in node.inputs], params)


def _inner(name: str) -> str:
    return name if name == INPUT else f"SECOND_{name}"
