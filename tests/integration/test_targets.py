"""Kernels of every target from ``esper compile`` to a grown network that has left, through one library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from esper.assembly.exporting import export_run
from esper.assembly.harvest import harvest
from esper.assembly.kernels import build_pipeline, rebuilder
from esper.assembly.storage import build_library
from esper.assembly.training import build_training
from esper.blueprint import load_blueprints
from esper.messages import Slot
from esper.tezzeret.export import ExportedKernel
from esper.tezzeret.jobs import CompileJob
from esper.tezzeret.pipeline import Pipeline
from esper.tezzeret.pool import WorkerPool
from esper.tezzeret.targets import TARGETS
from esper_cli import app
from esper_cli.config import compose

torch.set_num_threads(1)
BLUEPRINTS = Path(__file__).parents[2] / "blueprints"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a library and keys of its own."""
    monkeypatch.setenv("ESPER_HOME", str(tmp_path / "home"))
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """What ``esper`` prints as JSON."""
    assert app.run(list(words)) == 0
    return json.loads(capsys.readouterr().out)


def test_a_library_holds_all_targets_and_says_which_is_a_fallback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = [str(BLUEPRINTS / f"{name}.yaml") for name in ("low_rank", "fourier_mixing")]
    made: dict[tuple[str, str], Any] = {}
    for target in TARGETS:
        report = printed(capsys, "compile", *files, "--shape", "tokens:4:4", "--json", f"tezzeret={target}")
        made |= {(target, one["blueprint_name"]): one for one in report["compiled"]}
    assert len({one["kernel_id"] for one in made.values()}) == len(made) == 6
    said = {key: one["reason"] for key, one in made.items() if one["reason"]}
    assert said == {("export", "fourier_mixing"): "eager, cpu, float32, not optimised, instead of export"}
    assert app.run(["compile", *files, "--shape", "tokens:4:4", "tezzeret=export"]) == 0
    assert "Nothing to compile: 2 already in the library" in capsys.readouterr().out
    cfg = compose([])
    with build_library(cfg) as library:
        for (target, name), one in made.items():
            kernel = library.fetch(one["kernel_id"])
            stands_in = (target, name) in said
            assert kernel.metadata.target == ("eager" if stands_in else target)
            assert ("fallback" in kernel.metadata.tags) == stands_in
            assert kernel.module(torch.randn(2, 5, 4)).shape == (2, 5, 4)


@pytest.mark.parametrize("target", ["export", "eager"])
def test_a_network_grows_with_kernels_of_any_target_and_leaves_as_plain_pytorch(
    target: str, tmp_path: Path
) -> None:
    cfg = compose([
        "+experiment=smoke", f"tezzeret={target}", f"runs={tmp_path}/runs", "tolaria.trial.z=-100",
        f"karn.paths=[{BLUEPRINTS / 'residual_mlp.yaml'}]",
    ])  # fmt: skip
    summary = build_training(cfg).run()
    assert [one["verdict"] for one in summary["adaptations"]].count("kept") > 0
    run = tmp_path / "runs" / summary["run_id"]
    other = compose(["+experiment=smoke", f"runs={tmp_path}/runs", "tezzeret=torchscript"])
    with build_library(other) as library:
        found = harvest(other, run, library)
        assert {kernel.target for kernel in found} == {target}
        kernel = library.fetch(found[0].kernel_id)
        rebuilt = rebuilder(build_pipeline(other))(kernel.blueprint, found[0].slot, target)
        assert isinstance(rebuilt, ExportedKernel) == (target == "export")
        assert not isinstance(rebuilt, torch.jit.ScriptModule)
    report = export_run(cfg, run, tmp_path / "plain")
    assert report.max_difference < 1e-5


def test_workers_compile_for_every_target_under_their_limits() -> None:
    blueprint = load_blueprints(BLUEPRINTS / "non_local.yaml")[0]
    slot = Slot("channels", 4, 6, 2)
    with WorkerPool(1) as pool:
        for name in ("torchscript", "export", "eager"):
            outcome = pool.submit(CompileJob(Pipeline(TARGETS[name]), blueprint, slot)).result()
            assert outcome.reason is None
            assert outcome.artefact is not None
            assert outcome.artefact.metadata.target == name
