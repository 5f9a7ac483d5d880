"""Numbers that stand for a graph in its place, and how new a graph is."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from esper.blueprint import INPUT, LAYOUTS, Blueprint, Node, Plan, plan
from esper.karn.bounds import depth, parameters
from esper.karn.draft import MAPS
from esper.karn.invention import Place
from esper.messages import Slot

Vector = NDArray[np.float64]
ROUNDS = 2
BINS = 256
KIND_BINS = 8
NEIGHBOURS = 5


def words(blueprint: Blueprint) -> Counter[str]:
    """How often each subtree of up to three levels occurs: Weisfeiler-Lehman labels of two rounds.

    Shervashidze et al. 2011, Weisfeiler-Lehman Graph Kernels, JMLR 12, section 3; towards the inputs only,
    whose order counts. Architectures by these features: Ru et al. 2021, NAS-BOWL, arXiv:2006.07556.
    """
    labels = {INPUT: "x", **{node.id: _label(node) for node in blueprint.nodes}}
    inputs: Mapping[str, tuple[str, ...]] = {node.id: node.inputs for node in blueprint.nodes}
    found = Counter(labels.values())
    for _ in range(ROUNDS):
        labels = {
            name: f"{label}({','.join(labels[source] for source in inputs.get(name, ()))})"
            for name, label in labels.items()
        }
        found.update(labels[name] for name in inputs)
    return found


def _label(node: Node) -> str:
    told = [f"{key}{node.params[key]}" for key in ("kernel", "dilation", "frequency") if key in node.params]
    if node.op != "group_norm" and node.params.get("groups", 1) != 1:
        told.append("grouped")
    return ":".join([node.op, *told])


def distance(first: Mapping[str, int], second: Mapping[str, int]) -> float:
    """1 - cosine of two counts of words: 0 for the same, 1 for nothing in common."""
    shared = sum(count * second.get(word, 0) for word, count in first.items())
    return 1 - shared / (_norm(first) * _norm(second))


def novelty(words: Mapping[str, int], known: Sequence[Mapping[str, int]]) -> float:
    """The mean distance to the five nearest of ``known``, 1 where none is known.

    Lehman & Stanley 2011, Abandoning Objectives, Evolutionary Computation 19(2), equation 1.
    """
    nearest = sorted(distance(words, other) for other in known)[:NEIGHBOURS]
    return sum(nearest) / len(nearest) if nearest else 1.0


def _norm(counts: Mapping[str, int]) -> float:
    return math.sqrt(sum(count * count for count in counts.values()))


def kernel_key(blueprint: Blueprint, slot: Slot) -> str:
    """Equal for blueprints that give one kernel for ``slot``.

    Sizes are numbers, and pools that do nothing are left out. So it tells less apart than ``graph_id`` does:
    ``max(in,out)`` and ``in`` are the same in a square slot.
    """
    planned = plan(blueprint, slot)
    nodes = {node.id: node for node in planned.nodes}
    numbers: dict[str, int] = {INPUT: 0}
    code: list[object] = []

    def visit(name: str) -> int:
        if name not in numbers:
            node = nodes[name]
            inputs = [visit(source) for source in node.inputs]
            if node.op == "pool" and node.parameters["stride"] == 1:
                numbers[name] = inputs[0]
            else:
                code.append((node.op, inputs, sorted(node.parameters.items())))
                numbers[name] = len(code)
        return numbers[name]

    visit(blueprint.output)
    return hashlib.sha256(repr(code).encode()).hexdigest()


def graph_features(blueprint: Blueprint) -> Vector:
    """``words`` counted in ``BINS`` numbers, by their hashes (Weinberger et al. 2009, arXiv:0902.2206)."""
    vector = np.zeros(BINS)
    for word, count in words(blueprint).items():
        vector[_bin(word, BINS)] += count
    return vector


def size_features(blueprint: Blueprint, place: Place) -> Vector:
    """Logarithms of parameters and of inner widths over the slot's, and the depth; 1 is a clear change."""
    planned = plan(blueprint, place.slot)
    ratios = _width_ratios(planned)
    return np.array(
        [
            math.log2(1 + parameters(planned)) / 2,
            depth(blueprint) / 4,
            sum(ratios) / len(ratios),
            min(ratios),
            max(ratios),
        ]
    )


def _width_ratios(planned: Plan) -> list[float]:
    usual = max(planned.slot.in_features, planned.slot.out_features)
    inner = [node for node in planned.nodes if node.op in MAPS and node.id != planned.blueprint.output]
    return [math.log2(node.shape.features / usual) for node in inner] or [0.0]


def place_features(place: Place) -> Vector:
    """The layout and the kind of layer, one number each, and logarithms of the slot's sizes."""
    kind = np.zeros(KIND_BINS)
    kind[_bin(place.layer_kind, KIND_BINS)] = 1.0
    slot = place.slot
    sizes = [math.log2(size) / 2 for size in (slot.in_features, slot.out_features, slot.stride)]
    return np.concatenate([[float(slot.layout == one) for one in LAYOUTS], kind, sizes])


def features(blueprint: Blueprint, place: Place) -> Vector:
    """All of the three, those of the graph first."""
    return np.concatenate([graph_features(blueprint), size_features(blueprint, place), place_features(place)])


def _bin(word: str, bins: int) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big") % bins
