"""A hundred hostile TorchScript files, offered to ``esper kernels import``: none does harm, none is taken."""

from __future__ import annotations

import ctypes
import json
import os
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import forked
import pytest
import torch
from hostile_programs import BLUEPRINT, CASES, SHAPE, World
from tezzeret_support import workers

from esper.assembly.storage import build_library
from esper.tezzeret.pool import WorkerPool
from esper.urza import KernelQuery
from esper_cli import app
from esper_cli.config import compose

LIMITS = {"wall_seconds": 60, "cpu_seconds": 1, "memory_mb": 256}

_ALL_EVENTS = 0xFFF


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPER_HOME", str(tmp_path))
    monkeypatch.delenv("COLUMNS", raising=False)
    (tmp_path / "offered.yaml").write_text(BLUEPRINT)
    (tmp_path / "world").mkdir()
    made = World(tmp_path / "world" / "secret", tmp_path / "world" / "made")
    made.secret.write_text("secret" * 100)
    return made


class Watch:
    """What happens to the files of a folder, as the kernel tells it by inotify(7)."""

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK)
        assert libc.inotify_add_watch(self._descriptor, os.fsencode(folder), _ALL_EVENTS) >= 0

    def names(self) -> set[str]:
        """Of the files that were opened, read, written, made or removed since the last call."""
        found = set()
        try:
            told = os.read(self._descriptor, 1 << 20)
        except BlockingIOError:
            return set()
        while told:
            length = struct.unpack_from("=iIII", told)[3]
            found.add(told[16 : 16 + length].rstrip(b"\0").decode())
            told = told[16 + length :]
        return found


@contextmanager
def sampled() -> Iterator[dict[int, int]]:
    """The most memory (KiB, resident) that each worker process of ours had, by its id, while in the block."""
    peaks: dict[int, int] = {}
    over = threading.Event()

    def sample() -> None:
        while not over.wait(0.05):
            for worker in workers():
                try:
                    status = Path(f"/proc/{worker}/status").read_text()
                except OSError:
                    continue  # it has ended
                if peak := re.search(r"VmHWM:\s+(\d+)", status):
                    peaks[worker] = max(peaks.get(worker, 0), int(peak[1]))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peaks
    finally:
        over.set()
        thread.join()


def test_none_does_harm_and_none_is_taken(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"{number:03}.pt": name for number, name in enumerate(CASES)}
    for file, name in files.items():
        Path(file).write_bytes(CASES[name][0](world))
    limits = [f"tezzeret.limits.{name}={value}" for name, value in LIMITS.items()]
    monkeypatch.setattr("esper.assembly.importing.WorkerPool", partial(WorkerPool, nice=0))
    watch = Watch(world.secret.parent)
    with sampled() as peaks:
        code = app.run(
            ["kernels", "import", *files, "--blueprint", "offered.yaml", "--shape", SHAPE, "--json", *limits]
        )
    out, err = capsys.readouterr()
    assert watch.names() == set()
    assert not world.made.exists()
    assert workers() == []
    assert code == 6
    told = json.loads(out)  # and nothing else stands there
    assert [done["file"] for done in told] == list(files)
    for done in told:
        name = files[done["file"]]
        assert re.match(CASES[name][1], str(done["refused"])), (name, done["refused"])
        assert str(done["refused"]).isprintable(), name
    assert len(told) >= 60
    assert "flood" not in err
    with build_library(compose([])) as library:
        assert library.query(KernelQuery()) == []
        assert library.compilations() == []

    assert len(peaks) > 10
    usual = sorted(peaks.values())[len(peaks) // 2]  # PyTorch itself, most of it shared with the server
    assert max(peaks.values()) < usual + (LIMITS["memory_mb"] + 64) * 1024


HARM = {
    "writes a file while loaded": "made",
    "reads a file while loaded": "secret",
    "writes a file": "made",
    "reads a file": "secret",
}


def run_outside(files: list[str]) -> None:
    warnings.simplefilter("ignore")
    for path in files:
        try:
            torch.jit.load(path)(torch.ones(2, 8))
        except RuntimeError as error:
            print(error)


def test_outside_the_fence_they_do_it(world: World) -> None:
    watches = {}
    for number, name in enumerate(HARM):
        folder = Path(f"world{number}").absolute()
        folder.mkdir()
        own = World(folder / "secret", folder / "made")
        own.secret.write_bytes(world.secret.read_bytes())
        Path(f"{number}.pt").write_bytes(CASES[name][0](own))
        watches[name] = Watch(folder)
    files = [f"{number}.pt" for number in range(len(HARM))]
    assert forked.call(run_outside, files).returncode == 0
    assert {name: watch.names() for name, watch in watches.items()} == {n: {f} for n, f in HARM.items()}
