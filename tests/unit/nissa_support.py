"""Writes journals as a training run does."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from esper.messages import (
    AdaptationDecision,
    EpochRecord,
    FieldReport,
    LayerMetrics,
    SeedState,
    Slot,
    SystemStatePacket,
)
from esper.nissa.journal import JOURNAL_NAME, Journal

LAYERS = {"stage1": {"kind": "conv2d", "seeds": 2}, "head": {"kind": "linear", "seeds": 1}}
DORMANT = (SeedState.DORMANT, SeedState.DORMANT)


def packet(epoch: int, loss: float = 0.5, states: tuple[SeedState, ...] = DORMANT) -> dict[str, Any]:
    layer = LayerMetrics(
        gradient_norm=0.1, activation_variance=1.0, seed_health=(0.9, 0.8), seed_states=states
    )
    return SystemStatePacket(
        epoch=epoch,
        global_step=epoch * 10,
        loss=loss,
        accuracy=0.5 + epoch / 100,
        held_out_loss=loss + 0.1,
        total_epochs=10,
        layer_metrics={"stage1": layer},
        history=(EpochRecord(epoch, loss, loss, 0.5),),
    ).to_json()


def report(ended_epoch: int, seed_idx: int = 0, kernel_id: str = "kernel_a", **changes: Any) -> FieldReport:
    fields: dict[str, Any] = {
        "layer": "stage1",
        "layer_kind": "conv2d",
        "seed_idx": seed_idx,
        "slot": Slot("channels", 4, 4),
        "site": "series",
        "kernel_id": kernel_id,
        "blueprint_id": "blueprint_a",
        "started_epoch": 1,
        "ended_epoch": ended_epoch,
        "verdict": "kept",
        "reason": "gain 0.03 +- 0.01",
        "expected_impact": 0.1,
        "gain": 0.03,
        "gain_error": 0.01,
        "threshold": 0.0,
        "loss_before": 1.0,
        "loss_after": 0.9,
        "accuracy_before": 0.5,
        "accuracy_after": 0.6,
        "parameters": 10,
    }
    return FieldReport(**{**fields, **changes})


class RunWriter(Journal):
    """A journal with one method for each kind of event."""

    def __init__(self, root: Path, run_id: str) -> None:
        (root / run_id).mkdir(parents=True, exist_ok=True)
        super().__init__(root / run_id / JOURNAL_NAME, fsync=False)
        self.run_id = run_id

    def started(self, resumed_from_epoch: int | None = None, experiment: str = "resnet") -> None:
        self.write(
            "run_started",
            run_id=self.run_id,
            experiment=experiment,
            task="fashion",
            seed=7,
            resumed_from_epoch=resumed_from_epoch,
            parameters=19810,
            flops_per_sample=1.5e6,
            total_epochs=10,
            layers=LAYERS,
        )

    def epoch(self, epoch: int, loss: float = 0.5, states: tuple[SeedState, ...] = DORMANT) -> None:
        self.write(
            "epoch",
            packet=packet(epoch, loss, states),
            seconds=1.5,
            samples_per_second=1000.0,
            training_flops=1e9,
        )

    def decision(
        self, epoch: int, status: str = "grafted", seed_idx: int = 0, kernel_id: str | None = "kernel_a"
    ) -> None:
        decision = AdaptationDecision(
            "add_seed",
            "stage1",
            {"seed_idx": seed_idx},
            confidence=0.87,
            expected_impact=0.15,
            reason="plateau",
        )
        outcome = {"status": status, "kernel_id": kernel_id, "reason": "" if kernel_id else "no kernel fits"}
        self.write("decision", epoch=epoch, decision=decision.to_json(), outcome=outcome)

    def seed(self, epoch: int, to_state: SeedState, seed_idx: int = 0, kernel_id: str = "kernel_a") -> None:
        self.write(
            "seed",
            epoch=epoch,
            layer="stage1",
            seed_idx=seed_idx,
            kernel_id=kernel_id,
            from_state=SeedState.DORMANT,
            to_state=to_state,
            evidence={"gain": 0.03},
        )

    def trial(self, ended_epoch: int, **changes: Any) -> None:
        self.write("trial", report=asdict(report(ended_epoch, **changes)))

    def rollback(self, to_epoch: int, **changes: Any) -> None:
        fields: dict[str, Any] = {
            "cause": "batch",
            "target": "",
            "kind": "non-finite loss",
            "detail": "the loss is nan",
            "epoch": 3,
            "from_step": 34,
            "to_step": 10 * to_epoch,
            "to_epoch": to_epoch,
            "seconds": 0.25,
            "seeds": [("stage1", 0)],
            "skipped": (3, 4),
        }
        self.write("rollback", **{**fields, **changes})

    def fault(self, epoch: int, kind: str = "raised") -> None:
        self.write(
            "fault",
            epoch=epoch,
            layer="stage1",
            seed_idx=0,
            kernel_id="kernel_a",
            kind=kind,
            message='bad "x"\n',
        )
