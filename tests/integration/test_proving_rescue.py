"""``esper prove mode=rescue``: a trained network grown, trained on, or left for a larger one."""

from __future__ import annotations

from typing import Any

import proving_support as support
import pytest
import yaml

from esper_cli.rescue_plot import plot_rescue

RESCUE = ["mode=rescue", "prove.rescue.epochs=2", "prove.rescue.learning_rate=0.03125"]


@pytest.fixture(scope="module", params=sorted(support.HOSTS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The overrides of a finished rescue, its folder, and what it says."""
    folder = tmp_path_factory.mktemp(request.param) / "rescue"
    given = support.overrides(request.param, folder, *RESCUE, "tolaria.epochs=1")
    return given, folder, support.ran(given)


def test_every_arm_has_every_seed_and_is_reported(made):
    given, folder, proof = made
    assert [arm["arm"] for arm in proof["arms"]] == ["base", "train_on", "grown", "large"]
    for arm in proof["arms"]:
        assert sorted(support.runs_of(proof, arm["arm"])) == [100, 101]
    assert set(proof["differences"]) == {"base", "train_on", "large"}
    assert proof["arms"][0]["training_flops"] == 0 < proof["base_flops"]
    report = (folder / "report.md").read_text()
    assert "grown against" in report.lower() or "grown is" in report.lower()
    assert "| large, from scratch |" in report
    plot_rescue(proof, folder / "plot.png")
    assert (folder / "plot.png").stat().st_size > 20_000
    seen: list[Any] = []
    again = support.ran(given, lambda job, *_: seen.append(job))
    assert seen == []
    assert support.numbers(again) == support.numbers(proof)


def test_the_others_get_what_growing_took(made):
    given, folder, proof = made
    for seed, grown in support.runs_of(proof, "grown").items():
        assert list(grown["adapted_at"]) == [0.5]
        for arm in ("train_on", "large"):
            run = support.runs_of(proof, arm)[seed]
            least = grown["training_flops"] - support.step_flops(given, folder, run)
            assert least < run["training_flops"] <= grown["training_flops"]
        assert support.runs_of(proof, "large")[seed]["parameters"] >= grown["parameters"]


def test_growing_and_training_on_start_from_the_base_of_their_seed(made):
    _, folder, proof = made
    base = support.runs_of(proof, "base")
    train_on = support.runs_of(proof, "train_on")
    for seed, grown in support.runs_of(proof, "grown").items():
        ours, decided = support.epochs_of(folder, grown)
        theirs, _ = support.epochs_of(folder, train_on[seed])
        assert decided == 0
        assert ours[0] == pytest.approx(theirs[0], rel=0.05)  # the rates of a budget differ a little
        first, _ = support.epochs_of(folder, base[seed])
        assert ours[0][0] < first[0][0]
        assert base[seed]["parameters"] == train_on[seed]["parameters"] < grown["parameters"]
        for run in (grown, train_on[seed]):
            saved = yaml.safe_load((folder / run["run"] / "config.yaml").read_text())
            assert saved["tolaria"]["start"] == str(folder / base[seed]["run"])


def test_rates_and_epochs_are_those_of_the_rescue_only_where_they_should_be(made):
    _, folder, proof = made
    rates, epochs = {}, {}
    for run in proof["runs"]:
        saved = yaml.safe_load((folder / run["run"] / "config.yaml").read_text())["tolaria"]
        rates.setdefault(run["arm"], set()).add(saved["learning_rate"])
        epochs.setdefault(run["arm"], set()).add(len(run["curve"]))
    assert rates["grown"] == rates["train_on"] == {0.03125}
    assert rates["base"] == rates["large"]
    assert rates["base"] != {0.03125}
    assert (epochs["base"], epochs["grown"]) == ({1}, {2})
