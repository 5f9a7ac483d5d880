"""What works per op and target: each compiled and validated on each layout, and the pages that say so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from esper.blueprint import LAYOUTS, OPS
from esper.errors import BlueprintError
from esper.messages import Layout
from esper.tezzeret.matrix import PLACES, failure, one_op, page
from esper.tezzeret.targets import TARGETS

torch.set_num_threads(1)

DOCS = Path(__file__).resolve().parents[2] / "docs"
ROW = re.compile(r"^\| `(\w+)` \|.*\| (yes|) \| (yes|) \| (yes|) \|$", re.MULTILINE)
REFUSED = {("fourier", "tokens"), ("fourier", "channels")}
"""Ops that export cannot take: they compute in another dtype than they are given."""


def on_the_page() -> dict[str, set[str]]:
    """The layouts on which docs/blueprints.md says that each op works."""
    rows = ROW.findall((DOCS / "blueprints.md").read_text())
    return {
        name: {layout for layout, word in zip(LAYOUTS, words, strict=True) if word} for name, *words in rows
    }


def test_the_language_has_the_ops_of_the_page_where_it_says_so_and_nowhere_else() -> None:
    assert on_the_page().keys() == OPS.keys()
    assert {(name, layout) for name, layouts in on_the_page().items() for layout in layouts} == set(PLACES)
    for name in OPS:
        for layout in set(LAYOUTS) - on_the_page()[name]:
            with pytest.raises(BlueprintError, match=f"{name} does not work on {layout}"):
                one_op(name, layout)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("name", "layout"), PLACES)
def test_an_op_works_for_each_target(name: str, layout: Layout, target: str) -> None:
    found = failure(name, layout, TARGETS[target], "cpu")
    assert bool(found) == (target == "export" and (name, layout) in REFUSED), found


def test_the_matrix_that_ships_is_that_of_these_outcomes() -> None:
    reason = failure("fourier", "tokens", TARGETS["export"], "cpu")
    outcomes = {
        (name, target, "cpu", layout): reason if target == "export" and (name, layout) in REFUSED else ""
        for target in TARGETS
        for name, layout in PLACES
    }
    assert (DOCS / "op-matrix.md").read_text() == page(outcomes), (
        "python -m esper.tezzeret.matrix > docs/op-matrix.md"
    )
