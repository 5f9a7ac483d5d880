"""What could be tried next in a place: untried blueprints of the catalogue, and children of what is there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from esper.blueprint import Blueprint
from esper.karn.bounds import Bounds
from esper.karn.crossover import cross
from esper.karn.features import kernel_key
from esper.karn.invention import Origin
from esper.karn.mutation import mutate
from esper.messages import Slot

Group = Literal["near", "far", "refined", ""]


@dataclass(frozen=True, slots=True)
class Candidate:
    """As ``Invention``, before it is known whether it is worth anything; ``group`` as ``Generator`` tells."""

    blueprint: Blueprint
    origin: Origin
    parents: tuple[str, ...]
    told: str
    group: Group = ""


@dataclass(frozen=True, slots=True)
class Breeding:
    """How children are made: the share of crossovers, and that of children that get one more mutation.

    A child has 1 + k mutations with k geometric, so that some leap: a single change seldom crosses a valley.
    """

    group: Group = "near"
    crossovers: float = 0.2
    further: float = 0.4
    bounds: Bounds = field(default_factory=Bounds)

    def child(
        self, parents: Sequence[Blueprint], mates: Sequence[Blueprint], slot: Slot, rng: Random
    ) -> Candidate | None:
        """A child of one of ``parents``, perhaps with one of ``mates``; all of them fit ``slot``."""
        parent = rng.choice(parents)
        origin: Origin = "mutation"
        ids: tuple[str, ...] = (parent.blueprint_id,)
        others = [one for one in mates if one is not parent]
        if others and rng.random() < self.crossovers:
            mate = rng.choice(others)
            made = cross(parent, mate, slot, rng, self.bounds)
            origin, ids = "crossover", (*ids, mate.blueprint_id)
        else:
            made = mutate(parent, slot, rng, self.bounds)
        told: list[str] = []
        while made:
            child, change = made
            told.append(change)
            if rng.random() >= self.further:
                return Candidate(child, origin, ids, "; ".join(told), self.group)
            made = mutate(child, slot, rng, self.bounds)
        return None


def children(
    breeding: Breeding,
    parents: tuple[Sequence[Blueprint], Sequence[Blueprint]],
    slot: Slot,
    rng: Random,
    wanted: int,
    known: Collection[str],
) -> list[Candidate]:
    """At most ``wanted`` children for ``slot``, no two of one kernel, nor one whose kernel is ``known``.

    ``parents`` are those that are changed and those that they are crossed with; ``known`` are
    ``kernel_key``s for ``slot``.
    """
    first, mates = parents
    found: dict[str, Candidate] = {}
    for _ in range(3 * wanted):
        if len(found) == wanted:
            break
        child = breeding.child(first, mates, slot, rng)
        if child and (key := kernel_key(child.blueprint, slot)) not in known:
            found.setdefault(key, child)
    return list(found.values())
