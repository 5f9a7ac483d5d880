"""What kernels may be made of: all that ships, and nothing that reads, writes, prints or calls out.

Whole archives that mean harm are offered in tests/integration/test_import_hostile.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor, nn

from esper.karn.catalogue import fitting, load_catalogue
from esper.messages import Slot
from esper.tezzeret.allowed import ALLOWED, foreign_parts
from esper.tezzeret.builder import build
from esper.tezzeret.torchscript import TorchScriptTarget

CATALOGUE = load_catalogue([Path(__file__).parents[2] / "blueprints"]).blueprints
SLOTS = [Slot("features", 16, 32), Slot("tokens", 64, 64), Slot("channels", 16, 32, 2)]
TARGET = TorchScriptTarget()


@pytest.mark.parametrize("slot", SLOTS, ids=str)
def test_all_that_ships_is_allowed(slot: Slot) -> None:
    for blueprint in fitting(CATALOGUE, slot):
        program = TARGET.load(TARGET.save(TARGET.compile(build(blueprint, slot))))
        assert foreign_parts(program) == []


def test_what_touches_the_world_is_not_on_the_list() -> None:
    for name in ("save", "from_file", "warn", "wait", "__delitem__", "set_", "rand", "empty", "open"):
        assert f"aten::{name}" not in ALLOWED
    for name in ("Print", "PythonOp", "fork", "CallMethod", "CallFunction", "CreateObject", "SetAttr"):
        assert f"prim::{name}" not in ALLOWED


def test_an_object_is_found_that_does_nothing_when_loaded() -> None:
    class Eager(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    assert foreign_parts(Eager()) == ["a Eager, which is no script module"]
