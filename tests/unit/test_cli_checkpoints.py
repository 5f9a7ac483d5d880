"""``esper checkpoints`` and ``esper train --resume auto`` over real sealed checkpoints."""

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_support import RUN_ID, make_run
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file

from esper.assembly.keys import build_envelope
from esper.assembly.resuming import changes, newest_unfinished
from esper.errors import ConfigError, RunError
from esper.nissa.journal import JOURNAL_NAME, Journal
from esper.nissa.runs import RunStore
from esper.tolaria.checkpoints import CheckpointFolder, Checkpoints, Mark, Retention
from esper_cli import app
from esper_cli.config import compose, compose_from

Esper = Callable[..., tuple[int, str, str]]
LOSSES = (0.9, 0.4, 0.6)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, its checkpoints and the key."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ESPER_HOME", str(folder / "home"))
        fill(make_run(folder / "runs"))
    return folder


@pytest.fixture(autouse=True)
def runs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("COLUMNS", raising=False)
    return tmp_path / "runs"


@functools.cache
def smoke() -> DictConfig:
    return compose(["+experiment=smoke"])


@pytest.fixture
def esper(capsys: pytest.CaptureFixture[str]) -> Esper:
    def run(*args: str) -> tuple[int, str, str]:
        code = app.run(["checkpoints", *args])
        return code, *capsys.readouterr()

    return run


def fill(folder: Path, losses: tuple[float, ...] = LOSSES) -> None:
    """Give a run a configuration and a checkpoint an epoch of 10 steps, and one within the last."""
    cfg = smoke()
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    checkpoints = Checkpoints(folder / "checkpoints", build_envelope(cfg), Retention(100))
    for epochs, loss in enumerate(losses, 1):
        save(checkpoints, Mark(10 * epochs, epochs, 0, loss))
    if losses:
        save(checkpoints, Mark(35, 3, 5, 0.1))


def save(checkpoints: Checkpoints, mark: Mark) -> None:
    progress = {"global_step": mark.step, "epochs_done": mark.epochs}
    checkpoints.save(mark, {"model": {"w": torch.full((3,), float(mark.step))}, "progress": progress})


def going_on(root: Path, run_id: str, *, experiment: str = "smoke", end: str | None = None) -> Path:
    folder = root / run_id
    folder.mkdir(parents=True)
    with Journal(folder / JOURNAL_NAME, fsync=False) as journal:
        journal.write("run_started", run_id=run_id, experiment=experiment, layers={})
        if end is not None:
            journal.write(end, epoch=1, summary={}, error="")
    return folder


def spoil(runs: Path, step: int, *, name: str = "tensors.sealed") -> None:
    path = runs / RUN_ID / "checkpoints" / f"step-{step:09d}" / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_ls_lists_the_newest_first_and_marks_the_best(esper: Esper) -> None:
    code, out, _ = esper("ls")
    assert code == 0
    rows = out.splitlines()[2:]
    assert [row.split()[0] for row in rows] == [f"step-{step:09d}" for step in (35, 30, 20, 10)]
    assert "3 + 5 steps" in rows[0]
    assert [("best" in row) for row in rows] == [False, False, True, False]
    found = json.loads(esper("ls", RUN_ID[:12], "--json")[1])
    assert [row["held_out_loss"] for row in found] == [0.1, 0.6, 0.4, 0.9]
    assert all(row["bytes"] > 100 and row["state"] == "good" for row in found)


def test_what_is_damaged_is_listed_with_the_reason(esper: Esper, runs: Path) -> None:
    (runs / RUN_ID / "checkpoints" / "step-000000030" / "state.sealed").write_bytes(b"x")
    spoil(runs, 20, name="manifest.json")
    found = {row["step"]: row for row in json.loads(esper("ls", "--json")[1])}
    assert [found[step]["state"] for step in (35, 30, 20, 10)] == ["good", "damaged", "damaged", "good"]
    assert "state.sealed is not what was written" in found[30]["error"]
    assert "state.sealed is not what was written" in esper("ls")[1]
    assert found[10]["best"]


def test_verify_reads_every_byte(esper: Esper, runs: Path) -> None:
    assert esper("verify") == (0, "step-000000035  good\n", "")
    spoil(runs, 20)
    assert esper("verify", "latest", "30")[0] == 0
    code, out, _ = esper("verify", "latest", "step-000000020")
    assert code == 7
    assert "tensors.sealed is not what was sealed" in out
    code, out, _ = esper("verify", "--all")
    assert code == 7
    assert [line.split("  ")[1] == "good" for line in out.splitlines()] == [True, True, False, True]
    found = json.loads(esper("verify", "--all", "--json")[1])
    assert [row["error"] is None for row in found] == [True, True, False, True]


def test_show_says_where_the_run_stood(esper: Esper) -> None:
    shown = json.loads(esper("show", "latest", "20", "--json")[1])
    assert (shown["run"], shown["epochs"], shown["held_out_loss"], shown["best"]) == (RUN_ID, 2, 0.4, True)
    assert set(shown["parts"]) == {"state.sealed", "tensors.sealed"}
    assert "0.4" in esper("show", "latest", "20")[1]
    code, _, err = esper("show", "latest", "7")
    assert code == 7
    assert f"esper checkpoints ls {RUN_ID}" in err


def test_rm_leaves_an_unfinished_run_its_last_good_one(esper: Esper, runs: Path) -> None:
    folder = going_on(runs, "20270101-000000-smoke-0000", end="run_interrupted")
    fill(folder, LOSSES)
    name = folder.name
    assert esper("rm", name, "10", "20", "30")[0] == 0
    code, _, err = esper("rm", name, "35")
    assert code == 7
    assert "the last good checkpoint" in err
    assert len(list((folder / "checkpoints").iterdir())) == 1
    assert esper("rm", name, "35", "--force")[0] == 0
    assert esper("ls", name)[1].startswith(f"Run {name} has no checkpoints.")
    assert esper("rm", RUN_ID, "10", "20", "30", "35")[0] == 0  # it is finished
    assert esper("rm", name)[0] == 2


def test_a_damaged_one_is_no_reason_to_remove_the_last_good_one(esper: Esper, runs: Path) -> None:
    folder = going_on(runs, "20270101-000000-smoke-0000", end="run_failed")
    fill(folder, (0.5,))
    (folder / "checkpoints" / "step-000000035" / "manifest.json").write_text("{}")
    assert esper("rm", folder.name, "10")[0] == 7
    assert esper("rm", folder.name, "35")[0] == 0


def test_export_writes_the_weights(esper: Esper, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    code, out, _ = esper("export", "latest", str(file), "--at", "20")
    assert (code, out) == (0, f"wrote {file}: 1 tensors of step 20\n")
    assert load_file(file)["w"].tolist() == [20, 20, 20]
    assert json.loads(esper("export", "latest", str(file), "--json")[1])["step"] == "35"
    code, _, err = esper("export", "latest", str(tmp_path / "no" / "w.safetensors"))
    assert code == 10
    assert "cannot write" in err


def test_without_the_key_nothing_is_read_and_the_key_is_named(
    esper: Esper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home" / "keys.json").unlink()
    build_envelope(smoke()).authenticate(b"makes another key")
    (row, *_) = json.loads(esper("ls", "--json")[1])
    assert row["state"] == "damaged"
    assert "no key " in row["error"]
    assert esper("verify")[0] == 12


def test_where_there_are_no_runs_it_says_how_to_get_one(
    esper: Esper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    code, out, _ = esper("ls")
    assert code == 0
    assert "esper train +experiment=smoke" in out
    assert json.loads(esper("ls", "--json")[1]) == []


def test_words_that_mean_nothing_are_refused(esper: Esper) -> None:
    assert esper("ls", "latest", "what")[0] == 2
    assert esper("show", "nothing")[0] == 7
    assert esper("ls", "runs=elsewhere")[0] == 7


def test_to_look_at_checkpoints_does_not_take_pytorch() -> None:
    script = (
        "import sys; from esper_cli.app import run\n"
        "assert run(['checkpoints', 'ls']) == run(['checkpoints', 'verify']) == 0\n"
        "assert run(['checkpoints', 'rm', 'latest', '10']) == 0\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


# Which run --resume auto takes


def unfinished(runs: Path, experiment: str | None = None) -> tuple[str, list[str]]:
    told: list[str] = []

    def checkpoints_of(view: Any) -> CheckpointFolder:
        return CheckpointFolder(view.folder / "checkpoints", build_envelope(smoke()))

    return newest_unfinished(RunStore(runs), experiment, checkpoints_of, told.append).run_id, told


def test_auto_takes_the_newest_unfinished_run_with_a_good_checkpoint(runs: Path) -> None:
    with pytest.raises(RunError, match="no unfinished run in"):  # the only one is finished
        unfinished(runs)
    fill(going_on(runs, "20270101-000000-smoke-0001"))
    fill(going_on(runs, "20270101-000001-other-0002", experiment="other", end="run_failed"))
    assert unfinished(runs) == ("20270101-000001-other-0002", [])
    assert unfinished(runs, "smoke") == ("20270101-000000-smoke-0001", [])
    fill(going_on(runs, "20270101-000002-smoke-0003", end="run_interrupted"), ())
    found, told = unfinished(runs)
    assert found == "20270101-000001-other-0002"
    assert "20270101-000002-smoke-0003" in told[0]
    fill(going_on(runs, "20270101-000003-smoke-0004", end="run_finished"))
    assert unfinished(runs)[0] == found
    with pytest.raises(RunError, match="no unfinished run of mine in"):
        unfinished(runs, "mine")


def test_auto_leaves_a_run_alone_that_goes_on(runs: Path) -> None:
    folder = going_on(runs, "20270101-000000-smoke-0001")
    fill(folder)
    with Journal(folder / JOURNAL_NAME), pytest.raises(RunError, match="no unfinished run"):
        unfinished(runs)


# What may change on the way


def asked(runs: Path, *overrides: str) -> tuple[DictConfig, DictConfig]:
    saved = runs / RUN_ID / "config.yaml"
    return compose_from(saved, []), compose_from(saved, list(overrides))


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "data.split_seed=1",
        "data.held_out=100",
        "tolaria.batch_size=32",
        "model.hidden=[16, 17]",
        "kasmina.include=[nothing.*]",
        "tolaria.optimizer._target_=torch.optim.AdamW",
    ],
)
def test_what_makes_it_another_run_is_refused(runs: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=f"another {override.partition('=')[0]}"):
        changes(*asked(runs, override))


def test_what_changes_the_rest_of_the_run_is_told(runs: Path) -> None:
    assert changes(*asked(runs)) == []
    assert changes(*asked(runs, "tolaria.device=cpu", "runs=elsewhere")) == []
    assert changes(*asked(runs, "tolaria.learning_rate=0.5")) == [
        "tolaria.learning_rate is 0.5 from here on, and was 0.1",
    ]
    told = changes(*asked(runs, "tolaria.epochs=30"))
    assert told[0] == "tolaria.epochs is 30 from here on, and was 12"
    assert "learning rate" in told[1]


@pytest.mark.parametrize("run", ["latest", "auto"])
def test_the_command_refuses_and_says_why(runs: Path, capsys: pytest.CaptureFixture[str], run: str) -> None:
    fill(going_on(runs, "20270101-000000-smoke-0001"))
    assert app.run(["train", "--resume", run, "seed=1"]) == 2
    assert "another seed: it has 0, not 1" in capsys.readouterr().err
    assert app.run(["train", "--resume", run, "+experiment=resnet"]) == (2 if run == "latest" else 7)
