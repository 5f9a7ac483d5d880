"""Checkpoints: whole or not there, sealed, and never read before they are authenticated."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from waiting import LONG

from esper.errors import CheckpointError, ConfigError, StorageError, UnknownKey
from esper.security import Envelope, KeyRing, new_key
from esper.tolaria.checkpoints import BackgroundSaver, Checkpoints, Mark, Retention
from esper.tolaria.durable import write_atomically
from esper.tolaria.rng import rng_state, seed_everything, set_rng_state

STATE = {
    "w": torch.arange(4.0),
    "half": torch.tensor([1.5, -0.0], dtype=torch.bfloat16),
    "none": torch.zeros(0, 3),
    "optimizer": {0: {"step": torch.tensor(3.0)}, 1: {}},
    "resting": [("layer", 1, 4)],
    "$odd": {"name": None, "loss": 0.1, "nan": float("inf")},
}


@pytest.fixture
def envelope() -> Envelope:
    return Envelope(KeyRing((new_key(),), "memory"))


@pytest.fixture
def checkpoints(tmp_path: Path, envelope: Envelope) -> Checkpoints:
    return Checkpoints(tmp_path / "run" / "checkpoints", envelope)


def mark(step: int, *, epochs: int | None = None, loss: float | None = None, inside: int = 0) -> Mark:
    return Mark(step, step if epochs is None else epochs, inside, loss)


def names(checkpoints: Checkpoints) -> list[str]:
    return [found.name for found in checkpoints.all()]


def test_what_was_saved_is_loaded(checkpoints: Checkpoints) -> None:
    checkpoints.save(mark(3), STATE)
    state = checkpoints.load()
    assert torch.equal(state["w"], STATE["w"])  # type: ignore[arg-type]
    assert state["half"].dtype == torch.bfloat16
    assert state["half"].tolist() == [1.5, -0.0]
    assert state["none"].shape == (0, 3)
    assert state["optimizer"][0]["step"] == 3
    assert state["optimizer"][1] == {}
    assert state["resting"] == [("layer", 1, 4)]
    assert state["$odd"] == STATE["$odd"]


def test_what_no_checkpoint_can_hold_is_named(checkpoints: Checkpoints) -> None:
    with pytest.raises(TypeError, match=r"a/0/b is set"):
        checkpoints.save(mark(1), {"a": [{"b": {1}}]})
    assert names(checkpoints) == []


def test_tensors_of_any_size_type_and_layout_come_back(checkpoints: Checkpoints) -> None:
    state: dict[str, torch.Tensor] = {str(n): torch.randn(n * 9_001) for n in range(12)}
    state |= {"turned": torch.randn(300, 400).t(), "part": torch.arange(99)[::7], "one": torch.tensor(True)}
    state |= {str(d): torch.ones(3, 2).to(d) for d in (torch.float16, torch.complex64, torch.uint8)}
    checkpoints.save(mark(1), state)
    loaded = checkpoints.load()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    assert all(loaded[name].dtype == tensor.dtype for name, tensor in state.items())
    with pytest.raises(TypeError, match="sparse"):
        checkpoints.save(mark(2), {"w": torch.eye(3).to_sparse()})


def test_nothing_readable_is_on_the_disk(checkpoints: Checkpoints) -> None:
    path = checkpoints.save(mark(1), {"a secret name": torch.full((64,), 2.0)})
    stored = b"".join(file.read_bytes() for file in path.iterdir())
    assert b"secret" not in stored
    assert torch.full((8,), 2.0).numpy().tobytes() not in stored


def test_the_newest_is_loaded_and_any_other_by_its_name_or_step(checkpoints: Checkpoints) -> None:
    for step in (1, 2):
        checkpoints.save(mark(step), {"n": step})
    assert checkpoints.load()["n"] == 2
    assert checkpoints.load("step-000000001")["n"] == checkpoints.load("1")["n"] == 1
    with pytest.raises(CheckpointError, match="no checkpoint 7 in"):
        checkpoints.load("7")


def test_one_of_the_same_step_does_not_replace_the_other(checkpoints: Checkpoints) -> None:
    checkpoints.save(mark(5), {"n": 1})
    checkpoints.save(mark(5), {"n": 2})
    assert names(checkpoints) == ["step-000000005.1", "step-000000005"]
    assert (checkpoints.load()["n"], checkpoints.load("step-000000005")["n"]) == (2, 1)


# What stays


@pytest.mark.parametrize(
    ("retention", "stay"),
    [
        (Retention(last=2), [8, 9]),
        (Retention(last=1, best=2), [3, 4, 9]),
        (Retention(last=1, every=4), [4, 8, 9]),
        (Retention(last=1, best=1, every=5), [3, 5, 9]),
    ],
)
def test_what_stays(tmp_path: Path, envelope: Envelope, retention: Retention, stay: list[int]) -> None:
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", envelope, retention)
    losses = [9.0, 8.0, 7.0, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0]
    for step, loss in enumerate(losses):
        checkpoints.save(mark(step, loss=loss), {"n": step})
    assert sorted(found.manifest.mark.step for found in checkpoints.all() if found.manifest) == stay


def test_those_of_an_earlier_process_count_too(tmp_path: Path, envelope: Envelope) -> None:
    for step in range(4):
        Checkpoints(tmp_path / "run" / "checkpoints", envelope, Retention(2)).save(mark(step), {})
    assert [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())] == [
        "step-000000002",
        "step-000000003",
    ]


def test_one_within_an_epoch_is_not_among_the_best(tmp_path: Path, envelope: Envelope) -> None:
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", envelope, Retention(1, best=1))
    checkpoints.save(mark(1, loss=2.0), {})
    checkpoints.save(mark(2, epochs=1, loss=1.0, inside=1), {})
    checkpoints.save(mark(3, loss=3.0), {})
    assert names(checkpoints) == ["step-000000003", "step-000000001"]


@pytest.mark.parametrize("numbers", [(0, 0, 0), (1, -1, 0), (1, 0, -1)])
def test_a_number_that_makes_no_sense_is_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError):
        Retention(*numbers)


# What was changed


def spoiled(path: Path, change: Callable[[bytearray], object]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be made of a checkpoint's bytes."""
    monkeypatch.setattr("esper.tolaria.checkpoints.store.join", lambda *_: pytest.fail("it was read"))


@pytest.mark.usefixtures("unread")
def test_every_flipped_bit_and_every_truncation_is_refused_unread(checkpoints: Checkpoints) -> None:
    path = checkpoints.save(mark(1), {"w": torch.ones(16)})
    chance = random.Random(0)
    for file in path.iterdir():
        whole = file.read_bytes()
        for bit in chance.sample(range(8 * len(whole)), min(400, 8 * len(whole))):
            changed = bytearray(whole)
            changed[bit // 8] ^= 1 << bit % 8
            file.write_bytes(changed)
            with pytest.raises((CheckpointError, UnknownKey)):
                checkpoints.load()
        for length in [*range(40), *chance.sample(range(len(whole)), 40), len(whole) - 1]:
            file.write_bytes(whole[:length])
            with pytest.raises((CheckpointError, UnknownKey)):
                checkpoints.load()
        file.write_bytes(whole)


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "{",
        "[]",
        "null",
        '{"tag": 1}',
        '{"tag": "a", "format": 3}',
        "[" * 5000,
        '{"format": 3, "tag": {}}',
    ],
)
def test_a_manifest_that_is_none_is_refused(checkpoints: Checkpoints, manifest: str) -> None:
    path = checkpoints.save(mark(1), {})
    (path / "manifest.json").write_text(manifest)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.load()


def test_another_format_is_refused_by_name(checkpoints: Checkpoints) -> None:
    path = checkpoints.save(mark(1), {})
    document = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**document, "format": 99}))
    with pytest.raises(CheckpointError, match="has format 99, this Esper reads 3 to 4"):
        checkpoints.load()


@pytest.mark.usefixtures("unread")
def test_parts_of_another_checkpoint_are_refused(checkpoints: Checkpoints) -> None:
    paths = [checkpoints.save(mark(step), {"w": torch.full((4,), float(step))}) for step in (1, 2)]
    shutil.copy(paths[0] / "tensors.sealed", paths[1] / "tensors.sealed")
    with pytest.raises(CheckpointError, match="not what was sealed"):
        checkpoints.load()


@pytest.mark.usefixtures("unread")
def test_an_older_one_under_a_newer_name_is_refused(checkpoints: Checkpoints) -> None:
    path = checkpoints.save(mark(1), {})
    path.rename(path.with_name("step-000000009"))
    with pytest.raises(CheckpointError, match=r"step 1, put under another name"):
        checkpoints.load()


@pytest.mark.usefixtures("unread")
def test_one_of_another_run_is_refused(tmp_path: Path, envelope: Envelope) -> None:
    Checkpoints(tmp_path / "mine" / "checkpoints", envelope).save(mark(1), {})
    (tmp_path / "mine").rename(tmp_path / "yours")
    with pytest.raises(CheckpointError, match=r"that of run mine, step 1"):
        Checkpoints(tmp_path / "yours" / "checkpoints", envelope).load()


@pytest.mark.usefixtures("unread")
def test_one_by_somebody_without_the_key_is_refused(tmp_path: Path, checkpoints: Checkpoints) -> None:
    other = Envelope(KeyRing((new_key(),), "another"))
    Checkpoints(checkpoints.folder, other).save(mark(1), {})
    with pytest.raises(Exception, match="key"):
        checkpoints.load()


def test_the_newest_good_one_is_found_and_the_others_are_told(checkpoints: Checkpoints) -> None:
    paths = [checkpoints.save(mark(step), {"n": step}) for step in (1, 2)]
    spoiled(paths[1] / "state.sealed", lambda data: data.pop())
    state, errors = checkpoints.load_newest_good()
    assert state["n"] == 1
    assert [str(paths[1]) in error.message for error in errors] == [True]
    spoiled(paths[0] / "state.sealed", lambda data: data.pop())
    with pytest.raises(CheckpointError, match="step-000000002"):
        checkpoints.load_newest_good()


def test_no_checkpoint_is_one_clear_error(checkpoints: Checkpoints) -> None:
    for load in (checkpoints.load, checkpoints.load_newest_good, checkpoints.find):
        with pytest.raises(CheckpointError, match="no checkpoint in"):
            load()


# Format 2


def write_format_2(folder: Path, *, damaged: bool = False) -> None:
    buffer = io.BytesIO()
    torch.save({"format": 2, "epoch": 4, "w": torch.ones(2)}, buffer)
    folder.mkdir(parents=True)
    (folder / "epoch-00004.pt").write_bytes(buffer.getvalue())
    digest = "0" * 64 if damaged else hashlib.sha256(buffer.getvalue()).hexdigest()
    (folder / "latest.json").write_text(json.dumps({"epoch": 4, "file": "epoch-00004.pt", "sha256": digest}))


def test_an_older_format_is_read(checkpoints: Checkpoints) -> None:
    write_format_2(checkpoints.folder)
    assert checkpoints.load()["w"].tolist() == [1, 1]
    assert checkpoints.load_newest_good()[0]["w"].tolist() == [1, 1]


def test_an_older_format_is_refused_when_it_is_damaged(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_format_2(checkpoints.folder, damaged=True)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch read a damaged file"))
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.load()


def test_an_older_format_does_not_take_the_place_of_a_sealed_one(checkpoints: Checkpoints) -> None:
    write_format_2(checkpoints.folder)
    path = checkpoints.save(mark(5), {"n": 5})
    assert checkpoints.load()["n"] == 5
    spoiled(path / "state.sealed", lambda data: data.pop())
    with pytest.raises(CheckpointError, match="step-000000005"):
        checkpoints.load_newest_good()


# What ends a write


@pytest.mark.parametrize("error", [28, 5, 30], ids=["no space", "I/O error", "read-only"])
def test_at_every_call_that_fails_the_one_before_stays(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    checkpoints.save(mark(1), {"n": 1})
    failed = 0
    while True:
        with monkeypatch.context() as patched:
            count = Failing(patched, failed, error)
            told = None
            try:
                checkpoints.save(mark(2), {"n": 2, "w": torch.ones(3)})
            except StorageError as raised:
                told = raised.message
            if not count.failed:
                break
        if told is not None:  # the folder that could not be made was there already
            assert f"{checkpoints.folder}" in told
            assert os.strerror(error).lower() in told.lower()
        # The last call is that after the rename: the new one is whole by then.
        assert names(checkpoints)[-1] == "step-000000001"
        assert checkpoints.load()["n"] in (1, 2)
        assert checkpoints.load("1")["n"] == 1
        for found in checkpoints.all()[:-1]:
            checkpoints.remove(found)
        failed += 1
    assert failed > 8


class Failing:
    """Makes one call of the system fail, the ``at``-th that a save makes."""

    def __init__(self, patched: pytest.MonkeyPatch, at: int, error: int) -> None:
        self.left, self.error, self.failed = at, error, False
        for name in ("fsync", "mkdir", "rename", "open"):
            patched.setattr(os, name, self.wrapped(getattr(os, name)))
        opened = io.open

        def open_file(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            file = self.wrapped(opened)(path, mode, *args, **options)
            return Written(file, self) if "w" in mode else file

        patched.setattr(io, "open", open_file)

    def wrapped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == -1:
                self.failed = True
                raise OSError(self.error, os.strerror(self.error))
            return call(*args, **options)

        return called


class Written:
    """A file whose writes are counted too."""

    def __init__(self, file: Any, failing: Failing) -> None:
        self.file, self.write = file, failing.wrapped(file.write)

    def fileno(self) -> int:
        return int(self.file.fileno())

    def __enter__(self) -> Written:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def test_a_process_that_ends_at_any_call_leaves_the_old_one(tmp_path: Path) -> None:
    script = (
        "import os, sys, torch\n"
        "from pathlib import Path\n"
        "from esper.security import Envelope, KeyRing, new_key, Key\n"
        "from esper.tolaria.checkpoints import Checkpoints, Mark\n"
        "envelope = Envelope(KeyRing((Key(bytes(32)),), 'memory'))\n"
        "for at in range(40):\n"
        "    folder = Path(sys.argv[1], str(at), 'checkpoints')\n"
        "    Checkpoints(folder, envelope).save(Mark(1, 1), {'n': 1})\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        left = at\n"
        "        def counted(call):\n"
        "            def called(*args, **options):\n"
        "                global left\n"
        "                left -= 1\n"
        "                if left < 0: os._exit(9)\n"
        "                return call(*args, **options)\n"
        "            return called\n"
        "        for name in ('fsync', 'mkdir', 'rename', 'open'):\n"
        "            setattr(os, name, counted(getattr(os, name)))\n"
        "        Checkpoints(folder, envelope).save(Mark(2, 2), {'n': 2})\n"
        "        os._exit(0)\n"
        "    done = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "    again = Checkpoints(folder, envelope)\n"
        "    assert again.load()['n'] == 2 or done == 9, at\n"
        "    assert again.load('1')['n'] == 1, at\n"
        "    again.save(Mark(3, 3), {'n': 3})\n"
        "    assert not list(folder.glob('.*')), at\n"
        "    if done == 0: break\n"
        "else: raise SystemExit('it never ended by itself')\n"
        "assert at > 6, at\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=LONG)


def test_a_failed_write_keeps_the_old_file_and_leaves_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device (full)")

    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# In the background


def test_what_is_written_is_the_state_when_it_began(checkpoints: Checkpoints) -> None:
    saver, weight = BackgroundSaver(checkpoints), torch.zeros(200_000)
    for step in range(1, 4):
        weight.fill_(step)
        saver.begin(mark(step), {"w": weight, "step": step})
        weight.fill_(-1)
    saved = saver.wait()
    assert [each.mark.step for each in saved] == [1, 2, 3]
    assert all(0 < each.paused <= each.seconds for each in saved)
    for step in (2, 3):
        state = checkpoints.load(str(step))
        assert state["step"] == step
        assert bool((state["w"] == step).all())
    assert saver.finished() == []


def test_an_error_reaches_whoever_asks_next(checkpoints: Checkpoints, tmp_path: Path) -> None:
    saver = BackgroundSaver(checkpoints)
    (tmp_path / "run").mkdir()
    checkpoints.folder.write_text("a file where the folder should be")
    saver.begin(mark(1), {"w": torch.ones(2)})
    with pytest.raises(StorageError, match="cannot write the checkpoint"):
        saver.wait()
    checkpoints.folder.unlink()
    saver.begin(mark(2), {"w": torch.ones(2)})
    assert [each.mark.step for each in saver.wait()] == [2]


def test_every_generator_goes_on_where_it_was(checkpoints: Checkpoints) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seed_everything(5)
    checkpoints.save(mark(0), {"rng": rng_state()})
    first = draw()
    assert draw() != first
    set_rng_state(checkpoints.load()["rng"])
    assert draw() == first
