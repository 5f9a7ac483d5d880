"""The public API is this list; changing it is a decision, not an accident."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import esper
from esper.messages import (
    AdaptationDecision,
    KernelMetadata,
    LayerMetrics,
    SystemStatePacket,
)

PUBLIC = [
    "AdaptationDecision",
    "Blueprint",
    "EsperError",
    "KernelLibrary",
    "KernelMetadata",
    "SeedState",
    "SeededLayer",
    "Slot",
    "SystemStatePacket",
    "drain",
    "graft",
    "load_blueprints",
    "observe",
    "open_library",
    "pop_faults",
    "seed_off",
    "seeded_layers",
    "unwrap",
    "wrap",
]


def test_the_list_is_what_it_was() -> None:
    assert sorted(esper.__all__) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_each_name_is_there_and_documented(name: str) -> None:
    assert getattr(esper, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'wrapp'"):
        esper.wrapp  # noqa: B018  the access is the test


def test_importing_esper_does_not_wait_for_torch() -> None:
    code = "import esper, esper.errors, esper.messages, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_network_of_ones_own_grows_in_a_few_lines() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(4, 8)
    before = model(x)
    esper.wrap(model, x, include=["0"], seeds=2)
    layer = esper.seeded_layers(model)["0"]
    assert torch.equal(model(x), before)
    esper.graft(layer, 0, nn.Linear(4, 4), kernel_id="mine", site="parallel", blend="residual")
    assert torch.equal(model(x), before)


# The JSON of the three records, field for field, as the system flow gives it.
PACKET = {
    "epoch": 10,
    "global_step": 10000,
    "loss": 0.234,
    "accuracy": 0.921,
    "layer_metrics": {
        "layer1": {
            "gradient_norm": 0.15,
            "activation_variance": 0.82,
            "seed_health": [0.9, 0.85, 0.7, 0.92],
        }
    },
}
DECISION = {
    "adaptation_type": "add_seed",
    "target_component": "model.layer1",
    "parameters": {"kernel_id": "kernel_abc123", "seed_idx": 2, "alpha_blend": 0.3},
    "confidence": 0.87,
    "expected_impact": 0.15,
}
METADATA = {
    "kernel_id": "kernel_abc123",
    "blueprint_id": "blueprint_xyz789",
    "input_shape": [128],
    "output_shape": [256],
    "compilation_time": 0.152,
    "performance_score": 0.92,
    "tags": ["linear", "optimized", "validated"],
}


def _contains(whole: object, part: object) -> bool:
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(k in whole and _contains(whole[k], v) for k, v in part.items())
    return whole == part


def test_the_json_of_the_records_is_that_of_the_system_flow() -> None:
    layer = LayerMetrics(0.15, 0.82, (0.9, 0.85, 0.7, 0.92))
    packet = SystemStatePacket(10, 10000, 0.234, 0.921, {"layer1": layer})
    decision = AdaptationDecision(
        "add_seed",
        "model.layer1",
        {"kernel_id": "kernel_abc123", "seed_idx": 2, "alpha_blend": 0.3},
        0.87,
        0.15,
    )
    metadata = KernelMetadata(
        "kernel_abc123", "blueprint_xyz789", (128,), (256,), 0.152, 0.92, ("linear", "optimized", "validated")
    )
    for record, expected in ((packet, PACKET), (decision, DECISION), (metadata, METADATA)):
        assert _contains(json.loads(json.dumps(record.to_json())), expected)
