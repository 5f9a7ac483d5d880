"""Two processes train one network. The long form of stopping them: python -m drills.processes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from drills.processes import go_on
from drills.resume import EXPERIMENT
from drills.together import run_together

from esper.assembly.training import build_group, build_training
from esper.errors import ConfigError
from esper.nissa.journal import JOURNAL_NAME
from esper.nissa.journal_reader import read_journal
from esper.tolaria.averaging import parts
from esper.tolaria.distributed import ALONE
from esper_cli.config import compose

SHORT = "tolaria.epochs=7"

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = str(tmp_path_factory.mktemp("together"))
    return run_together(2, "integration.processes_support:all_of_it", folder)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The summary of the same run in one process."""
    return build_training(compose([*EXPERIMENT, f"runs={tmp_path_factory.mktemp('one')}", SHORT])).run()


def test_parts_of_a_batch_are_in_order_and_of_two_samples_at_least() -> None:
    for samples in range(1, 40):
        for wanted in range(1, 7):
            cut = parts(samples, wanted)
            assert [i for part in cut for i in range(samples)[part]] == list(range(samples))
            sizes = [part.stop - part.start for part in cut]
            assert min(sizes) >= min(2, samples)
            assert max(sizes) - min(sizes) <= 1


def test_how_many_processes_there_are_has_to_be_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match=r"tolaria\.processes=2, and this process was not started by torchrun"
    ):
        build_group(compose(["+experiment=smoke", "tolaria=ddp"]))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun started 2 processes") as refused:
        build_group(compose(["+experiment=smoke"]))
    assert refused.value.hint == "add tolaria=ddp"
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert build_group(compose(["+experiment=smoke", "tolaria=ddp"])) is ALONE


def test_gradients_and_statistics_are_those_of_the_whole_batch(found: Found) -> None:
    for each in found:
        assert each["gradients"]["furthest"] < 1e-6
        assert each["gradients"]["mean"] < 1e-6
    assert found[0]["gradients"]["digest"] == found[1]["gradients"]["digest"]


def test_processes_that_differ_are_found_and_an_error_of_the_first_is_raised_in_all(found: Found) -> None:
    first, second = (each["agreement"] for each in found)
    assert first == second
    assert "process 1 of 2 has other weights" in first["values"]
    assert first["raised"] == "asked for on purpose"
    assert "networks of different shapes" in first["shapes"]


def test_two_processes_follow_one_closely(found: Found, one: dict[str, Any]) -> None:
    two, other = found[0]["plain"], found[1]["plain"]
    assert two["digests"] == [two["digests"][0]] * 2
    assert [a["verdict"] for a in two["adaptations"]] == [a["verdict"] for a in one["adaptations"]]
    assert [a["kernel_id"] for a in two["adaptations"]] == [a["kernel_id"] for a in one["adaptations"]] != []
    for split in ("held_out", "test"):
        assert two[split]["loss"] == pytest.approx(one[split]["loss"], abs=2e-3)
        assert two[split] == other[split]
    assert (two["steps"], two["training_flops"]) == (one["steps"], one["training_flops"])


def test_what_policies_are_told_is_that_of_one_process(found: Found, one: dict[str, Any]) -> None:
    def signals(folder: str) -> list[tuple[float, float]]:
        events, _ = read_journal(Path(folder) / JOURNAL_NAME)
        told = [event["packet"]["layer_metrics"] for event in events if event["event"] == "epoch"]
        return [(m["gradient_norm"], m["activation_variance"]) for each in told for m in each.values()]

    for ours, theirs in zip(signals(found[0]["plain"]["folder"]), signals(one["folder"]), strict=True):
        assert ours == pytest.approx(theirs, rel=0.05)


def test_stopped_and_gone_on_with_it_ends_with_the_same_weights_in_each_process(found: Found) -> None:
    stopped = found[0]["stopped"]
    want = stopped["whole"]["digests"]
    assert want == [want[0]] * 2
    assert len(stopped["resumed"]) == 2
    for step, summary in stopped["resumed"].items():
        assert summary["digests"] == want, step
        assert summary["adaptations"] == stopped["whole"]["adaptations"]


def test_a_checkpoint_of_two_goes_on_in_one(found: Found, tmp_path: Path) -> None:
    whole = found[0]["stopped"]["whole"]
    gone_on = go_on(ALONE, whole["folder"], str(tmp_path), whole["steps"] // 2, SHORT)
    assert gone_on["steps"] == whole["steps"]
    assert gone_on["held_out"]["loss"] == pytest.approx(whole["held_out"]["loss"], abs=0.2)


def test_a_kernel_that_fails_in_one_is_taken_out_in_all(found: Found) -> None:
    first, second = (each["fault"] for each in found)
    assert first["states"] == second["states"]
    assert first["digest"] == second["digest"]
    assert first["verdicts"] == second["verdicts"]
    assert first["verdicts"][0] == "failed"
    assert math.isfinite(first["held_out"]["loss"])
    events, _ = read_journal(Path(first["folder"]) / JOURNAL_NAME)
    faults = [event for event in events if event["event"] == "fault"]
    assert [fault["kind"] for fault in faults] == ["non-finite"]


def test_all_go_back_from_a_poisoned_batch_together(found: Found) -> None:
    first, second = (each["poisoned"] for each in found)
    assert first["skipped"] == second["skipped"] == [[3, 5]]
    assert first["digest"] == second["digest"]
    events, _ = read_journal(Path(first["folder"]) / JOURNAL_NAME)
    assert [event["event"] for event in events].count("rollback") == 1


def test_the_first_alone_writes(found: Found) -> None:
    events, _ = read_journal(Path(found[0]["plain"]["folder"]) / JOURNAL_NAME)
    names = [event["event"] for event in events]
    assert names.count("run_started") == names.count("run_finished") == 1
    assert names.count("epoch") == 7
    assert found[0]["plain"]["folder"] == found[1]["plain"]["folder"]


def test_processes_pause_go_back_and_go_on_together(found: Found) -> None:
    first, second = (each["asked"] for each in found)
    assert first["done"] == [["pause", "done", 4], ["rollback", "done", 3], ["resume", "done", 3]]
    assert first["digest"] == second["digest"]
    assert first["epochs"] == second["epochs"] == 7
    assert first["steps"] == first["epochs"] * found[0]["plain"]["steps"] // 7
