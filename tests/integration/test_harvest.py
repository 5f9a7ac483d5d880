"""Kernels that a run kept come back into the library with what they learned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from esper.assembly.harvest import harvest
from esper.assembly.keys import build_envelope
from esper.assembly.storage import build_library
from esper.assembly.training import build_training
from esper.errors import RunError
from esper.messages import KernelMetadata
from esper.tolaria.checkpoints import Checkpoints
from esper.urza.trail import TrailQuery
from esper_cli.config import compose

Run = tuple[DictConfig, Path]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of the smoke experiment, which keeps one kernel, with its configuration."""
    folder = tmp_path_factory.mktemp("harvest")
    cfg = compose(
        [
            "+experiment=smoke",
            f"runs={folder}/runs",
            f"urza.url=sqlite:///{folder}/kernels.db",
            f"security.path={folder}/keys.json",
            "karn.paths=[blueprints/low_rank.yaml]",
            "tolaria.trial.z=-100",  # whatever it gained, it is kept
        ]
    )
    summary = build_training(cfg).run()
    return cfg, folder / "runs" / summary["run_id"]


def test_the_library_knows_that_a_run_began_and_ended(trained: Run) -> None:
    cfg, run = trained
    with build_library(cfg) as library:
        entries = library.trail.entries(TrailQuery(action="run.", subject=run.name))
    assert [entry.action for entry in entries] == ["run.ended", "run.began"]


def test_a_kept_kernel_is_stored_with_its_weights_and_where_they_are_from(trained: Run) -> None:
    cfg, run = trained
    told: list[tuple[KernelMetadata, bool]] = []
    with build_library(cfg) as library:
        found = harvest(cfg, run, library, lambda kernel, new: told.append((kernel, new)))
        assert [new for _, new in told] == [True] * len(found)
        state = Checkpoints(run / "checkpoints", build_envelope(cfg)).load()["model"]
        for kernel in found:
            assert kernel.run_id == run.name
            assert library.contains(kernel.parent_kernel)
            assert "trained" in kernel.tags
            _, layer, seed = kernel.decision.split(", ")
            prefix = f"{layer}.seeds.{seed.removeprefix('seed ')}.kernel."
            learned = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            module = library.fetch(kernel.kernel_id).module
            assert learned
            assert module.state_dict().keys() == learned.keys()
            assert all(torch.equal(module.state_dict()[name], value) for name, value in learned.items())
            parent = library.fetch(kernel.parent_kernel).module.state_dict()
            assert any(not torch.equal(parent[name], value) for name, value in learned.items())
            assert library.get(kernel.kernel_id) == kernel
        told.clear()
        assert harvest(cfg, run, library, lambda kernel, new: told.append((kernel, new))) == found
        assert [new for _, new in told] == [False] * len(found)


def test_a_run_that_kept_nothing_has_nothing_to_harvest(tmp_path: Path) -> None:
    cfg = compose(
        ["+experiment=smoke", f"runs={tmp_path}", "urza=memory", "tamiyo=never", "tolaria.epochs=1"]
    )
    summary = build_training(cfg).run()
    with build_library(cfg) as library, pytest.raises(RunError, match=r"kept no kernel .*esper runs show"):
        harvest(cfg, tmp_path / summary["run_id"], library)
