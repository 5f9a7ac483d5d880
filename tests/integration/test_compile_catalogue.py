"""Every blueprint that ships, compiled for the slots that hosts offer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from esper.blueprint import Blueprint
from esper.karn.catalogue import fitting, load_catalogue
from esper.messages import Slot
from esper.tezzeret.pipeline import Pipeline
from esper.tezzeret.torchscript import TorchScriptTarget

torch.set_num_threads(1)
CATALOGUE = load_catalogue([Path(__file__).parents[2] / "blueprints"])
SLOTS = [
    Slot("features", 16, 32),
    Slot("tokens", 7, 3),
    Slot("channels", 2, 4, 2),
    Slot("channels", 5, 3),
    Slot("channels", 1, 2),
]
CASES = [(blueprint, slot) for slot in SLOTS for blueprint in fitting(CATALOGUE.blueprints, slot)]


def test_the_catalogue_is_whole() -> None:
    assert CATALOGUE.errors == []
    assert len(CATALOGUE.blueprints) >= 12
    for blueprint in CATALOGUE.blueprints:
        assert blueprint.title
        assert blueprint.when.endswith(".")
        assert "arXiv:" in blueprint.paper
        assert len(blueprint.tags) >= 2


@pytest.mark.parametrize("slot", SLOTS, ids=str)
def test_every_slot_has_a_choice(slot: Slot) -> None:
    assert len(fitting(CATALOGUE.blueprints, slot)) >= 7


@pytest.mark.parametrize("blueprint", CATALOGUE.blueprints, ids=lambda blueprint: blueprint.name)
def test_a_blueprint_fits_every_slot_of_its_layouts(blueprint: Blueprint) -> None:
    for slot in SLOTS[:-1]:  # one feature cannot be normalised over itself
        if any(slot.accepts(layout) for layout in blueprint.layouts):
            assert fitting([blueprint], slot) == [blueprint]


@pytest.mark.parametrize(("blueprint", "slot"), CASES, ids=lambda value: getattr(value, "name", str(value)))
def test_blueprint_compiles(blueprint: Blueprint, slot: Slot) -> None:
    metadata = Pipeline(TorchScriptTarget()).compile(blueprint, slot).metadata
    assert metadata.slot == slot
    assert set(blueprint.tags) < set(metadata.tags)
