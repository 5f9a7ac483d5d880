"""One blueprint to a validated kernel, against a bare ``torch.jit.script`` and save of the same network.

The peer scripts and saves a hand-written module: no reading, budget, check, measurement or metadata. Both
run in turns in one process; the stages are on the clock on the wall. The limit is 5 s a kernel.

Run: python benchmarks/compile_blueprint.py [--rounds N]
"""

from __future__ import annotations

import argparse
import functools
import io
import statistics
import warnings
from pathlib import Path

import torch
from paired import paired
from torch import nn

from esper.blueprint import Blueprint, load_blueprints
from esper.messages import Slot
from esper.tezzeret.pipeline import STAGES, Pipeline, StageClock
from esper.tezzeret.torchscript import TorchScriptTarget

BLUEPRINTS = Path(__file__).parents[1] / "blueprints"
CASES: dict[str, tuple[Slot, nn.Module]] = {
    "bottleneck_mlp": (
        Slot("features", 128, 256),
        nn.Sequential(nn.Linear(128, 64), nn.GELU(), nn.Linear(64, 256)),
    ),
    "depthwise_separable": (
        Slot("channels", 8, 16),
        nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 1),
        ),
    ),
}


def bare(module: nn.Module) -> None:
    torch.jit.save(torch.jit.script(module), io.BytesIO())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
    print(
        f"{'ms of CPU':<22}{'bare':>8}{'ours':>8}{'ratio':>8}   "
        + "".join(f"{stage:>10}" for stage in STAGES)
    )
    for name, (slot, module) in CASES.items():
        (blueprint,) = load_blueprints(BLUEPRINTS / f"{name}.yaml")
        pipeline = Pipeline(TorchScriptTarget())
        clocks: list[StageClock] = []

        def ours(
            pipeline: Pipeline = pipeline,
            blueprint: Blueprint = blueprint,
            slot: Slot = slot,
            clocks: list[StageClock] = clocks,
        ) -> None:
            clocks.append(StageClock())
            pipeline.compile(blueprint, slot, clocks[-1])

        result = paired(functools.partial(bare, module), ours, rounds=rounds, steps=1)
        stages = (1e3 * statistics.median(clock.seconds[stage] for clock in clocks) for stage in STAGES)
        row = f"{name:<22}{result.peer_ms:>8.1f}{result.ours_ms:>8.1f}{result.ratio:>7.1f}x   "
        print(row + "".join(f"{stage:>10.1f}" for stage in stages))


if __name__ == "__main__":
    main()
