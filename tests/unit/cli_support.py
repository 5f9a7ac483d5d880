"""The events of a short run as training emits them, and a run's folder made from them."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from esper.messages import AdaptationDecision, FieldReport, LayerMetrics, SeedState, Slot, SystemStatePacket
from esper.nissa.journal import JOURNAL_NAME, Journal

RUN_ID = "20261123-181502-resnet-3f2a"
KERNEL = "kernel_0123456789abcdef"
LAYERS = [f"stage{stage}.0.conv{conv}" for stage in (1, 2, 3) for conv in (1, 2)]
LIVE_ONLY = ("step", "compile", "message")

Event = tuple[str, dict[str, Any]]


def report(layer: str, seed_idx: int, epochs: tuple[int, int], verdict: Any, gain: float) -> FieldReport:
    return FieldReport(
        layer=layer,
        layer_kind="conv2d",
        seed_idx=seed_idx,
        slot=Slot("channels", 4, 4),
        site="parallel",
        kernel_id=KERNEL,
        blueprint_id="blueprint_0123456789abcdef",
        started_epoch=epochs[0],
        ended_epoch=epochs[1],
        verdict=verdict,
        reason=f"gain {gain:.4f} +- 0.0021 nats, lower bound {gain - 0.0035:.4f}",
        expected_impact=0.02,
        gain=gain,
        gain_error=0.0021,
        threshold=0.0,
        loss_before=0.412,
        loss_after=0.398,
        accuracy_before=0.852,
        accuracy_after=0.861,
        parameters=120,
    )


def decision(layer: str, seed_idx: int) -> dict[str, Any]:
    return AdaptationDecision(
        "add_seed",
        layer,
        {"seed_idx": seed_idx, "alpha_blend": 0.3, "site": "parallel", "blend": "residual", "tags": ["conv"]},
        confidence=0.87,
        expected_impact=0.031,
        reason="the held-out loss fell 0.3 % in 3 epochs",
        evidence={"slope": -0.0012},
        alternatives=({"layer": "stage2.0.conv1", "score": 0.61},),
    ).to_json()


def packet(epoch: int, total: int, states: dict[str, list[SeedState]]) -> dict[str, Any]:
    loss = 1.5 * math.exp(-epoch / 4) + 0.25
    metrics = {
        name: LayerMetrics(0.1, 0.8, (0.9,) * 4, "conv2d", 500, tuple(states[name])) for name in LAYERS
    }
    return SystemStatePacket(
        epoch=epoch,
        global_step=(epoch + 1) * 80,
        loss=loss,
        accuracy=0.9 - 0.4 * math.exp(-epoch / 3),
        layer_metrics=metrics,
        held_out_loss=loss + 0.05,
        total_epochs=total,
        learning_rate=0.1,
    ).to_json()


def seed(epoch: int, layer: str, seed_idx: int, before: str, after: str) -> Event:
    fields = {"layer": layer, "seed_idx": seed_idx, "kernel_id": KERNEL, "evidence": {}}
    return "seed", {"epoch": epoch, **fields, "from_state": before, "to_state": after}


def events(total: int = 12) -> Iterator[Event]:
    """A run in which one seed is kept, one culled, one decision refused and one fault contained."""
    yield (
        "run_started",
        {
            "run_id": RUN_ID,
            "experiment": "resnet",
            "task": "fashion",
            "seed": 0,
            "resumed_from_epoch": None,
            "parameters": 19810,
            "flops_per_sample": 1.2e6,
            "total_epochs": total,
            "layers": {name: {"kind": "conv2d", "seeds": 4} for name in LAYERS},
        },
    )
    states = {name: [SeedState.DORMANT] * 4 for name in LAYERS}
    grafted = {"status": "grafted", "kernel_id": KERNEL, "reason": None}
    refused = {"status": "refused", "kernel_id": None, "reason": "no compatible kernel in the library"}
    for epoch in range(total):
        for step in range(0, 80, 20):
            yield "step", {"epoch": epoch, "step": step, "steps": 80, "loss": 1.0 / (epoch + 1)}
        if epoch == 6:
            states[LAYERS[0]][2] = SeedState.FOSSILIZED
            yield seed(epoch, LAYERS[0], 2, "HOLDING", "FOSSILIZED")
            yield "trial", {"report": asdict(report(LAYERS[0], 2, (4, 6), "kept", 0.012))}
        if epoch == 10:
            states[LAYERS[5]][0] = SeedState.EMBARGOED
            yield "trial", {"report": asdict(report(LAYERS[5], 0, (8, 10), "culled", 0.001))}
        yield (
            "epoch",
            {
                "packet": packet(epoch, total, states),
                "seconds": 4.2,
                "samples_per_second": 2380.0,
                "training_flops": 1e10 * (epoch + 1),
            },
        )
        if epoch in (4, 8):
            layer, seed_idx = (LAYERS[0], 2) if epoch == 4 else (LAYERS[5], 0)
            yield "decision", {"epoch": epoch, "decision": decision(layer, seed_idx), "outcome": grafted}
            states[layer][seed_idx] = SeedState.GERMINATED
            yield seed(epoch, layer, seed_idx, "DORMANT", "GERMINATED")
        if epoch == 9:
            yield "decision", {"epoch": epoch, "decision": decision(LAYERS[3], 1), "outcome": refused}
            fault = {"layer": LAYERS[5], "seed_idx": 0, "kernel_id": KERNEL, "kind": "non-finite"}
            yield "fault", {"epoch": epoch, **fault, "message": "the output holds inf"}
        yield "checkpoint", {"epoch": epoch, "path": f"checkpoints/epoch-{epoch:05d}.pt"}
    yield (
        "run_finished",
        {
            "summary": {
                "run_id": RUN_ID,
                "start": {"parameters": 19810, "flops_per_sample": 1.2e6},
                "end": {"parameters": 20130, "flops_per_sample": 1.31e6},
                "training_flops": 1.2e11,
                "seconds": 52.3,
                "test": {"loss": 0.41, "accuracy": 0.874},
            }
        },
    )


def make_run(root: Path, run_id: str = RUN_ID, total: int = 12) -> Path:
    """A run's folder with the journal of ``events``."""
    folder = root / run_id
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("experiment: resnet\nseed: 0\ntamiyo: {first_epoch: 3}\n")
    with Journal(folder / JOURNAL_NAME, fsync=False) as journal:
        for event, fields in events(total):
            if event not in LIVE_ONLY:
                journal.write(event, **fields)
    return folder
