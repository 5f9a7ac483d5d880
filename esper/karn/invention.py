"""What Karn is told, and what it answers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from esper.blueprint import Blueprint
from esper.messages import FieldReport, Slot

Origin = Literal["catalogue", "mutation", "crossover"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a kernel is wanted: the slot and the kind of the layer that has it ("" if any)."""

    slot: Slot
    layer_kind: str = ""


@dataclass(frozen=True, slots=True)
class Past:
    """All that an invention depends on besides the seed.

    ``reports`` are the finished trials, oldest first. ``blueprints`` are those that may be parents, and those
    that the reports are about: what ships and what was invented; a report about any other teaches nothing.
    ``known`` are (graph id, slot) of all that was compiled or failed to: none of it is proposed again.
    """

    reports: Sequence[FieldReport] = ()
    blueprints: Sequence[Blueprint] = ()
    known: Collection[tuple[str, Slot]] = ()


@dataclass(frozen=True, slots=True)
class Invention:
    """A blueprint worth compiling for ``place``, what it was made of, and why.

    ``parents`` are ids of blueprints: none of one from the catalogue, one of a mutation, two of a crossover.
    ``predicted_impact`` is a gain in nats as ``FieldReport.gain``, ``uncertainty`` the standard deviation of
    the prediction; both None where there are too few reports to predict from, and ``reason`` says so.
    """

    blueprint: Blueprint
    place: Place
    origin: Origin
    parents: tuple[str, ...]
    reason: str
    predicted_impact: float | None = None
    uncertainty: float | None = None


class Inventor(Protocol):
    """Pure: the same past, places, count and seed give the same inventions."""

    def propose(self, past: Past, places: Sequence[Place], count: int) -> list[Invention]:
        """At most ``count`` inventions, the most promising first, no two of one graph for one slot."""
        ...
