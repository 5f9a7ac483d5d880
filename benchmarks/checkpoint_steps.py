"""The time of a training epoch with a checkpoint at its end, against one without.

One run of ``esper train``: its epochs are trained as ever, and after each second one a sealed checkpoint is
begun, which is written beside the epoch that follows. That epoch and the pause before it are compared with
the epochs that follow no checkpoint; times are those of the wall, one thread trains, one core is free for
the writer.

Run: python benchmarks/checkpoint_steps.py [--experiment NAME] [--pairs N] [OVERRIDE ...]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time

import torch

from esper.assembly.training import build_training
from esper.tolaria.trainer import Trainer
from esper_cli.config import compose


def epoch_seconds(trainer: Trainer, epoch: int, *, saved: bool) -> float:
    """Seconds of an epoch, and of a checkpoint begun before it, where one is."""
    trainer.saving.settle()
    began = time.perf_counter()
    if saved:
        trainer.saving.begin()
    trainer.run_epoch(epoch)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiment", default="resnet")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as runs:
        trainer = build_training(
            compose(
                [
                    f"+experiment={arguments.experiment}",
                    "tamiyo=never",
                    "urza=memory",
                    f"runs={runs}",
                    f"tolaria.epochs={2 * arguments.pairs + 1}",
                    *arguments.overrides,
                ]
            )
        ).trainer
        epoch_seconds(trainer, 0, saved=True)
        times = []
        for pair in range(arguments.pairs):
            order = (True, False) if pair % 2 else (False, True)
            took = {
                saved: epoch_seconds(trainer, 1 + 2 * pair + index, saved=saved)
                for index, saved in enumerate(order)
            }
            times.append((took[True], took[False]))
        trainer.saving.settle()
    ratios = sorted(with_one / without for with_one, without in times)
    low, _, high = statistics.quantiles(ratios, n=4)
    steps = len(trainer.batches)
    print(
        f"+experiment={arguments.experiment}, {steps} steps an epoch, {os.cpu_count()} cores, load {load:.1f}"
    )
    print(f"  an epoch without    {statistics.median(each for _, each in times):8.2f} s")
    print(f"  with a checkpoint   {statistics.median(each for each, _ in times):8.2f} s")
    print(f"  ratio               {statistics.median(ratios):8.3f}   middle half {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
