"""What works: each op on each of its layouts, for each target, found by compiling it.

``python -m esper.tezzeret.matrix`` prints docs/op-matrix.md for the CPU and, where there is one, the GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from esper.blueprint import LAYOUTS, OPS, Blueprint, parse_blueprint
from esper.messages import Layout, Slot
from esper.tezzeret.builder import build
from esper.tezzeret.randomness import seeded
from esper.tezzeret.target import Target
from esper.tezzeret.targets import TARGETS
from esper.tezzeret.validation import validate

Outcomes = Mapping[tuple[str, str, str, Layout], str]
"""For an op, target, device and layout why it does not work; empty where it does."""

PLACES = [(op.name, layout) for op in OPS.values() for layout in LAYOUTS if layout in op.layouts]
"""Where the language has an op."""

_PARAMETERS: dict[str, dict[str, Any]] = {
    "slice": {"start": 1, "size": 2},
    **{name: {"out": 4} for name in ("linear", "conv2d", "conv1d")},
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
        {"id": "it", "op": name, "inputs": inputs, "params": _PARAMETERS.get(name, {})},
        {"id": "made", "op": "linear", "inputs": ["it"], "params": {"out": "out"}},
        {"id": "kept", "op": "linear", "inputs": ["x"], "params": {"out": "out"}},
        {"id": "sum", "op": "add", "inputs": ["kept", "made"]},
    ]
    data = {"version": 1, "name": "one", "layouts": [layout], "nodes": nodes, "output": "sum"}
    return parse_blueprint(data)


def failure(name: str, layout: Layout, target: Target, device: str) -> str:
    """Why op ``name`` cannot be compiled, saved, loaded, checked or validated there; empty if it can."""
    slot = Slot(layout, 5, 3)
    eager = build(one_op(name, layout), slot).to(device)
    try:
        program = target.load(target.save(target.compile(eager)), device)
        target.check(program)
        with seeded(0, torch.device(device)):
            validate(program, eager, slot)
    except Exception as error:  # torch raises RuntimeError, TypeError, NotImplementedError and others
        return str(error).strip().splitlines()[-1].strip() or type(error).__name__
    return ""


def page(outcomes: Outcomes) -> str:
    """The page of ``outcomes``: a row an op, a column a target and device, and reasons below."""
    columns = list(dict.fromkeys((target, device) for _, target, device, _ in outcomes))
    rows = [["op", *(f"{target}, {device}" for target, device in columns)], ["---"] * (1 + len(columns))]
    reasons: dict[str, list[str]] = {}
    for op in OPS.values():
        cells = []
        for target, device in columns:
            found = {layout: outcomes[op.name, target, device, layout] for layout in op.layouts}
            cells.append(_cell(found))
            for layout, reason in found.items():
                if reason:
                    reasons.setdefault(reason, []).append(f"`{op.name}` on {layout}, {target}, {device}")
        rows.append([f"`{op.name}`", *cells])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    told = "".join(f"- {reason}: {'; '.join(where)}\n" for reason, where in reasons.items())
    return f"{_HEAD}\n{table}\n\n{_BELOW}\n\n{told or '- nothing'}"


def measured(devices: Sequence[str]) -> Outcomes:
    """The outcome for every op, layout and target on ``devices``."""
    return {
        (name, target.name, device, layout): failure(name, layout, target, device)
        for device in devices
        for target in TARGETS.values()
        for name, layout in PLACES
    }


def _cell(found: Mapping[Layout, str]) -> str:
    works = [layout for layout, reason in found.items() if not reason]
    return "yes" if len(works) == len(found) else ", ".join(works) or "no"


_HEAD = """\
# What works per op, target and device
Each op was compiled, saved, loaded, checked and validated on each layout that it is for, which are those in
[blueprints.md](blueprints.md). `yes` means on all of them. A test holds this page to what it finds on the
CPU; where there is a GPU, `python -m esper.tezzeret.matrix` prints columns for that as well.
"""
_BELOW = "What does not work, and why:"

if __name__ == "__main__":
    torch.set_num_threads(1)
    print(page(measured(["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])), end="")
