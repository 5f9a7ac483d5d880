"""Stop a run after each of many steps, go on from there, and compare the weights with those of a whole run.

One run writes a checkpoint after every step. For each stop its folder is copied as it was at that step, and a
fresh trainer goes on to the end. Exits 1 unless all end with the same weights, by hash.

    python tests/drills/resume.py [--stops 100]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from esper.assembly.training import build_training
from esper_cli.config import compose

EXPERIMENT = (
    "+experiment=smoke",
    "urza=memory",
    "tolaria.epochs=8",
    "karn.paths=[blueprints/low_rank.yaml]",
    "tamiyo.first_epoch=2",
    "tamiyo.min_confidence=0.0",
    "tamiyo.detector.window=3",
    "tolaria.augment.pad=1",
)


def config(runs: Path, *overrides: str) -> DictConfig:
    """A run that grows early, with augmentation, and can be stopped anywhere."""
    every = ("tolaria.checkpoint_every=1", "tolaria.keep_checkpoints=10000")
    return compose([*EXPERIMENT, *every, f"runs={runs}", *overrides])


def train_whole(runs: Path) -> dict[str, Any]:
    """The summary of the run that is not stopped."""
    return build_training(config(runs)).run()


def resumed(whole: dict[str, Any], step: int, runs: Path) -> dict[str, Any]:
    """The summary of the same run, stopped after ``step`` and gone on with in ``runs``."""
    source = Path(whole["folder"])
    folder = runs / source.name
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("summary.json", "plot.png", "step-*"))
    for path in source.glob("checkpoints/step-*"):
        if step - 3 <= int(path.name[5:14]) <= step:
            shutil.copytree(path, folder / "checkpoints" / path.name)
    return build_training(config(runs), resume=source.name).run()


def states_at(whole: dict[str, Any]) -> dict[int, set[str]]:
    """The states that seeds were in after each step, as far as its checkpoints are whole epochs or not."""
    from esper.assembly.keys import build_envelope
    from esper.tolaria.checkpoints import Checkpoints

    folder = Path(whole["folder"])
    checkpoints = Checkpoints(folder / "checkpoints", build_envelope(config(folder.parent)))
    found = {}
    for each in checkpoints.all():
        assert each.manifest is not None, each.error
        seeds = checkpoints.open(each)["growth"]["seeds"]
        found[each.manifest.mark.step] = {seed["state"] for seed in seeds}
    return found


def main() -> int:
    """Stop at evenly spread steps and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--stops", type=int, default=100)
    stops = parser.parse_args().stops
    with tempfile.TemporaryDirectory() as folder:
        whole = train_whole(Path(folder, "whole"))
        states = states_at(whole)
        steps = sorted({round(n * whole["steps"] / stops) for n in range(stops)})
        same = 0
        for step in steps:
            runs = Path(folder, "resumed")
            summary = resumed(whole, step, runs)
            same += summary["weights_sha256"] == whole["weights_sha256"]
            shutil.rmtree(runs)
        blending = sum("BLENDING" in states[step] for step in steps)
    print(json.dumps({"stops": len(steps), "same weights": same, "in the middle of a blend": blending}))
    return 0 if same == len(steps) == stops else 1


if __name__ == "__main__":
    sys.exit(main())
