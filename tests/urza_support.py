"""Kernels to fill a library with, for the tests of Urza."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

from esper.messages import FieldReport, KernelArtefact, KernelMetadata, Slot
from esper.security import Envelope, Key, KeyRing
from esper.urza.opening import open_library
from esper.urza.tiers import digest_of

KEY = Key(bytes(range(32)))
ENVELOPE = Envelope(KeyRing((KEY,), "the tests"))

open_sealed = partial(open_library, envelope=ENVELOPE)
"""``open_library`` with the key of the tests, which every process of them has."""


def artefact(
    name: str,
    *,
    program: bytes | None = None,
    weights: bytes = b"weights of all",
    blueprint: str = '{"name":"shared"}',
    **metadata: Any,
) -> KernelArtefact:
    """A kernel called ``kernel_<name>``; without ``program`` its bytes are its own and mean nothing."""
    program = f"program of {name}".encode() if program is None else program
    fields: dict[str, Any] = {
        "kernel_id": f"kernel_{name}",
        "blueprint_id": "blueprint_shared",
        "input_shape": (8,),
        "output_shape": (8,),
        "compilation_time": 0.25,
        "performance_score": 0.5,
        "tags": ("linear",),
        "name": name,
        "latency_ratio": 1.0,
        "program_digest": digest_of(program),
        "weights_digest": digest_of(weights),
    }
    return KernelArtefact(KernelMetadata(**(fields | metadata)), blueprint, program, weights)


def never_load(metadata: KernelMetadata, program: bytes) -> NoReturn:
    raise AssertionError(f"the loader was called for {metadata.kernel_id}")


REPORT = FieldReport(
    layer="stage1.conv",
    layer_kind="conv2d",
    seed_idx=2,
    slot=Slot("channels", 8, 8),
    site="series",
    kernel_id="kernel_a",
    blueprint_id="blueprint_shared",
    started_epoch=3,
    ended_epoch=7,
    verdict="kept",
    reason="gain 0.031 exceeds 0.010",
    expected_impact=0.02,
    gain=0.031,
    gain_error=0.004,
    threshold=0.01,
    loss_before=0.52,
    loss_after=0.49,
    accuracy_before=0.81,
    accuracy_after=0.83,
    parameters=144,
)


def report(**changes: Any) -> FieldReport:
    """A trial of ``kernel_a`` that was kept, with ``changes``."""
    return replace(REPORT, **changes)
