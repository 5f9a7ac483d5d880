"""A growing run and its control are the same run, bit for bit, until the first adaptation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from esper.assembly.training import build_training
from esper.errors import CheckpointError, ConfigError, Instability, RunError
from esper.nissa.journal import JOURNAL_NAME, is_being_written
from esper.nissa.journal_reader import read_journal
from esper_cli.config import compose

SMALL = ["+experiment=smoke", "urza=memory", "tolaria.epochs=8", "karn.paths=[blueprints/low_rank.yaml]"]
EAGER = ["tamiyo.first_epoch=3", "tamiyo.max_trials_at_once=1", "tamiyo.min_confidence=0.0"]


def config(runs: Path, *overrides: str) -> DictConfig:
    return compose([*SMALL, f"runs={runs}", *overrides])


def train(cfg: DictConfig) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    summary = build_training(cfg).run()
    events, _ = read_journal(Path(summary["folder"]) / JOURNAL_NAME)
    return summary, events


def interrupted(cfg: DictConfig, epoch: int) -> str:
    """The id of a run that is stopped in the midst of ``epoch``."""
    run = build_training(cfg)

    def interrupt(event: str, fields: Any) -> None:
        if event == "step" and fields["epoch"] == epoch and fields["step"] > 0:
            raise KeyboardInterrupt

    run.trainer.recorder.listeners = (interrupt,)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    return run.info.run_id


def losses(events: list[dict[str, Any]]) -> list[tuple[float, float]]:
    packets = [event["packet"] for event in events if event["event"] == "epoch"]
    return [(packet["loss"], packet["held_out_loss"]) for packet in packets]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return train(config(tmp_path_factory.mktemp("grown"), *EAGER))


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return train(config(tmp_path_factory.mktemp("control"), "tamiyo=never"))


def test_equal_until_the_first_graft_and_different_after_its_blend(grown: Any, control: Any) -> None:
    first = next(e["epoch"] for e in grown[1] if e["event"] == "decision")
    one, other = losses(grown[1]), losses(control[1])
    assert first >= 3
    assert one[: first + 1] == other[: first + 1]
    assert one[first + 2] != other[first + 2]


def test_the_same_configuration_gives_the_same_weights(grown: Any, tmp_path: Path) -> None:
    again, _ = train(config(tmp_path, *EAGER))
    assert again["weights_sha256"] == grown[0]["weights_sha256"]


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(grown: Any, tmp_path: Path) -> None:
    cfg = config(tmp_path, *EAGER)
    stop_in = next(e["epoch"] for e in grown[1] if e["event"] == "decision") + 1
    resumed = build_training(cfg, resume=interrupted(cfg, stop_in)).run()
    assert resumed["weights_sha256"] == grown[0]["weights_sha256"]
    assert [a["verdict"] for a in resumed["adaptations"]] == [a["verdict"] for a in grown[0]["adaptations"]]


@pytest.mark.parametrize("epoch", [1, 4])
def test_a_resumed_run_tells_its_policy_the_same(grown: Any, tmp_path: Path, epoch: int) -> None:
    """What a decision depends on, and not only the weights, is that of the uninterrupted run."""
    cfg = config(tmp_path, *EAGER)
    resumed = build_training(cfg, resume=interrupted(cfg, epoch)).run()
    events, _ = read_journal(Path(resumed["folder"]) / JOURNAL_NAME)

    def told(events: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
        packets = {e["packet"]["epoch"]: e["packet"] for e in events if e["event"] == "epoch"}
        for packet in packets.values():
            for metrics in packet["layer_metrics"].values():
                for signal in metrics["signals"]:
                    signal.pop("latency_ms", None)  # a clock, not the network
        return packets

    assert told(events) == told(grown[1])


def test_a_finished_run_is_left_as_it_is_unless_it_gets_more_epochs(tmp_path: Path) -> None:
    cfg = config(tmp_path, "tamiyo=never", "tolaria.epochs=2")
    summary, events = train(cfg)
    run_id = summary["run_id"]
    for epochs in (2, 1):
        cfg.tolaria.epochs = epochs
        with pytest.raises(RunError, match=f"has done 2 epochs, and tolaria.epochs is {epochs}"):
            build_training(cfg, resume=run_id)
    assert read_journal(tmp_path / run_id / JOURNAL_NAME)[0] == events
    cfg.tolaria.epochs = 3
    assert build_training(cfg, resume=run_id).run()["epochs"] == 3


def test_a_run_that_ended_before_its_summary_gets_one(tmp_path: Path) -> None:
    cfg = config(tmp_path, "tamiyo=never", "tolaria.epochs=2")
    summary, _ = train(cfg)
    (tmp_path / summary["run_id"] / "summary.json").unlink()
    assert build_training(cfg, resume=summary["run_id"]).run()["epochs"] == 2
    assert (tmp_path / summary["run_id"] / "summary.json").exists()


def test_what_is_overridden_on_resuming_counts(tmp_path: Path) -> None:
    cfg = config(tmp_path, "tamiyo=never", "tolaria.learning_rate=0.1", "tolaria.schedule.hold_until=1")
    run_id = interrupted(cfg, 2)
    cfg.tolaria.learning_rate = 0.03
    run = build_training(cfg, resume=run_id)
    run.run()
    events, _ = read_journal(run.info.folder / JOURNAL_NAME)
    rates = [event["packet"]["learning_rate"] for event in events if event["event"] == "epoch"]
    assert rates == pytest.approx([0.1, 0.1, *[0.03] * 6])


@pytest.mark.parametrize(("key", "value"), [("model.hidden", [17, 17]), ("kasmina.include", ["hidden.0"])])
def test_a_checkpoint_of_another_network_is_one_clear_error(tmp_path: Path, key: str, value: Any) -> None:
    cfg = config(
        tmp_path, *EAGER, "tolaria.batch_size=512", "tamiyo.first_epoch=0", "tamiyo.detector.window=3"
    )
    run = build_training(cfg)
    OmegaConf.update(cfg, key, value)
    run_id = run.info.run_id
    run.run()
    with pytest.raises(CheckpointError, match="does not fit this network"):
        build_training(cfg, resume=run_id)
    assert not is_being_written(run.info.folder / JOURNAL_NAME)


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", -1), ("tolaria.trial.training", float("nan")), ("tolaria.trial.kernel_lr_scale", -1.0)],
)
def test_a_number_that_no_run_can_be_made_of_leaves_no_folder(tmp_path: Path, key: str, value: float) -> None:
    cfg = config(tmp_path / "runs")
    OmegaConf.update(cfg, key, value)
    with pytest.raises(ConfigError, match=f"{key} must be at least 0, not {value}"):
        build_training(cfg)
    assert not (tmp_path / "runs").exists()


def test_a_seed_lives_its_whole_life_by_evidence(grown: Any) -> None:
    seed_events = [e for e in grown[1] if e["event"] == "seed"]
    first = seed_events[0]
    life = [
        (e["from_state"], e["to_state"])
        for e in seed_events
        if (e["layer"], e["seed_idx"], e["kernel_id"])
        == (first["layer"], first["seed_idx"], first["kernel_id"])
    ]
    assert [to for _, to in life[:4]] == ["GERMINATED", "TRAINING", "BLENDING", "HOLDING"]
    verdict = next(e for e in seed_events if e["to_state"] in ("FOSSILIZED", "CULLED"))
    kept = verdict["evidence"]["gain_lower"] > verdict["evidence"]["threshold"]
    assert kept is (verdict["to_state"] == "FOSSILIZED")
    assert verdict["evidence"]["split"] == "held_out"


def test_the_journal_names_the_kernel_of_each_decision(grown: Any) -> None:
    decisions = [e for e in grown[1] if e["event"] == "decision"]
    assert decisions
    for event in decisions:
        assert event["decision"]["parameters"]["kernel_id"] == event["outcome"]["kernel_id"] is not None


def test_training_that_diverges_ends_with_the_reason(tmp_path: Path) -> None:
    run = build_training(config(tmp_path, "tamiyo=never", "tolaria.learning_rate=1e9"))
    with pytest.raises(Instability, match=r"unstable in epoch 1.* 3 rollbacks did not help"):
        run.run()
    events, _ = read_journal(run.info.folder / JOURNAL_NAME)
    assert events[-1]["event"] == "run_failed"


def test_parameters_and_flops_grow_with_kept_seeds_only(grown: Any, control: Any) -> None:
    kept = [a for a in grown[0]["adaptations"] if a["verdict"] == "kept"]
    on_trial = grown[0]["seeds"]
    added = grown[0]["end"]["parameters"] - grown[0]["start"]["parameters"]
    assert control[0]["end"] == control[0]["start"]
    if set(on_trial) <= {"DORMANT", "FOSSILIZED", "EMBARGOED"}:
        assert added == sum(a["parameters"] for a in kept)


@pytest.mark.parametrize("name", ["resnet", "smoke", "mlp", "transformer"])
def test_every_shipped_experiment_has_its_control(name: str) -> None:
    grown, control = compose([f"+experiment={name}"]), compose([f"+experiment={name}", "tamiyo=never"])
    assert control.tamiyo == {"_target_": "esper.tamiyo.never.NeverGrow"}
    assert {k: v for k, v in grown.items() if k != "tamiyo"} == {
        k: v for k, v in control.items() if k != "tamiyo"
    }
