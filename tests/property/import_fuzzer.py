"""Damaged kernel files and TorchScript archives: each is refused in a line, or a kernel is made of it here.

By hand, for longer: ``python tests/property/import_fuzzer.py --files 1000000 --programs 5000 --seed 7``. Ends
with 1 and keeps the file where one of them does anything else.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from esper.blueprint import Blueprint, parse_blueprint
from esper.errors import RefusedProgram
from esper.messages import KernelArtefact, Slot
from esper.tezzeret.importing import ZIP, Importer
from esper.tezzeret.kernelfile import read_kernel, write_kernel
from esper.tezzeret.limits import Limits
from esper.tezzeret.pipeline import Pipeline
from esper.tezzeret.pool import WorkerPool
from esper.tezzeret.torchscript import TorchScriptTarget

LIMITS = Limits(wall_seconds=15, cpu_seconds=2, memory_mb=256)
SLOT = Slot("features", 4, 4)
NODES = [{"id": "map", "op": "linear", "inputs": ["x"], "params": {"out": "out"}}]
BLUEPRINT: Blueprint = parse_blueprint(
    {"version": 1, "name": "fuzzed", "layouts": ["features"], "nodes": NODES, "output": "map"}
)
PIPELINE = Pipeline(TorchScriptTarget())


class Whole(nn.Module):
    """What ``BLUEPRINT`` says."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x)  # type: ignore[no-any-return]


def program() -> bytes:
    """A good archive as PyTorch saves it."""
    made = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(Whole()), made)
    return made.getvalue()


def damaged(draw: random.Random, data: bytes) -> bytes:
    """``data`` with bits turned, bytes changed, a piece left out, doubled or moved, or an end missing."""
    made = bytearray(data)
    start = draw.randrange(len(made))
    length = min(draw.choice((1, 2, 4, 8, 64, 1024)), len(made) - start)
    match draw.randrange(6):
        case 0:
            for _ in range(draw.choice((1, 1, 1, 4, 32))):
                made[draw.randrange(len(made))] ^= 1 << draw.randrange(8)
        case 1:
            made[start : start + length] = draw.randbytes(length)
        case 2:
            made[start : start + length] = draw.choice((b"\x00", b"\xff", b"\x7f", b"[", b'"')) * length
        case 3:
            del made[start : start + length]
        case 4:
            made[start:start] = made[start : start + length]
        case _:
            del made[start:]
    return bytes(made)


def damaged_within(draw: random.Random, data: bytes) -> bytes:
    """An archive whose one entry is damaged, its sums and sizes made to match."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(made, "w") as out:
        chosen = draw.choice(source.namelist())
        for name in source.namelist():
            held = source.read(name)
            out.writestr(name, damaged(draw, held) if name == chosen and held else held)
    return made.getvalue()


def forged(draw: random.Random, artefact: KernelArtefact) -> bytes:
    """A kernel file with a damaged blueprint, its digest made to match."""
    blueprint = damaged(draw, artefact.blueprint.encode()).decode(errors="replace")
    return write_kernel(replace(artefact, blueprint=blueprint))


def refused(error: RefusedProgram) -> str:
    """How a file was refused, once that is seen to be fit for a terminal."""
    if not str(error).isprintable():
        raise AssertionError(f"told {str(error)!r}")
    return "refused after a crash" if "its worker ended" in error.message else "refused"


def read(data: bytes) -> str:
    """What comes of a kernel file; raises whatever should not."""
    try:
        read_kernel(data)
    except RefusedProgram as error:
        return refused(error)
    return "accepted"


def imported(importer: Importer, data: bytes) -> str:
    """What comes of an archive; raises whatever should not."""
    try:
        _, outcome = importer.kernel(data, (BLUEPRINT, SLOT))
    except RefusedProgram as error:
        return refused(error)
    assert outcome.artefact is not None
    assert outcome.artefact.program != data
    return "accepted"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2_000)
    parser.add_argument("--programs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    draw = random.Random(options.seed)
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    with WorkerPool(1, LIMITS) as pool:
        importer = Importer(PIPELINE, pool)
        artefact = PIPELINE.compile(BLUEPRINT, SLOT)
        file, archive = write_kernel(artefact), program()
        assert (read(file), imported(importer, archive)) == ("accepted", "accepted")
        kinds: dict[str, tuple[int, Callable[[], bytes], Callable[[bytes], str]]] = {
            "file": (options.files // 2, lambda: damaged(draw, file), read),
            "blueprint": (options.files // 2, lambda: forged(draw, artefact), read),
            "archive": (
                options.programs // 2,
                lambda: ZIP + damaged(draw, archive)[len(ZIP) :],
                lambda data: imported(importer, data),
            ),
            "entry": (
                options.programs // 2,
                lambda: damaged_within(draw, archive),
                lambda data: imported(importer, data),
            ),
        }
        for kind, (count, make, examine) in kinds.items():
            for index in range(count):
                data = make()
                if data in (file, archive):
                    continue
                start = time.monotonic()
                try:
                    outcomes[f"{kind} {examine(data)}"] += 1
                except Exception as error:
                    kept = Path(tempfile.gettempdir(), f"import-{options.seed}-{kind}-{index}")
                    kept.write_bytes(data)
                    print(f"{kind} {index}, kept as {kept}: {type(error).__name__}: {error}", file=sys.stderr)
                    return 1
                slowest = max(slowest, time.monotonic() - start)
    print(json.dumps({"outcomes": outcomes, "slowest_seconds": slowest}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
