"""One kernel as a file that anybody may be given: its blueprint and its weights, and no program.

The file is one of safetensors, so that other tools open it, with these texts in its metadata: ``format``
(``esper-kernel-1``), ``blueprint`` (canonical JSON), ``slot``, ``dtype``, ``kernel_id``, ``parent_kernel``,
``run_id``, ``decision``, and ``digest``, the SHA-256 of the other texts and the weights. The digest finds
damage; it vouches for nobody. Whoever reads a file builds the kernel anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from typing import get_args

import safetensors
import safetensors.torch
from torch import Tensor

from esper.blueprint import Blueprint, from_json
from esper.errors import BlueprintError, RefusedProgram
from esper.messages import KernelArtefact, Layout, Slot

FORMAT = "esper-kernel-1"
MAX_HEADER = 1 << 21
"""Bytes before the weights: a blueprint of 256 KiB, escaped, and the names of 5,000 weights."""

_LINEAGE = {"kernel_id": 128, "parent_kernel": 128, "run_id": 200, "decision": 600}
"""Texts, and the characters that a library has for them."""
_TEXTS = ("format", "blueprint", "slot", "dtype", *_LINEAGE)
_MAX_LINE = 400


@dataclass(frozen=True, slots=True)
class KernelFile:
    """What a kernel file holds: data that is yet to be built, by the names of the metadata of kernels."""

    blueprint: Blueprint
    slot: Slot
    dtype: str
    weights: dict[str, Tensor]
    kernel_id: str = ""
    parent_kernel: str = ""
    run_id: str = ""
    decision: str = ""


def write_kernel(artefact: KernelArtefact) -> bytes:
    """The file of a kernel; equal kernels give equal bytes."""
    metadata = artefact.metadata
    texts = {
        "format": FORMAT,
        "blueprint": artefact.blueprint,
        "slot": json.dumps(astuple(metadata.slot)),
        "dtype": metadata.dtype,
    }
    texts |= {name: getattr(metadata, name) for name in _LINEAGE}
    weights = safetensors.torch.load(artefact.weights)
    return safetensors.torch.save(weights, texts | {"digest": _digest(texts, weights)})


def read_kernel(data: bytes) -> KernelFile:
    """What the file ``data`` holds; nothing of it is run. Raises ``RefusedProgram`` for anything else."""
    texts, weights = _parts(data)
    try:
        blueprint = from_json(texts["blueprint"])
    except BlueprintError as error:
        raise RefusedProgram(error.message, hint=error.hint) from error
    check_weights(weights, texts["dtype"])
    lineage = {name: texts[name] for name in _LINEAGE}
    for name, text in lineage.items():
        if len(text) > _LINEAGE[name] or not text.isprintable():
            raise RefusedProgram(f"its {name} is not a few plain words")
    return KernelFile(blueprint, _slot(texts["slot"]), texts["dtype"], weights, **lineage)


def _parts(data: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The texts and weights in a file, once they are what its digest says."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, MAX_HEADER):
        raise RefusedProgram("it is no kernel file", hint="make one with: esper kernels export ID FILE")
    try:
        weights = safetensors.torch.load(data)  # which holds the header against the whole of the file
        header = json.loads(data[8 : 8 + length])
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError, RecursionError) as error:
        raise RefusedProgram(f"it is no whole safetensors file: {one_line(str(error))}") from error
    texts = header.get("__metadata__") or {}
    if texts.get("format") != FORMAT:
        raise RefusedProgram(
            f"its format is {texts.get('format')!r:.60}, not {FORMAT!r}",
            hint="weights alone are no kernel; make a kernel file with: esper kernels export ID FILE",
        )
    digest = texts.pop("digest", None)
    if texts.keys() != set(_TEXTS) or digest != _digest(texts, weights):
        raise RefusedProgram("it is damaged: its digest does not match", hint="have it exported again")
    return texts, weights


def _digest(texts: dict[str, str], weights: dict[str, Tensor]) -> str:
    held = json.dumps(texts, sort_keys=True).encode() + b"\n" + safetensors.torch.save(weights)
    return hashlib.sha256(held).hexdigest()


def _slot(text: str) -> Slot:
    try:
        layout, *numbers = json.loads(text)
        slot = Slot(layout, *numbers)
    except (ValueError, TypeError, RecursionError):
        raise RefusedProgram(f"its slot is {text!r:.60}") from None
    known = len(numbers) == len(fields(Slot)) - 1 and layout in get_args(Layout)
    if not known or not all(type(number) is int and 0 < number < 10**9 for number in numbers):
        raise RefusedProgram(f"its slot is {text!r:.60}")
    return slot


def check_weights(weights: Mapping[str, Tensor], dtype: str) -> None:
    """Raises ``RefusedProgram`` unless ``weights`` are finite numbers of ``dtype``, or counters."""
    for name, value in weights.items():
        found = str(value.dtype).removeprefix("torch.")
        if found not in (dtype, "int64"):
            raise RefusedProgram(f"its weight {name!r:.80} is of {found}, not {dtype}")
        if not value.isfinite().all():
            raise RefusedProgram(f"its weight {name!r:.80} is not finite")


def one_line(text: str) -> str:
    """The last line of what a stranger may have written, fit for a terminal."""
    last = (text.strip().splitlines() or ["no reason was told"])[-1].strip()
    return "".join(sign if sign.isprintable() else "?" for sign in last[:_MAX_LINE])
