"""The health of all seeds of one layer as one packed record.

Schema ``esper.health``, version 1, little-endian:

======  ==============  ============================================================================
offset  type            what
======  ==============  ============================================================================
0       4 bytes         ``ESPH``
4       uint8           version: 1
5       uint8           number of fields a seed has, F: 6
6       uint16          number of seeds, S
8       uint32          epoch, from 0
12      uint32          step in the epoch, from 0
16      uint32          steps sampled in the epoch so far, which the numbers are of
20      uint8           length of the layer's name, N
21      N bytes         the layer's name in UTF-8
21+N    S x uint8       state of each seed: its place in ``SeedState``
21+N+S  S x F x float32  the fields of each seed, as ``FIELDS`` names them
======  ==============  ============================================================================

A reader refuses a version that it does not know. JSON carries the record in base64.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from esper.messages import HealthSignal, SeedState

SCHEMA = "esper.health/1"
"""Name and version, for those who pass records on."""

FIELDS = tuple(item.name for item in fields(HealthSignal))
"""What each seed has, in this order."""

_STATES = tuple(SeedState)
_HEAD = struct.Struct("<4sBBHIIIB")
_MAGIC, _VERSION = b"ESPH", 1
_MAX_SEEDS, _MAX_COUNT, _MAX_NAME = 2**16 - 1, 2**32 - 1, 255


@dataclass(frozen=True, slots=True)
class HealthRecord:
    """What a record says. ``values`` has a row for each seed: float32 of shape (seeds, fields)."""

    layer: str
    epoch: int
    step: int
    sampled: int
    states: tuple[SeedState, ...]
    values: NDArray[np.float32]

    def signals(self) -> tuple[HealthSignal, ...]:
        """The rows as records of their own."""
        return tuple(HealthSignal(*map(float, row)) for row in self.values)


def pack(
    layer: str,
    epoch: int,
    step: int,
    sampled: int,
    states: Sequence[SeedState],
    values: NDArray[np.float32],
) -> bytes:
    """The record. A name of more than 255 bytes is cut; ValueError for numbers that have no place in it."""
    seeds = len(states)
    if values.shape != (seeds, len(FIELDS)) or seeds > _MAX_SEEDS:
        raise ValueError(f"{seeds} seeds with values of shape {values.shape}")
    if not all(0 <= count <= _MAX_COUNT for count in (epoch, step, sampled)):
        raise ValueError(f"epoch {epoch}, step {step}, {sampled} sampled")
    name = layer.encode()
    if len(name) > _MAX_NAME:
        name = name[:_MAX_NAME].decode(errors="ignore").encode()
    head = _HEAD.pack(_MAGIC, _VERSION, len(FIELDS), seeds, epoch, step, sampled, len(name))
    return b"".join(
        (head, name, bytes(map(_STATES.index, states)), values.astype("<f4", copy=False).tobytes())
    )


def unpack(data: bytes) -> HealthRecord:
    """What ``pack`` was given, floats as they are, whether finite or not. ValueError if it is no record."""
    if len(data) < _HEAD.size:
        raise ValueError(f"{len(data)} bytes are no health record")
    magic, version, width, seeds, epoch, step, sampled, name_size = _HEAD.unpack_from(data)
    if (magic, version, width) != (_MAGIC, _VERSION, len(FIELDS)):
        raise ValueError(f"not a health record of version {_VERSION}")
    states_at = _HEAD.size + name_size
    values_at = states_at + seeds
    if len(data) != values_at + 4 * seeds * width:
        raise ValueError(f"a health record of {len(data)} bytes says that it has {seeds} seeds")
    layer = data[_HEAD.size : states_at].decode()  # UnicodeDecodeError is a ValueError
    found = data[states_at:values_at]
    if any(state >= len(_STATES) for state in found):
        raise ValueError("a health record with a state of a seed that is not known")
    values = np.frombuffer(data, "<f4", offset=values_at).reshape(seeds, width)
    return HealthRecord(layer, epoch, step, sampled, tuple(_STATES[state] for state in found), values)
