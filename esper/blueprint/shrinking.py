"""A smaller blueprint, where the blueprint says which of its sizes may shrink."""

from __future__ import annotations

from esper.blueprint.model import Blueprint
from esper.blueprint.plan import fits, plan
from esper.blueprint.reading import parse_blueprint
from esper.messages import Slot


def smaller(blueprint: Blueprint, slot: Slot) -> Blueprint | None:
    """``blueprint``, which fits ``slot``, with the sizes in its ``least`` halved there, none below its bound.

    What does not fit, such as a width that groups do not divide, is halved on. None where there is nothing
    smaller. Sizes become numbers, so the result is a blueprint for this slot, with an id of its own.
    """
    sizes = {name: plan(blueprint, slot).sizes[name] for name in blueprint.least}
    while True:
        halved = {name: min(size, max(blueprint.least[name], size // 2)) for name, size in sizes.items()}
        if halved == sizes:
            return None
        sizes = halved
        data = blueprint.model_dump(mode="json")
        made = parse_blueprint(data | {"sizes": data["sizes"] | sizes})
        if fits(made, slot):
            return made
