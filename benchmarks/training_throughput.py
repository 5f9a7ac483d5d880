"""Samples a second of a whole Esper run that does not grow, beside a plain PyTorch loop on the same task.

Both train the same network from the same initial weights on the same batches, with the same optimizer and
schedule, and both measure the held-out split after each epoch. Esper also gathers health signals, writes its
journal and saves a checkpoint an epoch.

    python benchmarks/training_throughput.py [--epochs 3] [--rounds 3]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import torch
import torch.nn.functional as F

from esper.assembly.network import build_data, build_model
from esper.assembly.training import build_training
from esper.tolaria.evaluation import evaluate
from esper.tolaria.rng import seed_everything
from esper.tolaria.schedule import HoldThenCosine
from esper_cli.config import compose


def plain_loop(overrides: list[str], epochs: int) -> tuple[float, float]:
    """Seconds of training and held-out loss, with nothing of Esper in the loop but its schedule."""
    cfg = compose(overrides)
    data = build_data(cfg)
    seed_everything(cfg.seed)
    model = build_model(cfg, data).to(memory_format=torch.channels_last)
    batches = data.batches(cfg.tolaria.batch_size, cfg.seed)
    rate = cfg.tolaria.learning_rate
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=rate,
        momentum=0.9,
        nesterov=True,
        weight_decay=cfg.tolaria.optimizer.weight_decay,
    )
    schedule = HoldThenCosine(
        warmup=cfg.tolaria.schedule.warmup,
        hold_until=cfg.tolaria.schedule.hold_until,
        final=cfg.tolaria.schedule.final,
    )
    start = time.perf_counter()
    for epoch in range(epochs):
        model.train()
        for step, (x, y) in enumerate(batches.epoch(epoch)):
            optimizer.param_groups[0]["lr"] = rate * schedule.factor((epoch + step / len(batches)) / epochs)
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        measured = evaluate(model, data.held_out.x, data.held_out.y)
    return time.perf_counter() - start, measured.loss


def esper_run(overrides: list[str]) -> tuple[float, float]:
    """Seconds of ``fit`` and held-out loss."""
    run = build_training(compose(overrides))
    start = time.perf_counter()
    summary = run.run()
    return time.perf_counter() - start, summary["held_out"]["loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as runs:
        overrides = [
            "+experiment=resnet",
            "tamiyo=never",
            "urza=memory",
            f"runs={runs}",
            f"tolaria.epochs={arguments.epochs}",
        ]
        samples = arguments.epochs * len(build_data(compose(overrides)).train.y)
        pairs = [
            (plain_loop(overrides, arguments.epochs), esper_run(overrides)) for _ in range(arguments.rounds)
        ]
    ratios = [ours[0] / peer[0] for peer, ours in pairs]
    peer = statistics.median(samples / pair[0][0] for pair in pairs)
    ours = statistics.median(samples / pair[1][0] for pair in pairs)
    same = all(pair[0][1] == pair[1][1] for pair in pairs)
    print(f"+experiment=resnet on fashion-12k, {arguments.epochs} epochs, one thread")
    print(f"  plain PyTorch loop  {peer:8.0f} samples/s")
    print(f"  esper train         {ours:8.0f} samples/s   (asked for: more than 1,000)")
    print(
        f"  time ratio          {statistics.median(ratios):8.3f}   of {', '.join(f'{r:.3f}' for r in ratios)}"
    )
    print(f"  held-out losses equal bit for bit: {'yes' if same else 'NO'}")


if __name__ == "__main__":
    main()
