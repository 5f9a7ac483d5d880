"""A small network with a block planted in it, so that the best block for one of its layers is known.

The teacher is a fixed network of two layers with the block beside the first; the student has the same weights
and no block. What a block can gain is known exactly: with the teacher's own the student's error is zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from esper.blueprint import Blueprint, fits
from esper.karn.bounds import Bounds
from esper.karn.candidates import Breeding
from esper.messages import FieldReport, Slot
from esper.tezzeret.budget import count_parameters
from esper.tezzeret.builder import build

SLOT = Slot("features", 8, 8)
KIND = "linear"
OUTPUTS, TRAIN, HELD_OUT = 4, 256, 256
STEPS, RATE = 120, 2e-2
BREEDING = Breeding(bounds=Bounds(nodes=14, parameters=400))
"""The space of both searches: few parameters, so that no block wins by its size."""
GENERATIONS = 2
HARD, LEARNABLE, LEAST = 0.9, 0.97, 0.3
"""A planted block is used where no block of the catalogue gets ``HARD`` of the gain that there is, it itself
gets ``LEARNABLE`` of it from new weights (the median of ``STARTS``), and that gain is ``LEAST`` of the
variance or more."""
STARTS = 3


@dataclass(frozen=True, slots=True)
class Trial:
    """The fall of the held-out squared error (share of the target's variance), and its standard error."""

    gain: float
    error: float
    parameters: int


class Planted:
    """The task with ``block`` planted; all of it follows from ``block`` and ``seed``."""

    def __init__(self, block: Blueprint, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        features = SLOT.in_features
        self.first = torch.randn(SLOT.out_features, features, generator=generator) / math.sqrt(features)
        self.last = torch.randn(OUTPUTS, SLOT.out_features, generator=generator) / math.sqrt(
            SLOT.out_features
        )
        x = torch.randn(TRAIN + HELD_OUT, features, generator=generator)
        with torch.no_grad():
            made = build(block, SLOT, seed=seed + 1_000_000).eval()(x)
            made = (made - made.mean(0)) / (made.std(0) + 1e-6)
            target = self._network(x, made)
        self.scale = target.std()
        target = target / self.scale
        self.train, self.held_out = (x[:TRAIN], target[:TRAIN]), (x[TRAIN:], target[TRAIN:])
        self.off = self._errors(self.held_out, torch.zeros(1))
        self.most = float(self.off.mean())

    def trial(self, blueprint: Blueprint, seed: int) -> Trial:
        """What ``blueprint`` gains after ``STEPS`` steps of Adam, the network around it fixed."""
        block = build(blueprint, SLOT, seed=seed)
        optimizer = torch.optim.Adam(block.parameters(), lr=RATE, fused=True)
        for _ in range(STEPS):
            loss = self._errors(self.train, block(self.train[0])).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        block.eval()
        with torch.no_grad():
            gains = self.off - self._errors(self.held_out, block(self.held_out[0]))
        error = float(gains.std()) / math.sqrt(len(gains))
        return Trial(float(gains.mean()), error, count_parameters(block))

    def _network(self, x: Tensor, block: Tensor) -> Tensor:
        return torch.tanh(x @ self.first.T + block) @ self.last.T

    def _errors(self, data: tuple[Tensor, Tensor], block: Tensor) -> Tensor:
        """The squared error of each sample."""
        x, target = data
        return (self._network(x, block) / self.scale - target).square().mean(1)


def plant(catalogue: Sequence[Blueprint], seed: int) -> tuple[Planted, Blueprint]:
    """The first task that is hard and learnable, of blocks drawn as ``draw`` does; see ``HARD``."""
    rng = Random(f"planted {seed}")
    while True:
        block = draw(catalogue, rng, GENERATIONS)
        task = Planted(block, seed)
        if task.most < LEAST or task.trial(block, 0).gain < LEARNABLE * task.most:
            continue
        gains = sorted(task.trial(block, start).gain for start in range(STARTS))
        if gains[STARTS // 2] < LEARNABLE * task.most:
            continue
        if all(task.trial(one, 0).gain < HARD * task.most for one in catalogue):
            return task, block


def draw(catalogue: Sequence[Blueprint], rng: Random, generations: int) -> Blueprint:
    """A block of the space: one of ``catalogue``, all of which fit, after ``generations`` children."""
    block = rng.choice(catalogue)
    for _ in range(generations):
        child = BREEDING.child([block], catalogue, SLOT, rng)
        block = child.blueprint if child else block
    return block


def report(blueprint: Blueprint, trial: Trial, number: int) -> FieldReport:
    """``trial`` as a run would tell of it."""
    kept = trial.gain > 0
    return FieldReport(
        layer="first",
        layer_kind=KIND,
        seed_idx=0,
        slot=SLOT,
        site="parallel",
        kernel_id=f"trial {number}",
        blueprint_id=blueprint.blueprint_id,
        started_epoch=number,
        ended_epoch=number,
        verdict="kept" if kept else "culled",
        reason="the held-out error fell" if kept else "the held-out error did not fall",
        expected_impact=0.0,
        gain=trial.gain,
        gain_error=trial.error,
        threshold=0.0,
        loss_before=0.0,
        loss_after=0.0,
        accuracy_before=0.0,
        accuracy_after=0.0,
        parameters=trial.parameters,
    )


def fitting(blueprints: Sequence[Blueprint]) -> list[Blueprint]:
    """Those of ``blueprints`` that are in the space."""
    return [one for one in blueprints if fits(one, SLOT) and BREEDING.bounds.allow(one, SLOT)]
