"""What works per op: each compiled, validated and scored on each layout, and the page that says so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from esper.blueprint import LAYOUTS, OPS, Blueprint, parse_blueprint
from esper.errors import BlueprintError
from esper.messages import Layout, Slot
from esper.tezzeret.pipeline import Pipeline
from esper.tezzeret.torchscript import TorchScriptTarget

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| `(\w+)` \|.*\| (yes|) \| (yes|) \| (yes|) \|$", re.MULTILINE)
PIPELINE = Pipeline(TorchScriptTarget(), device="cpu")
PARAMETERS: dict[str, dict[str, Any]] = {
    "slice": {"start": 1, "size": 2},
    **{name: {"out": 4} for name in ("linear", "conv2d", "conv1d")},
}


def on_the_page() -> dict[str, set[str]]:
    """The layouts on which docs/blueprints.md says that each op works."""
    rows = ROW.findall((ROOT / "docs" / "blueprints.md").read_text())
    return {
        name: {layout for layout, word in zip(LAYOUTS, words, strict=True) if word} for name, *words in rows
    }


def one_op(name: str, layout: Layout) -> Blueprint:
    """Op ``name`` on linear maps of the input, added to another map: so one that pools broadcasts."""
    widths = [4, 1] if name == "attention_pool" else [4] * OPS[name].inputs[0]
    nodes: list[dict[str, Any]] = [
        {"id": f"in{i}", "op": "linear", "inputs": ["x"], "params": {"out": width}}
        for i, width in enumerate(widths)
    ]
    inputs = [node["id"] for node in nodes]
    nodes += [
        {"id": "it", "op": name, "inputs": inputs, "params": PARAMETERS.get(name, {})},
        {"id": "made", "op": "linear", "inputs": ["it"], "params": {"out": "out"}},
        {"id": "kept", "op": "linear", "inputs": ["x"], "params": {"out": "out"}},
        {"id": "sum", "op": "add", "inputs": ["kept", "made"]},
    ]
    data = {"version": 1, "name": "one", "layouts": [layout], "nodes": nodes, "output": "sum"}
    return parse_blueprint(data)


def test_the_page_has_every_op() -> None:
    assert on_the_page().keys() == OPS.keys()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPS)
def test_an_op_compiles_where_the_page_says_so_and_nowhere_else(name: str, layout: Layout) -> None:
    if layout not in on_the_page()[name]:
        with pytest.raises(BlueprintError, match=f"{name} does not work on {layout}"):
            one_op(name, layout)
        return
    artefact = PIPELINE.compile(one_op(name, layout), Slot(layout, 5, 3))
    assert "validated" in artefact.metadata.tags
    assert artefact.metadata.target == "torchscript"
