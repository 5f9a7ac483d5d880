"""``esper prove`` on cut-down experiments: its arms, their budgets, and what is kept between calls."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import forked
import proving_support as support
import pytest

import esper.tolaria.evaluation
import esper.tolaria.run
from esper.assembly.network import build_data
from esper.assembly.proving.proof import Proof
from esper.errors import ConfigError, RunError
from esper.proof.report import markdown
from esper_cli.config import compose
from esper_cli.proof_plot import plot_proof

EVERY = {"grown", "small", "small_flops", "large", "large_flops"}


class Measured:
    """Counts evaluations by how many samples they are of, and lets them through."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.counts: dict[int, int] = {}
        evaluate = esper.tolaria.evaluation.evaluate

        def counted(model: Any, x: Any, y: Any, batch_size: int = 500) -> Any:
            self.counts[len(y)] = self.counts.get(len(y), 0) + 1
            return evaluate(model, x, y, batch_size)

        patch.setattr(esper.tolaria.evaluation, "evaluate", counted)


@pytest.fixture(scope="module", params=sorted(support.HOSTS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The overrides of a finished proof, its folder, what it says, and how often each split was measured."""
    folder = tmp_path_factory.mktemp(request.param) / "proof"
    given = support.overrides(request.param, folder)
    with pytest.MonkeyPatch.context() as patch:
        measured = Measured(patch)
        return given, folder, support.ran(given), measured.counts


def test_every_arm_has_every_seed(made):
    given, folder, proof, _ = made
    random = {"random"} if "prove.random=false" not in given else set()
    arms = [arm["arm"] for arm in proof["arms"]]
    sweep = {arm for arm in arms if arm.startswith("sweep-")}
    assert set(arms) - sweep == EVERY | random
    assert bool(sweep) == ("tamiyo=widen" in given)  # a single kernel leaves no width between
    for arm in arms:
        assert sorted(support.runs_of(proof, arm)) == [100, 101]
    assert set(proof["differences"]) == set(arms) - {"grown"}
    assert json.loads((folder / "proof.json").read_text()) == json.loads(json.dumps(proof))
    assert (folder / "report.md").read_text() == markdown(proof)
    plot_proof(proof, folder / "plot.png")
    assert (folder / "plot.png").stat().st_size > 20_000


def test_growth_happens_and_large_is_just_as_large(made):
    _, _, proof, _ = made
    grown, small, large = (support.runs_of(proof, arm) for arm in ("grown", "small", "large"))
    for seed, run in grown.items():
        assert list(run["adapted_at"]) == [0.5]
        assert small[seed]["parameters"] < run["parameters"] <= large[seed]["parameters"]
    for run in support.runs_of(proof, "random").values():
        assert list(run["adapted_at"]) == [0.5]


def test_budgets_are_kept_and_used(made):
    given, folder, proof, _ = made
    grown = support.runs_of(proof, "grown")
    budgeted = [r for r in proof["runs"] if r["arm"].endswith("_flops") or r["arm"].startswith("sweep-")]
    assert budgeted
    for run in budgeted:
        budget = grown[run["seed"]]["training_flops"]
        assert budget - support.step_flops(given, folder, run) < run["training_flops"] <= budget, run["arm"]


def test_paired_runs_are_equal_until_the_first_adaptation(made):
    _, folder, proof, _ = made
    small = support.runs_of(proof, "small")
    for seed, run in support.runs_of(proof, "grown").items():
        ours, decided = support.epochs_of(folder, run)
        theirs, _ = support.epochs_of(folder, small[seed])
        assert ours[: decided + 1] == theirs[: decided + 1]
        assert ours != theirs


def test_the_test_split_is_measured_once_a_run(made):
    given, _, proof, counts = made
    data = build_data(compose(given))
    assert len(data.test.y) != len(data.held_out.y)
    assert counts[len(data.test.y)] == len(proof["runs"])


# What is kept between calls


def few(folder: Path) -> list[str]:
    """The overrides of a proof of few runs: no width lies between small and large."""
    wide = ["prove.random=false", "tamiyo=widen", "tamiyo.at=[0.3]", "prove.width_step=12"]
    return support.overrides("mlp", folder, *wide, "tolaria.epochs=1", "data.held_out=1200")


@pytest.fixture
def short(tmp_path: Path) -> list[str]:
    return few(tmp_path / "proof")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What ``short`` finds in one go, in one process."""
    return support.ran(few(tmp_path_factory.mktemp("whole") / "proof"))


class Seen:
    """Notes each job that is begun, and interrupts before number ``stop``."""

    def __init__(self, stop: int = 0) -> None:
        self.jobs: list[tuple[str, int]] = []
        self.left: list[float | None] = []
        self.stop = stop

    def __call__(self, job: Any, number: int, of: int, left: float | None) -> None:
        if number == self.stop:
            raise KeyboardInterrupt
        self.jobs.append((job.arm, job.seed))
        self.left.append(left)


def test_nothing_is_trained_twice_and_more_seeds_may_be_asked_for(short, whole, tmp_path):
    first, second, third = Seen(stop=5), Seen(), Seen()
    with pytest.raises(KeyboardInterrupt):
        support.ran(short, first)
    assert len(first.jobs) == 4
    kept = json.loads((tmp_path / "proof" / "state.json").read_text())["finished"]
    assert [(run["arm"], run["seed"]) for run in kept] == first.jobs
    resumed = support.ran(short, second)
    assert not set(first.jobs) & set(second.jobs)
    assert None not in second.left  # how long runs take is known from the call before
    assert support.numbers(resumed) == support.numbers(whole)
    more = support.ran([*short, "seeds=3", "prove.jobs=1"], third)
    assert {seed for _, seed in third.jobs} == {102}
    assert more["seeds"] == [100, 101, 102]


@pytest.fixture
def preloaded(monkeypatch):
    """The processes of a proof need not import PyTorch: they are forked, not started afresh."""
    context = forked.context()
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: context)


@pytest.mark.usefixtures("preloaded")
def test_two_processes_find_what_one_finds(short, whole):
    two = support.ran([*short, "prove.jobs=2"])
    assert support.numbers(two) == support.numbers(whole)
    assert [run["arm"] for run in two["runs"]] == [run["arm"] for run in whole["runs"]]


@pytest.mark.usefixtures("preloaded")
def test_an_error_in_another_process_is_told_and_finished_runs_are_kept(short, tmp_path):
    given = [*short, "prove.static=['tolaria.trial.training=-1']", "prove.jobs=2"]
    with pytest.raises(ConfigError, match=r"^tolaria\.trial\.training must be at least 0, not -1$"):
        support.ran(given)
    kept = json.loads((tmp_path / "proof" / "state.json").read_text())["finished"]
    assert {run["arm"] for run in kept} >= {"grown", "small"}


def test_another_configuration_needs_another_folder(short, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        support.ran(short, Seen(stop=2))
    with pytest.raises(ConfigError, match="holds the proof of another configuration") as told:
        support.proof_of([*short, "tolaria.learning_rate=0.2"])
    assert "prove.folder=FOLDER" in str(told.value)
    assert len(support.proof_of([*short, "prove.jobs=3", "seeds=4"]).results) == 1
    (tmp_path / "proof" / "state.json").write_text("{")
    with pytest.raises(RunError, match=r"cannot read .*state\.json"):
        support.proof_of(short)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("mode=rescued", "mode must be one of growth, rescue, size, not 'rescued'"),
        ("prove.width_key=model.widht", "the configuration has no model.widht"),
        ("seeds=1", "seeds must be at least 2, not 1"),
        ("prove.jobs=0", "prove.jobs must be at least 1, not 0"),
        ("prove.rescue.epochs=1.5", "prove.rescue.epochs must be null or a whole number above 0, not 1.5"),
        ("prove.rescue.learning_rate=0", "prove.rescue.learning_rate must be null or a number above 0"),
        ("tolaria.start=runs/x", "tolaria.start has no meaning here"),
    ],
)
def test_what_cannot_be_proved_is_said_in_a_line_before_anything_is_trained(short, tmp_path, override, told):
    with pytest.raises(ConfigError) as error:
        support.proof_of([*short, override])
    assert str(error.value).startswith(told)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "proof").exists()


def test_a_policy_that_is_not_there_is_said_before_anything_is_trained(short, tmp_path):
    given = [*short, "prove.random=chance"]
    with pytest.raises(ConfigError, match="unknown tamiyo 'chance'"):
        Proof(compose(given), compose, given).run()
    assert not (tmp_path / "proof").exists()
