"""Checkpoints: whole or not at all, and checked before torch reads them."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from esper.errors import CheckpointError, StorageError
from esper.tolaria.checkpoint import Checkpoints, write_atomically
from esper.tolaria.rng import rng_state, seed_everything, set_rng_state


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(3, {"w": torch.arange(4.0), "history": [1, 2]})
    state = Checkpoints(tmp_path).load()
    assert torch.equal(state["w"], torch.arange(4.0))
    assert (state["epoch"], state["history"]) == (3, [1, 2])


def test_what_was_saved_on_a_gpu_is_loaded_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda _: "cuda:7")
        Checkpoints(tmp_path).save(1, {"w": torch.arange(4.0)})
    w = Checkpoints(tmp_path).load()["w"]
    assert (w.device.type, w.tolist()) == ("cpu", [0, 1, 2, 3])


def test_the_newest_stay_and_the_newest_is_loaded(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for epoch in range(5):
        checkpoints.save(epoch, {})
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["epoch-00003.pt", "epoch-00004.pt"]
    assert checkpoints.load()["epoch"] == 4


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_file_is_refused_before_torch_reads_it(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Checkpoints(tmp_path).save(1, {"w": torch.ones(8)})
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes({"truncate": data[:-1], "flip": data, "empty": b""}[damage])
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch read a damaged file"))
    with pytest.raises(CheckpointError, match="damaged"):
        Checkpoints(tmp_path).load()


def test_no_checkpoint_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        Checkpoints(tmp_path / "none").load()


def test_another_format_is_refused_by_name(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(1, {"format": 99})
    with pytest.raises(CheckpointError, match="format 99"):
        Checkpoints(tmp_path).load()


def test_a_manifest_that_is_no_json_is_refused(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(1, {})
    (tmp_path / "latest.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"latest\.json"):
        Checkpoints(tmp_path).load()


def test_a_process_killed_between_writes_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    script = (
        "import os, sys, torch\n"
        "from pathlib import Path\n"
        "from esper.tolaria import checkpoint\n"
        "folder = Path(sys.argv[1])\n"
        "checkpoint.Checkpoints(folder).save(1, {'w': torch.ones(2)})\n"
        "replace = Path.replace\n"
        "Path.replace = lambda self, to: os._exit(9) if to.name == sys.argv[2] else replace(self, to)\n"
        "checkpoint.Checkpoints(folder).save(2, {'w': torch.zeros(2)})\n"
    )
    for at in ("epoch-00002.pt", "latest.json"):
        folder = tmp_path / at
        done = subprocess.run([sys.executable, "-c", script, str(folder), at], check=False)
        assert done.returncode == 9
        assert Checkpoints(folder).load()["epoch"] == 1


def test_a_failed_write_keeps_the_old_file_and_leaves_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(OSError, match="full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_says_what_and_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(StorageError, match=r"cannot write the checkpoint .*epoch-00001\.pt: No space"):
        Checkpoints(tmp_path).save(1, {})


def test_every_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seed_everything(5)
    Checkpoints(tmp_path).save(0, {"rng": rng_state()})
    first = draw()
    assert draw() != first
    set_rng_state(Checkpoints(tmp_path).load()["rng"])
    assert draw() == first


def _full(_: int) -> None:
    raise OSError(28, "No space left on device (full)")
