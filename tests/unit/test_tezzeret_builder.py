"""Building: weights, budgets counted before allocation, awkward names."""

from __future__ import annotations

import resource
import subprocess
import sys
from typing import Any

import pytest
import torch
from waiting import LONG

from esper.blueprint import Blueprint, parse_blueprint
from esper.errors import BlueprintError
from esper.messages import Slot
from esper.tezzeret.budget import Budget
from esper.tezzeret.builder import build

torch.set_num_threads(1)

FEATURES = Slot("features", 64, 64)


def chain(*params: dict[str, Any], op: str = "linear", layout: str = "features") -> Blueprint:
    """One node after the other, all of ``op``."""
    nodes = [
        {"id": f"n{i}", "op": op, "inputs": [f"n{i - 1}" if i else "x"], "params": given}
        for i, given in enumerate(params)
    ]
    last = f"n{len(params) - 1}"
    return parse_blueprint(
        {"version": 1, "name": "chain", "layouts": [layout], "nodes": nodes, "output": last}
    )


def test_weights_depend_on_the_seed_alone() -> None:
    blueprint = chain({"out": 32}, {"out": "out"})
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = build(blueprint, FEATURES, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    second = build(blueprint, FEATURES, seed=3)
    other = build(blueprint, FEATURES, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.n0.weight, other.n0.weight)


def test_weights_have_the_stated_variance() -> None:
    network = build(chain({"out": 256, "gain": 0.5}, {"out": "out"}), FEATURES)
    assert network.n0.weight.std().item() == pytest.approx(0.5 / 8, rel=0.05)
    assert network.n1.weight.std().item() == pytest.approx(1 / 16, rel=0.05)
    assert not network.n0.bias.any()
    assert len(network.n0.weight.unique(dim=0)) == 256  # no two units alike: nothing to keep them equal


@pytest.mark.parametrize(
    "name", ["train", "forward", "training", "parameters", "print", "state_dict", "graph", "self"]
)
def test_awkward_node_ids(name: str) -> None:
    nodes = [
        {"id": name, "op": "linear", "inputs": ["x"], "params": {"out": 4}},
        {"id": "o", "op": "linear", "inputs": [name], "params": {"out": "out"}},
    ]
    data = {"version": 1, "name": "t", "layouts": ["features"], "nodes": nodes, "output": "o"}
    network = build(parse_blueprint(data), Slot("features", 3, 5))
    assert network.train(False)(torch.randn(2, 3)).shape == (2, 5)


@pytest.mark.parametrize(
    ("blueprint", "slot", "message"),
    [
        (
            chain({"out": 1_000_000}, {"out": "out"}),
            Slot("features", 1_000_000, 8),
            "1,000,009,000,008 parameters",
        ),
        (
            chain({"out": 1_000_000, "kernel": 31}, {"out": "out"}, op="conv2d", layout="channels"),
            Slot("channels", 1_000_000, 1),
            "parameters; the budget is 16,777,216",
        ),
        (chain(*[{"out": 4000}] * 3, {"out": "out"}), FEATURES, "parameters; the budget is 16,777,216"),
        (
            chain(*[{"out": 150, "kernel": 31}] * 2, {"out": "out"}, op="conv2d", layout="channels"),
            Slot("channels", 64, 64),
            "parameters; the budget is",
        ),
    ],
)
def test_too_many_parameters_are_refused_at_once(blueprint: Blueprint, slot: Slot, message: str) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BlueprintError, match=message):
        build(blueprint, slot)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 50_000  # KiB


def test_flops_and_bytes_have_budgets_too() -> None:
    blueprint = chain({"out": "out", "kernel": 7}, op="conv2d", layout="channels")
    slot = Slot("channels", 16, 16)
    build(blueprint, slot, budget=Budget(flops=2 * 2 * 64 * 16 * 16 * 49))
    with pytest.raises(BlueprintError, match=r"chain for channels 16->16: 3,211,264 FLOPs a pass"):
        build(blueprint, slot, budget=Budget(flops=2 * 2 * 64 * 16 * 16 * 49 - 1))
    with pytest.raises(BlueprintError, match="bytes; the budget is 1,000"):
        build(blueprint, slot, budget=Budget(bytes=1000))


def test_wide_intermediates_exceed_the_budget_of_bytes() -> None:
    """Few parameters, but a tower of concatenations a million features wide."""
    nodes = [{"id": "n0", "op": "concat", "inputs": ["x"] * 8}]
    nodes += [{"id": f"n{i}", "op": "concat", "inputs": [f"n{i - 1}"] * 8} for i in range(1, 6)]
    nodes += [{"id": f"r{i}", "op": "relu", "inputs": [f"r{i - 1}" if i else "n5"]} for i in range(50)]
    nodes += [{"id": "o", "op": "slice", "inputs": ["r49"], "params": {"size": "out"}}]
    data = {"version": 1, "name": "tower", "layouts": ["channels"], "nodes": nodes, "output": "o"}
    with pytest.raises(BlueprintError, match="bytes; the budget is"):
        build(parse_blueprint(data), Slot("channels", 3, 3))


def test_a_bomb_is_refused_within_its_memory_limit() -> None:
    """10^12 parameters in a process that may not allocate them: no MemoryError, one clear line."""
    script = """
import resource, torch
from esper.blueprint import parse_blueprint
from esper.errors import BlueprintError
from esper.messages import Slot
from esper.tezzeret.builder import build
node = {"id": "n", "op": "linear", "inputs": ["x"], "params": {"out": "out"}}
data = {"version": 1, "name": "bomb", "layouts": ["features"], "nodes": [node], "output": "n"}
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
try:
    build(parse_blueprint(data), Slot("features", 1_000_000, 1_000_000))
except BlueprintError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=LONG)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == (
        "bomb for features 1000000->1000000: 1,000,001,000,000 parameters; the budget is 16,777,216"
        " (make its sizes smaller)"
    )
