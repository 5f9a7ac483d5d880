"""Policies in real runs: what they may read, and that each can be chosen in every experiment."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch

import esper.assembly.training as training
from esper.assembly.configured import configured
from esper.data.splits import Split
from esper.messages import AdaptationDecision, SystemStatePacket
from esper.nissa.journal import JOURNAL_NAME
from esper.nissa.journal_reader import read_journal
from esper_cli.config import compose, experiments

OPTIONS = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "tamiyo").glob("*.yaml"))
PACKET = SystemStatePacket(0, 0, 1.0, 0.5, {}, held_out_loss=1.0)


@pytest.mark.parametrize(("option", "experiment"), [*zip(OPTIONS, cycle(experiments()), strict=False)])
def test_policies_compose_with_experiments(option: str, experiment: str) -> None:
    cfg = compose([f"+experiment={experiment}", f"tamiyo={option}", "seed=3"])
    policy = configured(cfg, "tamiyo")
    assert policy.decide(PACKET) is None
    assert getattr(policy, "seed", 3) == 3  # draws follow the seed of the run


def trained(runs: Path, *overrides: str) -> tuple[dict[str, Any], list[Any]]:
    cfg = compose(["+experiment=smoke", "urza=memory", f"runs={runs}", "tolaria.epochs=8", *overrides])
    summary = training.build_training(cfg).run()
    events, _ = read_journal(Path(summary["folder"]) / JOURNAL_NAME)
    return summary, [event["decision"] for event in events if event["event"] == "decision"]


@pytest.mark.parametrize("option", ["eager", "random"])
def test_a_test_split_of_noise_changes_no_decision_and_no_weight(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [f"tamiyo={option}", "karn.paths=[blueprints/low_rank.yaml]"]
    clean, decisions = trained(tmp_path / "clean", *overrides)
    build = training.build_data

    def spoiled(cfg: Any) -> Any:
        data = build(cfg)
        test = Split(torch.full_like(data.test.x, torch.nan), (data.test.y + 1) % 10)
        return replace(data, test=test)

    monkeypatch.setattr(training, "build_data", spoiled)
    noisy, same = trained(tmp_path / "noisy", *overrides)
    assert not noisy["test"]["loss"] > 0  # NaN: the spoiled split was the one that is reported
    assert decisions
    assert same == decisions
    assert noisy["weights_sha256"] == clean["weights_sha256"]


def test_the_trainer_holds_no_test_split(tmp_path: Path) -> None:
    cfg = compose(["+experiment=smoke", "urza=memory", f"runs={tmp_path}"])
    run = training.build_training(cfg)
    own = {tensor.data_ptr() for tensor in _tensors(run.trainer, set())}
    assert run.trainer.held_out.x.data_ptr() in own  # the walk finds what is there
    assert not own & {run.test.x.data_ptr(), run.test.y.data_ptr()}


def _tensors(thing: Any, seen: set[int]) -> list[torch.Tensor]:
    """Every tensor that can be reached from ``thing`` by attributes and containers."""
    if id(thing) in seen:
        return []
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        return [thing]
    inner: list[Any] = []
    if isinstance(thing, dict):
        inner = list(thing.values())
    elif isinstance(thing, (list, tuple, set)):
        inner = list(thing)
    elif type(thing).__module__.startswith(("esper", "torch.optim", "torch.nn")):
        inner = list(getattr(thing, "__dict__", {}).values())
        inner += [getattr(thing, name, None) for name in getattr(type(thing), "__slots__", ())]
    return [tensor for item in inner for tensor in _tensors(item, seen)]


def decision(choice_seed: int) -> AdaptationDecision:
    parameters = {
        "seed_idx": 0,
        "alpha_blend": 1.0,
        "site": "parallel",
        "blend": "residual",
        "tags": [],
        "choice": "random",
        "choice_seed": choice_seed,
    }
    return AdaptationDecision("add_seed", "hidden.0", parameters, 0.7, 0.02)


def test_a_random_choice_takes_any_kernel_and_the_same_one_again(tmp_path: Path) -> None:
    cfg = compose(["+experiment=smoke", "urza=memory", f"runs={tmp_path}"])
    orchestrator = training.build_training(cfg).trainer.orchestrator
    orders = {
        choice_seed: [kernel.kernel_id for kernel in orchestrator._find(decision(choice_seed))[1]]
        for choice_seed in range(60)
    }
    assert {order[0] for order in orders.values()} == set(orders[0])
    assert len(orders[0]) > 3
    assert [kernel.kernel_id for kernel in orchestrator._find(decision(7))[1]] == orders[7]


def test_the_report_carries_the_confidence_and_the_tags(tmp_path: Path) -> None:
    cfg = compose(["+experiment=smoke", "urza=memory", f"runs={tmp_path}"])
    orchestrator = training.build_training(cfg).trainer.orchestrator
    outcome = orchestrator.apply(decision(1), PACKET)
    assert outcome is not None
    assert outcome.kernel_id is not None
    trial = orchestrator.seeds.trials["hidden.0", 0]
    assert trial.confidence == 0.7
    assert trial.tags == orchestrator.library.get(outcome.kernel_id).tags
    assert type(trial).from_state(trial.state()) == trial
