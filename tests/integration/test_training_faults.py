"""1,000 kernels that fail in a run: training goes on, and nothing non-finite is left anywhere."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from drills.kernel_faults import NETWORKS, survived, train
from torch import Tensor, nn

from esper.assembly.training import build_training
from esper.messages import AdaptationDecision, KernelMetadata, SeedState, Slot, SystemStatePacket
from esper.nissa.journal import JOURNAL_NAME
from esper.nissa.journal_reader import read_journal
from esper.tolaria.evaluation import evaluate
from esper.tolaria.recovery import check_epoch, check_values
from esper.tolaria.stability import first_non_finite
from esper.urza.library import Kernel
from esper.urza.tiers import TierCounts
from esper_cli.config import compose

FAULTS = 1000
KINDS = ("raise", "nan", "inf", "shape", "dtype", "backward")


class BadGradient(torch.autograd.Function):
    """The identity, with a gradient that is not finite."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * float("nan")


class FailingKernel(nn.Module):
    """Works in evaluation, so that it can be grafted; fails in training from its second call on."""

    def __init__(self, slot: Slot, kind: str) -> None:
        super().__init__()
        self.linear = nn.Linear(slot.in_features, slot.out_features)
        self.kind = kind
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        self.calls += self.training
        if self.calls < 2 or not self.training:
            return y
        if self.kind == "raise":
            raise RuntimeError("this kernel fails on purpose")
        if self.kind == "backward":
            return BadGradient.apply(y)  # type: ignore[no-any-return]
        if self.kind == "shape":
            return y[..., :-1]
        return {"nan": y * float("nan"), "inf": y + float("inf"), "dtype": y.double()}[self.kind]


class FailsInEvaluation(nn.Module):
    """Works on the two samples that a graft tries it on and in training; raises on a held-out batch."""

    def __init__(self, slot: Slot) -> None:
        super().__init__()
        self.linear = nn.Linear(slot.in_features, slot.out_features)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and len(x) > 2:
            raise RuntimeError("this kernel fails on purpose")
        y: Tensor = self.linear(x)
        return y


class FailingLibrary:
    """The library's face, with a failing kernel for every slot, of each kind in turn."""

    def __init__(self, *kinds: str) -> None:
        self.kinds = itertools.cycle(kinds or KINDS)
        self.trials: list[Any] = []

    def find(self, slot: Slot, **_: Any) -> list[KernelMetadata]:
        kind = next(self.kinds)
        self.slot = slot
        return [KernelMetadata(kind, "blueprint", (slot.in_features,), (slot.out_features,), 0.0, 0.5, ())]

    def fetch(self, kernel_id: str) -> Kernel:
        metadata = KernelMetadata(kernel_id, "blueprint", (1,), (1,), 0.0, 0.5, ())
        failing = FailsInEvaluation(self.slot) if kernel_id == "eval" else FailingKernel(self.slot, kernel_id)
        return Kernel(metadata, "{}", failing)

    def record_trial(self, report: Any, *_: str) -> None:
        self.trials.append(report)

    def prefetch(self, kernels: Iterable[KernelMetadata]) -> None:
        pass

    def tier_counts(self) -> dict[str, TierCounts]:
        return {}

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.02), ("adamw", 0.003)])
def test_a_thousand_faults_are_survived(tmp_path: Path, optimizer: str, rate: float) -> None:
    network = ["model.hidden=[32,32,32]", "kasmina.seeds=8", f"tolaria/optimizer={optimizer}"]
    training = ["tolaria.batch_size=240", "tolaria.epochs=44", f"tolaria.learning_rate={rate}"]
    cfg = compose(
        ["+experiment=smoke", "tamiyo=never", "urza=memory", f"runs={tmp_path}", *network, *training]
    )
    trainer = build_training(cfg).trainer
    orchestrator, library = trainer.orchestrator, FailingLibrary()
    orchestrator.library = library  # type: ignore[assignment]
    first = last = None
    for epoch in range(cfg.tolaria.epochs):
        packet = trainer.run_epoch(epoch)
        check_epoch(packet, (), trainer.limits)
        check_values(trainer.model, epoch, trainer.progress.global_step)
        first, last = first or packet, packet
        for layer, metrics in packet.layer_metrics.items():
            for idx, state in enumerate(metrics.seed_states):
                if (
                    state is SeedState.DORMANT
                    and len(orchestrator.seeds.reports) + len(orchestrator.seeds.trials) < FAULTS
                ):
                    assert orchestrator.apply(_decision(layer, idx), packet).status == "grafted"
    assert isinstance(first, SystemStatePacket)
    assert isinstance(last, SystemStatePacket)
    events, _ = read_journal(next(tmp_path.iterdir()) / JOURNAL_NAME)
    faults = [event for event in events if event["event"] == "fault"]
    assert len(faults) == FAULTS
    assert set(Counter(fault["kernel_id"] for fault in faults)) == set(KINDS)
    assert all(report.verdict == "failed" for report in orchestrator.seeds.reports)
    assert len(library.trials) == FAULTS
    assert not orchestrator.seeds.trials
    assert len(trainer.optimizer.param_groups) == 1
    assert set(trainer.optimizer.state) <= set(trainer.optimizer.param_groups[0]["params"])
    assert first_non_finite(trainer.model) is None
    assert all(
        torch.isfinite(v).all() for s in trainer.optimizer.state.values() for v in s.values() if v is not None
    )
    assert last.held_out_loss < first.held_out_loss / 2
    assert evaluate(trainer.model, trainer.held_out.x, trainer.held_out.y).accuracy > 0.9


@pytest.mark.parametrize("network", NETWORKS)
def test_faults_of_five_kinds_are_survived_in_every_kind_of_network(tmp_path: Path, network: str) -> None:
    """The long form: tests/drills/kernel_faults.py."""
    found = train(30, tmp_path, *NETWORKS[network])
    assert survived(found, 30), found


@pytest.mark.parametrize("stage", ["blending", "holding"])
def test_a_kernel_that_fails_in_evaluation_is_out_before_the_packet_and_the_checkpoint(
    tmp_path: Path, stage: str
) -> None:
    """In BLENDING it meets the epoch's own evaluation; in HOLDING, due at once, that of its verdict."""
    blending = {"blending": 3.0, "holding": 0.1}[stage]
    stages = ["tolaria.trial.training=0.1", f"tolaria.trial.blending={blending}", "tolaria.trial.holding=0.1"]
    cfg = compose(["+experiment=smoke", "tamiyo=never", "urza=memory", f"runs={tmp_path}", *stages])
    trainer = build_training(cfg).trainer
    orchestrator = trainer.orchestrator
    orchestrator.library = FailingLibrary("eval")  # type: ignore[assignment]
    first = trainer.run_epoch(0)
    outcome = orchestrator.apply(_decision("hidden.0", 1), first)
    assert outcome is not None
    assert outcome.status == "grafted"
    packet = trainer.run_epoch(1)
    assert packet.layer_metrics["hidden.0"].seed_states[1] is SeedState.ERROR_RECOVERY
    assert [(t.verdict, t.seed_idx) for t in packet.trials] == [("failed", 1)]
    assert not orchestrator.seeds.trials
    assert not any("seed" in group for group in trainer.optimizer.param_groups)
    assert trainer.run_epoch(2).layer_metrics["hidden.0"].seed_states[1] is SeedState.DORMANT
    events, _ = read_journal(next(tmp_path.iterdir()) / JOURNAL_NAME)
    woken = [event for event in events if event["event"] == "seed"][-1]
    assert (woken["from_state"], woken["to_state"]) == ("ERROR_RECOVERY", "DORMANT")


def _decision(layer: str, seed_idx: int) -> AdaptationDecision:
    grafting = {"site": "parallel", "blend": "residual", "alpha_blend": 1.0}
    parameters = {"seed_idx": seed_idx, "tags": [], "avoid": [], **grafting}
    return AdaptationDecision("add_seed", layer, parameters, 1.0, 0.0)
