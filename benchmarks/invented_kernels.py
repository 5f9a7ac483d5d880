"""Invented kernels against the catalogue, at equal trials, in a network that has been trained.

For each seed a host is trained without growth. A trial then trains a copy of it on with one kernel in one
seed, and is scored on held-out data against the same training without a kernel. The catalogue's arm tries
what ships, in an order drawn from the seed; the other tries only what is invented, with what its own trials
showed before. Each arm's best by held-out loss is measured once on the test split.

Run: python benchmarks/invented_kernels.py --experiment digits --out experiments/karn_digits

Seeds from 100; those below are where the length and the rate of a trial were chosen, on held-out data.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn

from esper.assembly.training import build_training
from esper.blueprint import Blueprint, fits
from esper.data.losses import mean_loss
from esper.karn.catalogue import load_catalogue
from esper.karn.generator import Generator
from esper.karn.invention import Past, Place
from esper.kasmina import SeededLayer, graft, seeded_layers
from esper.messages import FieldReport, SeedState, Site, Slot
from esper.proof.statistics import Interval, paired_difference
from esper.tezzeret.budget import count_parameters
from esper.tezzeret.builder import build
from esper.tolaria.evaluation import Evaluation, evaluate
from esper.tolaria.run import Run
from esper_cli.config import compose

BATCH = 4
"""Inventions that are asked for at a time."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A trial: its report, and the accuracy and loss of its network on the test split."""

    report: FieldReport
    test: Evaluation


class Bench:
    """A trained host, and what kernels bring in the first seed of its first layer."""

    def __init__(self, run: Run, epochs: int, rate: float) -> None:
        """``run`` is over; a trial takes ``epochs``, at a peak rate of ``rate`` times that of the host's."""
        self.trainer, self.test, self.epochs, self.rate = run.trainer, run.test, epochs, rate
        self.model = run.trainer.model
        self.name, layer = next(iter(seeded_layers(self.model).items()))
        self.kind = layer.kind
        self.site: Site = "series" if layer.parallel_refusal() else "parallel"
        self.slot: Slot = layer.slot(self.site, 0)
        model = self._trained(None, 0)
        self.without, self.test_without = self._held_out(model), self._tested(model)

    def tried(self, blueprint: Blueprint, number: int) -> Tried:
        """Trial ``number`` of an arm."""
        model = self._trained(blueprint, number)
        on = self._held_out(model)
        gains = self.without.losses - on.losses
        kernel = seeded_layers(model)[self.name].seed(0).kernel
        assert kernel is not None
        report = FieldReport(
            layer=self.name,
            layer_kind=self.kind,
            seed_idx=0,
            slot=self.slot,
            site=self.site,
            kernel_id=f"trial {number}",
            blueprint_id=blueprint.blueprint_id,
            started_epoch=number,
            ended_epoch=number,
            verdict="kept" if gains.mean() > 0 else "culled",
            reason="the held-out loss against training on without a kernel",
            expected_impact=0.0,
            gain=float(gains.mean()),
            gain_error=float(gains.std()) / math.sqrt(len(gains)),
            threshold=0.0,
            loss_before=self.without.loss,
            loss_after=on.loss,
            accuracy_before=self.without.accuracy,
            accuracy_after=on.accuracy,
            parameters=count_parameters(kernel),
        )
        return Tried(report, self._tested(model))

    def _trained(self, blueprint: Blueprint | None, number: int) -> nn.Module:
        """A copy of the host, trained on with the kernel; every trial sees the same batches."""
        model = copy.deepcopy(self.model)
        if blueprint is not None:
            _running(seeded_layers(model)[self.name], build(blueprint, self.slot, seed=number), self.site)
        peak = self.rate * self.trainer.optimizer.param_groups[0]["peak_lr"]
        optimizer = torch.optim.SGD(model.parameters(), lr=peak, momentum=0.9, nesterov=True)
        batches, first = self.trainer.batches, self.trainer.progress.epochs_done
        steps, step = self.epochs * len(batches), 0
        model.train()
        for epoch in range(first, first + self.epochs):
            for x, y in batches.epoch(epoch):
                optimizer.param_groups[0]["lr"] = peak * 0.5 * (1 + math.cos(math.pi * step / steps))
                optimizer.zero_grad()
                torch.autograd.backward(mean_loss(model(x), y))
                optimizer.step()
                step += 1
        return model

    def _held_out(self, model: nn.Module) -> Evaluation:
        return evaluate(model, self.trainer.held_out.x, self.trainer.held_out.y)

    def _tested(self, model: nn.Module) -> Evaluation:
        return evaluate(model, self.test.x, self.test.y)


def _running(layer: SeededLayer, kernel: nn.Module, site: Any) -> None:
    """Graft ``kernel`` and have it run at once: it is small at birth, and a trial is short."""
    graft(layer, 0, kernel, kernel_id="trial", site=site, blend="residual")
    seed = layer.seed(0)
    seed.restore(SeedState.HOLDING)
    assert seed.alpha is not None
    seed.alpha.fill_(1.0)


def by_catalogue(bench: Bench, catalogue: Sequence[Blueprint], trials: int, seed: int) -> list[Tried]:
    """The trials of what ships, in an order drawn from ``seed``."""
    order = Random(f"catalogue {seed}").sample(list(catalogue), trials)
    return [bench.tried(blueprint, number) for number, blueprint in enumerate(order)]


def by_invention(bench: Bench, catalogue: Sequence[Blueprint], trials: int, seed: int) -> list[Tried]:
    """The trials of inventions alone, each batch made of what those before it showed."""
    generator = Generator(build, seed=seed)
    blueprints, known = list(catalogue), {(each.graph_id, bench.slot) for each in catalogue}
    done: list[Tried] = []
    while len(done) < trials:
        past = Past([each.report for each in done], blueprints, known)
        for made in generator.propose(past, [Place(bench.slot, bench.kind)], min(BATCH, trials - len(done))):
            blueprints.append(made.blueprint)
            known.add((made.blueprint.graph_id, bench.slot))
            done.append(bench.tried(made.blueprint, len(done)))
    return done


def pair(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Both arms on one host."""
    with tempfile.TemporaryDirectory() as runs:
        given = [f"+experiment={options.experiment}", "tamiyo=never", "urza=memory", "kasmina.seeds=1"]
        run = build_training(compose([*given, f"seed={seed}", f"runs={runs}", *options.overrides]))
        run.run()
        bench = Bench(run, options.epochs, options.rate)
        shipped = [each for each in load_catalogue(["blueprints"]).blueprints if fits(each, bench.slot)]
        trials = min(options.trials, len(shipped))
        arms = {
            "catalogue": by_catalogue(bench, shipped, trials, seed),
            "invented": by_invention(bench, shipped, trials, seed),
        }
    without = bench.test_without
    found: dict[str, Any] = {"seed": seed, "slot": str(bench.slot), "trials": trials}
    found["without"] = {"test_loss": without.loss, "test_accuracy": without.accuracy}
    for arm, tried in arms.items():
        best = max(tried, key=lambda each: each.report.gain)
        gains = [each.report.gain for each in tried]
        found[arm] = {
            "best_gain": best.report.gain,
            "mean_gain": sum(gains) / len(gains),
            "parameters": best.report.parameters,
            "test_loss": best.test.loss,
            "test_accuracy": best.test.accuracy,
        }
    return found


def summary(pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Paired differences, invented minus catalogue, and each arm's best minus no kernel; 95 % intervals."""

    def told(of: Interval) -> list[float]:
        return [of.mean, of.low, of.high]

    def column(arm: str, key: str) -> list[float]:
        return [one[arm][key] for one in pairs]

    keys = ("best_gain", "mean_gain", "parameters", "test_loss", "test_accuracy")
    invented = {
        key: told(paired_difference(column("invented", key), column("catalogue", key))) for key in keys
    }
    over = {
        arm: told(paired_difference(column(arm, "test_accuracy"), column("without", "test_accuracy")))
        for arm in ("catalogue", "invented")
    }
    return {"invented_minus_catalogue": invented, "test_accuracy_minus_without": over}


def main() -> None:
    """Run the pairs one after the other and write them as they come."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--first", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2, help="epochs a trial")
    parser.add_argument("--rate", type=float, default=1.0, help="peak learning rate over the host's")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", help="of the host's training")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    pairs: list[dict[str, Any]] = []
    for seed in range(options.first, options.first + options.seeds):
        pairs.append(pair(options, seed))
        print(json.dumps(pairs[-1]), flush=True)
    given = {key: getattr(options, key) for key in ("experiment", "trials", "epochs", "rate", "overrides")}
    found = {**given, "summary": summary(pairs), "pairs": pairs}
    (options.out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["summary"], indent=1))


if __name__ == "__main__":
    main()
