"""Typed changes of one blueprint: each takes shapes into account, and what comes out fits its slot.

An edit changes a draft in one place, picked by chance, and says in words what it did, or None where the graph
has no such place. Not every result of an edit is a blueprint (a size may not divide by its groups, say): it
is read and planned like one from a stranger, and where it is refused another edit is tried. Mutation by typed
edits of an architecture: Real et al. 2019, Regularized Evolution, arXiv:1802.01548; residual and branching
edits as in Elsken et al. 2019, LEMONADE, arXiv:1804.09081, section 4.1.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

from esper.blueprint import INPUT, Blueprint, Shape
from esper.karn.bounds import Bounds
from esper.karn.draft import ACTIVATIONS, CONVOLUTIONS, MAPS, NORMS, Draft
from esper.messages import Layout, Slot

TRIES = 40
"""Edits that are tried before a mutation is given up."""
RATIOS = ("/16", "/8", "/4", "/2", "*3/4", "", "*3/2", "*2", "*3", "*4")
"""Of the larger of the slot's two sizes, for a new inner width."""
_CONVOLUTION: dict[Layout, str] = {"tokens": "conv1d", "channels": "conv2d"}
_NORMS: dict[Layout, tuple[str, ...]] = {
    "features": ("layer_norm", "rms_norm"),
    "tokens": ("layer_norm", "rms_norm"),
    "channels": ("layer_norm", "rms_norm", "group_norm", "batch_norm"),
}
Edit = Callable[[Draft, Random], str | None]


def mutate(blueprint: Blueprint, slot: Slot, rng: Random, bounds: Bounds) -> tuple[Blueprint, str] | None:
    """``blueprint`` with one change, and what it was; None if ``TRIES`` edits gave nothing that is allowed.

    The result fits ``slot``, as ``blueprint`` must, is within ``bounds`` and has another graph.
    """
    for _ in range(TRIES):
        draft = Draft.of(blueprint, slot)
        (edit,) = rng.choices(list(EDITS), list(EDITS.values()))
        told = edit(draft, rng)
        if told is None:
            continue
        title = f"{blueprint.name}: {told}"
        made = draft.finished(name="invented", title=title, paper=_after(blueprint.paper))
        if made and made.graph_id != blueprint.graph_id and bounds.allow(made, slot):
            return named(made, blueprint), told
    return None


def named(made: Blueprint, parent: Blueprint) -> Blueprint:
    """``made`` under a name of its own: that of its first ancestor, and digits of its graph."""
    family = re.sub(r"_[0-9a-f]{8}$", "", parent.name)[:23]
    return made.model_copy(update={"name": f"{family}_{made.graph_id[6:14]}"})


def _after(paper: str) -> str:
    return paper if paper.startswith("after ") or not paper else f"after {paper}"


def insert(draft: Draft, rng: Random) -> str | None:
    """An activation, norm, factor, linear map or depthwise convolution on an edge."""
    user, index, source = rng.choice(list(draft.edges()))
    op = rng.choice([*sorted(ACTIVATIONS), *_NORMS[draft.slot.layout], "scale", "linear", *_spatial(draft)])
    width = draft.width(source)
    if op in CONVOLUTIONS:
        new = draft.add(op, source, out=width, groups=width, kernel=rng.choice((3, 5, 7)))
    else:
        new = draft.add(op, source, **({"out": width} if op == "linear" else {}))
    draft.nodes[user].inputs[index] = new
    return f"{op} put after {source}"


def remove(draft: Draft, rng: Random) -> str | None:
    """A node whose value can be left out because one of its inputs has the same shape."""
    places = [
        (name, source) for name, _, source in draft.edges() if draft.shapes[name] == draft.shapes[source]
    ]
    if not places:
        return None
    name, source = rng.choice(places)
    if source == INPUT and draft.output == name:
        return None
    draft.put_after(name, source)
    return f"{name} left out"


def replace_op(draft: Draft, rng: Random) -> str | None:
    """Another activation, norm, kind of map or way to join, in the place of one."""
    name = rng.choice(list(draft.nodes))
    node = draft.nodes[name]
    old = node.op
    if old in ACTIVATIONS:
        node.op, node.params = rng.choice(sorted(ACTIVATIONS - {old})), {}
    elif old in NORMS:
        others = [one for one in _NORMS[draft.slot.layout] if one != old]
        node.op, node.params = rng.choice(others), {}
    elif old in ("add", "mul"):
        node.op = "mul" if old == "add" else "add"
    elif old == "linear" and (spatial := _spatial(draft)):
        node.op = spatial[0]
        node.params["kernel"] = rng.choice((3, 5))
    elif old in CONVOLUTIONS and node.params.get("stride", 1) == 1:
        node.op = "linear"
        node.params = {key: node.params[key] for key in ("out", "bias", "gain")}
    else:
        return None
    return f"{name} made {node.op}"


def resize(draft: Draft, rng: Random) -> str | None:
    """Another width for a named size, or for a map whose width is free."""
    free = [name for name, node in draft.nodes.items() if node.op in MAPS and name != draft.output]
    names = [*draft.sizes, *free]
    if not names:
        return None
    name = rng.choice(names)
    size = _width(draft, rng)
    if name in draft.sizes:
        draft.sizes[name] = size
    else:
        draft.nodes[name].params["out"] = size
    return f"{name} made {size}"


def retune(draft: Draft, rng: Random) -> str | None:
    """Another kernel, dilation, number of groups or heads, or frequency."""
    choices: dict[str, tuple[int | float | str, ...]] = {
        "kernel": (1, 3, 5, 7, 9),
        "dilation": (1, 2, 4),
        "heads": (1, 2, 4),
        "frequency": (0.5, 1.0, 2.0, 4.0),
        "groups": (1, 2, 4, 8),
    }
    places = [(name, key) for name, node in draft.nodes.items() for key in choices if key in node.params]
    if not places:
        return None
    name, key = rng.choice(places)
    value = rng.choice(choices[key])
    if key == "groups" and draft.nodes[name].op in CONVOLUTIONS and rng.random() < 0.5:
        value = draft.width(draft.nodes[name].inputs[0])  # depthwise
    draft.nodes[name].params[key] = value
    return f"{key} of {name} made {value}"


def add_residual(draft: Draft, rng: Random) -> str | None:
    """A straight path around part of the graph, through a linear map where the widths differ."""
    name = rng.choice(list(draft.nodes))
    source = _earlier(draft, name, rng)
    if source is None:
        return None
    straight = source
    if name == draft.output or draft.shapes[source] != draft.shapes[name]:
        gain = 0.1 if name == draft.output else 1.0
        straight = draft.add("linear", source, out=draft.width(name), bias=False, gain=gain)
    draft.put_after(name, draft.add("add", name, straight))
    return f"{source} added to {name}"


def add_gate(draft: Draft, rng: Random) -> str | None:
    """A factor for every feature of a node, from an earlier value or the mean of one over positions."""
    name = rng.choice(list(draft.nodes))
    source = _earlier(draft, name, rng)
    if source is None:
        return None
    seen = source
    if draft.slot.layout != "features" and not draft.shapes[source].pooled and rng.random() < 0.5:
        seen = draft.add("global_pool", source)
    bend = rng.choice(("sigmoid", "silu", "tanh", None))
    gate = draft.add("linear", seen, out=draft.width(name))
    draft.put_after(name, draft.add("mul", name, draft.add(bend, gate) if bend else gate))
    return f"{name} gated by {source}{f' through {bend}' if bend else ''}"


def add_branch(draft: Draft, rng: Random) -> str | None:
    """A second map beside one, with an activation of its own, joined by a sum, a product or side by side."""
    maps = [name for name, node in draft.nodes.items() if node.op in MAPS]
    if not maps:
        return None
    name = rng.choice(maps)
    bend, join = rng.choice(sorted(ACTIVATIONS)), rng.choice(("add", "mul", "concat"))
    node = draft.nodes[name]
    twin = draft.add(node.op, *node.inputs, **node.params)
    draft.put_after(name, draft.add(join, name, draft.add(bend, twin)))
    return f"a branch with {bend} beside {name}, joined by {join}"


def deepen(draft: Draft, rng: Random) -> str | None:
    """A map to a width of its own and an activation on the way into a map."""
    maps = [name for name, node in draft.nodes.items() if node.op == "linear"]
    if not maps:
        return None
    name = rng.choice(maps)
    size, bend = _width(draft, rng), rng.choice(sorted(ACTIVATIONS))
    draft.nodes[name].inputs = [draft.add(bend, draft.add("linear", *draft.nodes[name].inputs, out=size))]
    return f"a layer of {size} with {bend} before {name}"


def split(draft: Draft, rng: Random) -> str | None:
    """Half of the features of an edge through an op of their own, the other half as they are."""
    user, index, source = rng.choice(list(draft.edges()))
    if draft.shapes[source].features < 2:
        return None
    whole = draft.width(source)
    half = f"ceil(({whole})/2)"
    op = rng.choice([*sorted(ACTIVATIONS), *_spatial(draft)])
    first = draft.add("slice", source, size=half)
    params = {"out": half, "groups": half} if op in CONVOLUTIONS else {}
    rest = draft.add("slice", source, start=half, size=f"{whole}-{half}")
    draft.nodes[user].inputs[index] = draft.add("concat", draft.add(op, first, **params), rest)
    return f"half of {source} through {op}"


EDITS: dict[Edit, int] = {
    insert: 2,
    remove: 4,
    replace_op: 3,
    resize: 3,
    retune: 1,
    add_residual: 1,
    add_gate: 1,
    add_branch: 1,
    deepen: 1,
    split: 1,
}
"""Each edit, and how often it is tried beside the others: what takes away is weighed against what adds."""


def _spatial(draft: Draft) -> list[str]:
    word = _CONVOLUTION.get(draft.slot.layout)
    return [word] if word else []


def _width(draft: Draft, rng: Random) -> str:
    """An inner width, as a multiple of what the groups and heads of the graph divide."""
    multiple = max(
        (value for node in draft.nodes.values() for key in ("groups", "heads")
         if isinstance(value := node.params.get(key), int)), default=1)  # fmt: skip
    ratio = rng.choice(RATIOS)
    if multiple > 1:
        return f"{multiple}*ceil(max(in,out){ratio}/{multiple})"
    return f"ceil(max(in,out){ratio})" if ratio else "max(in,out)"


def _earlier(draft: Draft, name: str, rng: Random) -> str | None:
    """A value of the same space as ``name`` that does not depend on it."""

    def space(shape: Shape) -> tuple[int, bool]:
        return shape.stride, shape.pooled

    after = draft.below(name)
    places = [
        one
        for one in draft.shapes
        if one not in after and space(draft.shapes[one]) == space(draft.shapes[name])
    ]
    return rng.choice(places) if places else None
