"""A kernel ready to run, from memory and from SQLite, against ``torch.jit.load`` of bytes in hand.

Goal: at most 50 ms from either. A fetch also reads the kernel's metadata and blueprint from the record and
checks every byte against its digest, which the peer does not.

Run: python benchmarks/kernel_load.py [--rounds N]
"""

from __future__ import annotations

import argparse
import io
import tempfile
import warnings
from pathlib import Path

import torch
from paired import paired
from torch import nn

from esper.messages import KernelArtefact, KernelMetadata
from esper.security import Envelope, KeyRing, new_key
from esper.urza import KernelLibrary, open_library
from esper.urza.tiers import digest_of

LOAD_GOAL_MS = 50.0


class Bottleneck(nn.Module):
    """A two-layer kernel of the usual size: 64 -> 16 -> 64."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.norm = nn.Linear(64, 16), nn.Linear(16, 64), nn.LayerNorm(64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., 64) to the same shape."""
        return self.up(torch.relu(self.down(self.norm(x))))


def scripted(module: nn.Module) -> bytes:
    """``module`` as a TorchScript archive."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    return buffer.getvalue()


def load(_: KernelMetadata, program: bytes) -> nn.Module:
    """What the library calls with checked bytes, and the peer with bytes in hand."""
    module: nn.Module = torch.jit.load(io.BytesIO(program))
    return module


def artefact(program: bytes) -> KernelArtefact:
    """``program`` as a kernel for the library."""
    weights = b"not read by a fetch"
    metadata = KernelMetadata(
        kernel_id="kernel_bottleneck",
        blueprint_id="blueprint_bottleneck",
        input_shape=(64,),
        output_shape=(64,),
        compilation_time=0.0,
        performance_score=0.5,
        tags=("linear", "bottleneck"),
        program_digest=digest_of(program),
        weights_digest=digest_of(weights),
    )
    return KernelArtefact(metadata, '{"name":"bottleneck"}', program, weights)


def compare_loads(folder: Path, rounds: int) -> bool:
    """Print the time of a load by hand and of fetches; whether the fetches are within the goal."""
    kernel = artefact(scripted(Bottleneck()))
    url = f"sqlite:///{folder}/kernels.db"
    print(f"kernel ready to run, TorchScript archive of {len(kernel.program)} bytes, median ms")
    reached = True
    envelope = Envelope(KeyRing((new_key(),), "memory"))
    with (
        open_library(url, load, envelope=envelope) as warm,
        open_library(url, load, envelope=envelope, memory_bytes=0) as cold,
    ):
        warm.put(kernel)
        libraries: dict[str, KernelLibrary] = {"from memory": warm, "from SQLite": cold}
        for name, library in libraries.items():
            timed = paired(
                lambda: load(kernel.metadata, kernel.program),
                lambda library=library: library.fetch(kernel.metadata.kernel_id),
                rounds=rounds,
                steps=10,
            )
            print(
                f"  {name}: torch.jit.load {timed.peer_ms:.2f}, fetch {timed.ours_ms:.2f}, "
                f"ratio {timed.ratio:.2f} ({timed.low:.2f} to {timed.high:.2f})"
            )
            reached &= timed.ours_ms <= LOAD_GOAL_MS
        hits = {name: library.cache_counts() for name, library in libraries.items()}
    assert hits["from memory"]["sql"][0] == 2, hits  # the program and the blueprint, once
    assert hits["from SQLite"]["memory"][0] == 0, hits
    print(f"  goal: at most {LOAD_GOAL_MS:.0f} ms {'reached' if reached else 'MISSED'}")
    return reached


def main() -> None:
    """Compare, print, and exit with 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DeprecationWarning)  # every call of torch.jit gives one
    with tempfile.TemporaryDirectory() as folder:
        reached = compare_loads(Path(folder), rounds)
    raise SystemExit(not reached)


if __name__ == "__main__":
    main()
