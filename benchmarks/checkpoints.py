"""A checkpoint saved and restored, beside bare torch.save and torch.distributed.checkpoint, all on the disk.

Goals for a save, against torch.save with fsync: 1.3 times at 10 MB, 1.9 times at 100 MB. The state is that of
a network and its optimizer: 20 square layers and two moments of each. Its weights are copied while the next
step is computed, and training waits before it changes them for what is not copied yet; that has a goal of 5 %
of a save. Beside it is what training waits where all is copied first. Every way waits for the disk, so all
are timed by the wall, in turn.

Run: python benchmarks/checkpoints.py [--sizes 10 100 1000] [--rounds N]
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from esper.security import Envelope, KeyRing, new_key
from esper.tolaria.checkpoints import BackgroundSaver, Checkpoints, Mark
from esper.tolaria.durable import sync_folder

GOALS = {10: 1.3, 100: 1.9}
PAUSE = 0.05
LAYERS = 20
BATCH = 64
State = dict[str, Tensor]


class Bare:
    """``torch.save`` to a new file, its fsync, and ``torch.load``."""

    name = "torch.save"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "bare.pt"

    def save(self, state: State) -> None:
        """Write ``state``; it is on the disk when this returns."""
        with self.path.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self.path.parent)

    def load(self, like: State) -> State:
        """What was written; ``like`` has its names and shapes."""
        del like
        return torch.load(self.path, weights_only=True)

    def clear(self) -> None:
        """Remove what was written."""
        self.path.unlink(missing_ok=True)


class Distributed:
    """``torch.distributed.checkpoint`` in one process; its writer syncs its files."""

    name = "torch dcp"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "dcp"

    def save(self, state: State) -> None:
        """Write ``state``; it is on the disk when this returns."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is one process
            dcp.save(dict(state), storage_writer=dcp.FileSystemWriter(self.path, sync_files=True))

    def load(self, like: State) -> State:
        """What was written; ``like`` has its names and shapes."""
        loaded = {name: torch.empty_like(tensor) for name, tensor in like.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.load(loaded, storage_reader=dcp.FileSystemReader(self.path))
        return loaded

    def clear(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self.path, ignore_errors=True)


class Sealed:
    """Esper's, encrypted and authenticated, in the background: the whole time, and what training waits."""

    name = "esper, sealed"

    def __init__(self, folder: Path) -> None:
        self.checkpoints = Checkpoints(
            folder / "run" / "checkpoints", Envelope(KeyRing((new_key(),), "memory"))
        )
        self.saver = BackgroundSaver(self.checkpoints)

    def save(self, state: State) -> None:
        """Write ``state``; it is on the disk when this returns."""
        self.saver.begin(Mark(1, 1), state)
        self.saver.wait()

    def paused(self, state: State, compute: Callable[[], object], *, first: bool) -> float:
        """Milliseconds that training waits for a save beside a step, where all is copied ``first`` or not."""
        self.saver.begin(Mark(1, 1), state, () if first else state.values())
        compute()
        self.saver.hold()
        (saved,) = self.saver.wait()
        return 1e3 * saved.paused

    def load(self, like: State) -> State:
        """What was written; ``like`` has its names and shapes."""
        del like
        return self.checkpoints.load()

    def clear(self) -> None:
        """Remove what was written."""
        for found in self.checkpoints.all():
            self.checkpoints.remove(found)


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def compare(folder: Path, megabytes: int, rounds: int) -> bool:
    """Print the times of one size; whether its goals are met."""
    sealed = Sealed(folder)
    ways: list[Bare | Sealed | Distributed] = [Bare(folder), sealed, Distributed(folder)]
    size = math.isqrt(megabytes * 10**6 // 4 // (3 * LAYERS))
    network = nn.Sequential(*(nn.Linear(size, size, bias=False) for _ in range(LAYERS)))
    state = {name: each.detach() for name, each in network.named_parameters()}
    state |= {f"{name}.{n}": torch.randn_like(each) for n in (1, 2) for name, each in state.items()}
    x = torch.randn(BATCH, size)

    def compute() -> None:
        network.zero_grad()
        network(x).sum().backward()

    saves: dict[str, list[float]] = {way.name: [] for way in ways}
    loads: dict[str, list[float]] = {way.name: [] for way in ways}
    pauses: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(rounds + 1):
        for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
            way.clear()
            os.sync()  # nobody pays for what another left to be written
            saved = timed(lambda way=way: way.save(state))
            loaded = timed(lambda way=way: way.load(state))
            if turn:
                saves[way.name].append(saved)
                loads[way.name].append(loaded)
            else:  # which warms up
                again = way.load(state)
                assert all(torch.equal(again[name], tensor) for name, tensor in state.items()), way.name
        for first in (True, False) if turn % 2 else (False, True):
            sealed.clear()
            os.sync()
            paused = sealed.paused(state, compute, first=first)
            if turn:
                pauses[first].append(paused)
    for way in ways:
        way.clear()
    return _told(megabytes, saves, loads, pauses)


def _told(
    megabytes: int,
    saves: dict[str, list[float]],
    loads: dict[str, list[float]],
    pauses: dict[bool, list[float]],
) -> bool:
    def ratio(times: dict[str, list[float]], name: str) -> float:
        return statistics.median(a / b for a, b in zip(times[name], times[Bare.name], strict=True))

    for name in saves:
        print(
            f"{megabytes:5d} MB  {name:14s} save {statistics.median(saves[name]):9.1f} ms  "
            f"ratio {ratio(saves, name):5.2f}   load {statistics.median(loads[name]):9.1f} ms  "
            f"ratio {ratio(loads, name):5.2f}"
        )
    goal, save = GOALS.get(megabytes), statistics.median(saves[Sealed.name])
    pause, copying = (statistics.median(pauses[first]) / save for first in (False, True))
    quick = goal is None or ratio(saves, Sealed.name) <= goal
    judged = "" if goal is None else f"save {'meets' if quick else 'MISSES'} {goal}; "
    met = "meets" if pause < PAUSE else "MISSES"
    print(
        f"{'':9s} {judged}pause {pause:.1%} of the save, {met} {PAUSE:.0%}, "
        f"and {copying:.1%} where all is copied first"
    )
    return quick and pause < PAUSE


def main() -> None:
    """Compare, print, and exit with 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000], metavar="MB")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        met = [
            compare(Path(folder), size, max(3, arguments.rounds * 100 // max(size, 100)))
            for size in arguments.sizes
        ]
    raise SystemExit(not all(met))


if __name__ == "__main__":
    main()
