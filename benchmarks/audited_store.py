"""To store a kernel with its entry in the audit trail, against storing it without one.

Goal: 1.1 times, for a kernel of 100 kB on SQLite, or in the PostgreSQL database of --url and of --other. Both
wait for the disk, so both are timed by the wall.

Run: python benchmarks/audited_store.py [--rounds N] [--url postgresql://... --other postgresql://...]
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from paired import paired

from esper.messages import KernelArtefact, KernelMetadata
from esper.security import Envelope, KeyRing, new_key
from esper.security.audit import Signer
from esper.security.audit_heads import KeptHeads
from esper.urza import KernelLibrary, open_library
from esper.urza.tiers import digest_of
from esper.urza.trail import Auditor

GOAL = 1.1
BYTES = 100_000


def never(_metadata: KernelMetadata, _program: bytes) -> NoReturn:
    raise AssertionError("nothing is loaded here")


def artefact(number: int) -> KernelArtefact:
    """A kernel of its own bytes."""
    program, weights = os.urandom(BYTES), b"weights of all"
    metadata = KernelMetadata(
        kernel_id=f"kernel_{number}",
        blueprint_id="blueprint_shared",
        input_shape=(8,),
        output_shape=(8,),
        compilation_time=0.25,
        performance_score=0.5,
        tags=("linear",),
        name=f"k{number}",
        latency_ratio=1.0,
        program_digest=digest_of(program),
        weights_digest=digest_of(weights),
    )
    return KernelArtefact(metadata, '{"name":"shared"}', program, weights)


def storing(library: KernelLibrary) -> Callable[[], object]:
    """Stores another kernel at each call."""
    numbers = itertools.count()
    return lambda: library.put(artefact(next(numbers)))


def main() -> None:
    """Compare, print, and exit with 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--url", help="an empty database for the library with a trail")
    parser.add_argument("--other", help="an empty database for the one without")
    asked = parser.parse_args()
    keys = KeyRing((new_key(),), "memory")
    with tempfile.TemporaryDirectory(dir=".") as name:
        auditor = Auditor(Signer(keys), lambda: "user-benchmark", KeptHeads(Path(name) / "heads"))
        url, other = asked.url or f"sqlite:///{name}/a.db", asked.other or f"sqlite:///{name}/b.db"
        with (
            open_library(url, never, envelope=Envelope(keys), auditor=auditor) as audited,
            open_library(other, never, envelope=Envelope(keys)) as plain,
        ):
            clock = time.perf_counter
            timed = paired(storing(plain), storing(audited), rounds=asked.rounds, steps=1, clock=clock)
            verdict = audited.trail.verify()
    assert not verdict.findings
    met = timed.ratio <= GOAL
    print("       without ms   with ms   ratio  middle half")
    print(
        f"store {timed.peer_ms:11.2f} {timed.ours_ms:9.2f} {timed.ratio:7.3f}"
        f"  {timed.low:.3f}-{timed.high:.3f}  {'meets' if met else 'MISSES'} {GOAL}"
        f" ({verdict.entries} entries)"
    )
    raise SystemExit(not met)


if __name__ == "__main__":
    main()
