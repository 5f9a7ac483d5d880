"""Kernels a minute through worker processes, and what one takes from its blueprint into the library.

Every blueprint that ships, for the shapes that ``esper compile`` takes, through ``compile_missing`` into a
sealed library on disk: with one worker, with two, and in this process, in turns. The peer of the second table
is a bare ``torch.jit.script`` and save, to a file, of the same network, in this process. Times are on the
clock on the wall; the start of the workers' server is shown apart. Goals: 100 ms in the median, 600
kernels a minute.

Run: python benchmarks/compile_workers.py [--rounds N]
"""

from __future__ import annotations

import argparse
import os
import secrets
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from esper.blueprint import Blueprint
from esper.karn.catalogue import fitting, load_catalogue
from esper.messages import KernelMetadata, Slot
from esper.security import Envelope, Key, KeyRing
from esper.tezzeret.builder import build
from esper.tezzeret.jobs import CompileJob
from esper.tezzeret.pipeline import Pipeline
from esper.tezzeret.pool import WorkerPool
from esper.tezzeret.torchscript import TorchScriptTarget
from esper.tezzeret.worker import compile_missing
from esper.urza import KernelLibrary, open_library

SLOTS = [
    Slot("features", 16, 16),
    Slot("features", 64, 64),
    Slot("tokens", 64, 64),
    Slot("channels", 16, 16),
    Slot("channels", 16, 32, 2),
]
TARGET = TorchScriptTarget()
PIPELINE = Pipeline(TARGET)
Pairs = list[tuple[Blueprint, Slot]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
    blueprints = load_catalogue([Path(__file__).parents[1] / "blueprints"]).blueprints
    pairs = [(blueprint, slot) for slot in SLOTS for blueprint in fitting(blueprints, slot)]
    load = os.getloadavg()[0]
    print(f"{len(pairs)} kernels, {rounds} rounds, {os.cpu_count()} cores, load before it {load:.1f}")
    with WorkerPool(1) as one, WorkerPool(2) as two, tempfile.TemporaryDirectory() as folder:
        for pool in (one, two):
            began = time.perf_counter()
            pool.submit(CompileJob(PIPELINE, *pairs[0])).result()
            print(f"start of a server and its first kernel: {time.perf_counter() - began:.1f} s")
        ways: dict[str, WorkerPool | None] = {"in this process": None, "1 worker": one, "2 workers": two}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, pool in ways.items():
                with library(Path(folder)) as stored:
                    seconds[name].append(timed(partial(fill, stored, pairs, pool)))
        for name, measured in seconds.items():
            rate = 60 * len(pairs) / statistics.median(measured)
            ratio = statistics.median(seconds["1 worker"]) / statistics.median(measured)
            print(f"{name:<16}{rate:>7.0f} kernels a minute, {ratio:.2f}x of 1 worker")
        print(f"\n{'one kernel':<16}{'median':>9}{'95 %':>9}")
        with library(Path(folder)) as stored:
            report("1 worker", [timed(partial(fill, stored, [pair], one)) for pair in pairs])
        with library(Path(folder)) as stored:
            report("in this process", [timed(partial(fill, stored, [pair], None)) for pair in pairs])
        report("bare script+save", [timed(bare(pair, Path(folder))) for pair in pairs])


def library(folder: Path) -> KernelLibrary:
    """A new library on disk, sealed with keys of its own."""
    name = secrets.token_hex(4)

    def module(metadata: KernelMetadata, program: bytes) -> torch.nn.Module:
        return TARGET.load(program, metadata.device)

    envelope = Envelope(KeyRing((Key(secrets.token_bytes(32)),), "this benchmark"))
    return open_library(f"sqlite:///{folder}/{name}.db", module, envelope=envelope)


def fill(stored: KernelLibrary, pairs: Pairs, pool: WorkerPool | None) -> None:
    for record in compile_missing(PIPELINE, stored, pairs, workers=pool):
        assert record.status == "compiled", record


def bare(pair: tuple[Blueprint, Slot], folder: Path) -> Callable[[], None]:
    network = build(*pair)
    return lambda: torch.jit.save(TARGET.compile(network), str(folder / "bare.pt"))


def timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def report(name: str, seconds: list[float]) -> None:
    ordered = sorted(1e3 * each for each in seconds)
    late = ordered[round(0.95 * (len(ordered) - 1))]
    print(f"{name:<16}{statistics.median(ordered):>6.0f} ms{late:>6.0f} ms")


if __name__ == "__main__":
    main()
