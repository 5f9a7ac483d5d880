"""Samples a second of two processes that train with Esper, beside plain DistributedDataParallel.

Goal: 0.98 times plain DDP or better, on the same host, with the same batches, optimizer and precision. Both
networks live in the same processes and take turns, so that both see the same machine. Esper's has its seeds,
dormant; its step averages gradients itself, contains faults, and steps the optimizer; the other's is backward
and step under ``torch.nn.parallel.DistributedDataParallel``, which broadcasts the buffers at each forward as
it does by default. Each process fetches its part of a batch itself. The ratio of CPU time, of the first
process, says more where other programs run.

Run: python benchmarks/ddp.py [--processes 2] [--rounds 30] [--steps 10] [OVERRIDE ...]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

GOAL = 0.98


def measure(rounds: int, steps: int, overrides: list[str]) -> None:
    from esper.assembly.network import build_data, build_model
    from esper.assembly.training import build_training
    from esper.data.losses import mean_loss
    from esper.tolaria.averaging import share
    from esper_cli.config import compose

    with tempfile.TemporaryDirectory() as runs:
        given = ["+experiment=resnet", "tolaria=ddp", "tamiyo=never", "urza=memory", f"runs={runs}"]
        cfg = compose([*given, *overrides])
        run = build_training(cfg)
        trainer, batches, group = run.trainer, run.trainer.batches, run.trainer.group
        plain = copy.copy(batches)
        torch.manual_seed(cfg.seed)
        host = build_model(cfg, build_data(cfg)).to(batches.x.device)
        if cfg.tolaria.channels_last:
            host.to(memory_format=torch.channels_last)
        peer = DistributedDataParallel(host)
        optimizer = type(trainer.optimizer)(host.parameters(), **_options(trainer.optimizer))
        trainer.model.train()

        def esper(step: int) -> None:
            trainer.step(*batches.batch(0, step, share(batches.batch_size, group)), batches.batch_size)

        def ddp(step: int) -> None:
            start = step * plain.batch_size
            chosen = plain.order(0)[start : start + plain.batch_size]
            mine = chosen[share(len(chosen), group)]
            x, y = plain.x[mine], plain.y[mine]
            if plain.augment is not None:
                x = plain.augment(x, torch.Generator().manual_seed(step))
            optimizer.zero_grad(set_to_none=True)
            mean_loss(peer(x), y).backward()
            optimizer.step()

        ways: dict[str, Callable[[int], None]] = {"esper": esper, "ddp": ddp}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        busy: dict[str, list[float]] = {name: [] for name in ways}
        full = max(len(batches) - 1, 1)  # without the last one, which may be smaller
        for turn in range(rounds + 2):
            for name in list(ways)[:: 1 if turn % 2 else -1]:
                dist.barrier()
                began, worked = time.perf_counter(), time.process_time()
                for step in range(steps):
                    ways[name](step % full)
                dist.barrier()
                if turn >= 2:  # the first ones warm up
                    seconds[name].append(time.perf_counter() - began)
                    busy[name].append(time.process_time() - worked)
        run.trainer.recorder.close()
        run.trainer.orchestrator.library.close()
        if group.rank == 0:
            samples = steps * batches.batch_size
            ratios = [b / a for a, b in zip(seconds["esper"], seconds["ddp"], strict=True)]
            rates = {
                f"{name}, samples a second": samples / statistics.median(s) for name, s in seconds.items()
            }
            low, ratio, high = statistics.quantiles(ratios, n=4)
            cpu = statistics.median(b / a for a, b in zip(busy["esper"], busy["ddp"], strict=True))
            told = {"ratio": ratio, "quartiles": [low, high], "ratio of CPU time": cpu, "goal": GOAL}
            print(json.dumps({**rates, **told}))
        dist.barrier()
        ways.clear()
        dist.destroy_process_group()


def _options(optimizer: torch.optim.Optimizer) -> dict[str, object]:
    """The settings of ``optimizer`` that its constructor takes."""
    return {name: optimizer.param_groups[0][name] for name in optimizer.defaults if name != "fused"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    if "RANK" in os.environ:
        measure(asked.rounds, asked.steps, asked.overrides)
        return 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    command = [*torchrun, f"--nproc-per-node={asked.processes}", __file__, *sys.argv[1:]]
    return subprocess.call(command, env=environment)


if __name__ == "__main__":
    sys.exit(main())
