"""What becomes of a decision: carried out, or refused with its reason, and never the end of the run."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from esper.assembly.training import build_training
from esper.messages import AdaptationDecision, SystemStatePacket
from esper.tolaria.orchestrator import SeedOrchestrator
from esper_cli.config import compose

PACKET = SystemStatePacket(
    epoch=0, global_step=0, loss=1.0, accuracy=0.5, layer_metrics={}, held_out_loss=1.0
)
WANTED = {"seed_idx": 0, "alpha_blend": 1.0, "site": "parallel", "blend": "residual", "tags": []}


@pytest.fixture(scope="module")
def orchestrator(tmp_path_factory: pytest.TempPathFactory) -> SeedOrchestrator:
    runs = f"runs={tmp_path_factory.mktemp('runs')}"
    only = "karn.paths=[blueprints/low_rank.yaml]"
    run = build_training(compose(["+experiment=smoke", "urza=memory", runs, only]))
    return run.trainer.orchestrator


def decision(layer: str = "hidden.0", kind: Any = "add_seed", **changed: Any) -> AdaptationDecision:
    return AdaptationDecision(kind, layer, {**WANTED, **changed}, 1.0, 0.0)


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (decision(kind="remove_seed"), "carries out add_seed, not remove_seed"),
        (decision("hidden.7"), "no seeded layer is called hidden.7"),
        (decision(seed_idx=99), "hidden.0 has no seed 99"),
        (decision(tags=["unheard-of"]), "no untried kernel for features 16->4 with unheard-of"),
    ],
)
def test_what_cannot_be_carried_out_is_refused_with_its_reason(
    orchestrator: SeedOrchestrator, wanted: AdaptationDecision, reason: str
) -> None:
    before = list(orchestrator.seeds.trials)
    outcome = orchestrator.apply(wanted, PACKET)
    assert outcome is not None
    assert (outcome.status, outcome.kernel_id) == ("refused", None)
    assert reason in outcome.reason
    assert list(orchestrator.seeds.trials) == before


def test_kernels_of_another_dtype_than_the_layer_are_not_looked_through(
    orchestrator: SeedOrchestrator,
) -> None:
    host = orchestrator.layers["hidden.1"].host
    host.double()
    outcome = orchestrator.apply(decision("hidden.1"), PACKET)
    host.float()
    assert outcome is not None
    assert outcome.status == "refused"
    assert outcome.reason.endswith("; 0 were tried")


def test_a_kernel_is_grafted_unless_it_is_to_be_avoided(orchestrator: SeedOrchestrator) -> None:
    outcome = orchestrator.apply(decision(), PACKET)
    assert outcome is not None
    assert outcome.status == "grafted"
    again = orchestrator.apply(decision(seed_idx=1, avoid=[outcome.kernel_id]), PACKET)
    assert again is not None
    assert again.status == "refused"
    assert "1 were tried" in again.reason


def damage(kernels: Path, digests: list[str]) -> None:
    """Replace stored bytes, as a disk may."""
    with closing(sqlite3.connect(kernels)) as database, database:
        database.executemany("update blobs set data = x'00' where digest = ?", [(d,) for d in digests])


def test_a_damaged_kernel_is_passed_over_for_the_next_in_rank(tmp_path: Path) -> None:
    kernels = tmp_path / "kernels.db"
    library = [f"urza.url=sqlite:///{kernels}", "urza.memory_bytes=0"]
    cfg = compose(["+experiment=smoke", f"runs={tmp_path / 'runs'}", *library])
    orchestrator = build_training(cfg).trainer.orchestrator
    best, second, *others = orchestrator.library.find(orchestrator.layers["hidden.0"].slot("parallel", 0))
    damage(kernels, [best.program_digest])
    outcome = orchestrator.apply(decision(), PACKET)
    assert outcome is not None
    assert (outcome.status, outcome.kernel_id) == ("grafted", second.kernel_id)
    assert f"passed over {best.kernel_id}: " in outcome.reason
    damage(kernels, [kernel.program_digest for kernel in (second, *others)])
    outcome = orchestrator.apply(decision(seed_idx=1), PACKET)
    assert outcome is not None
    assert (outcome.status, outcome.kernel_id) == ("refused", best.kernel_id)
    assert f"{len(others) + 1} more failed too" in outcome.reason


def test_a_kernel_in_training_costs_a_step_and_no_evaluation(tmp_path: Path) -> None:
    cfg = compose(
        ["+experiment=smoke", "urza=memory", f"runs={tmp_path}", "karn.paths=[blueprints/low_rank.yaml]"]
    )
    trainer = build_training(cfg).trainer
    before = trainer.flops()
    grafted = trainer.orchestrator.apply(decision(), PACKET)
    assert grafted is not None
    assert grafted.status == "grafted"
    assert trainer.flops() == before
    trainer.orchestrator.seeds.begin_epoch(1)
    after = trainer.flops()
    assert after.forward == before.forward
    assert after.training > before.training


def test_clipping_leaves_the_host_apart_from_a_kernel_in_isolation(tmp_path: Path) -> None:
    def host_after_an_epoch(runs: Path, *, grafted: bool) -> dict[str, Any]:
        clipped = ["tolaria.max_grad_norm=0.01", "tolaria.trial.training=9"]
        blueprint = "karn.paths=[blueprints/low_rank.yaml]"
        cfg = compose(["+experiment=smoke", "urza=memory", f"runs={runs}", blueprint, *clipped])
        trainer = build_training(cfg).trainer
        if grafted:
            trainer.orchestrator.apply(decision(), PACKET)
        trainer.run_epoch(0)
        return {name: value for name, value in trainer.model.state_dict().items() if "seeds" not in name}

    alone = host_after_an_epoch(tmp_path / "alone", grafted=False)
    beside = host_after_an_epoch(tmp_path / "beside", grafted=True)
    assert alone.keys() == beside.keys()
    assert all(torch.equal(alone[name], beside[name]) for name in alone)
