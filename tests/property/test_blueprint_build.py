"""Random valid graphs build, have the shape that was planned, script, and train in every parameter."""

from __future__ import annotations

import torch
from blueprint_graphs import blueprints
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.blueprint import Blueprint, fits, from_json, plan
from esper.messages import Slot
from esper.tezzeret.builder import build
from esper.tezzeret.examples import example
from esper.tezzeret.torchscript import TorchScriptTarget

torch.set_num_threads(1)


@settings(max_examples=40, deadline=None)
@given(blueprints(), st.sampled_from([(2, 8), (3, 5)]))
def test_random_graphs_build_and_script(case: tuple[Blueprint, Slot], size: tuple[int, int]) -> None:
    blueprint, slot = case
    assert from_json(blueprint.canonical_json()) == blueprint
    assert fits(blueprint, slot)
    network = build(blueprint, slot)
    program = TorchScriptTarget().load(TorchScriptTarget().save(TorchScriptTarget().compile(network)))
    x = example(slot, *size, generator=torch.Generator().manual_seed(0))
    made = network.eval()(x)
    features = plan(blueprint, slot).nodes[-1].shape.features
    assert made.shape[1 if slot.layout == "channels" else -1] == features == slot.out_features
    torch.testing.assert_close(program.eval()(x), made, rtol=1e-4, atol=1e-5)
    made.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
