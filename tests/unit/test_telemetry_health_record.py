"""The packed record of a layer's health: what goes in comes out, and nothing else is taken for one."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from esper.messages import HealthSignal, SeedState
from esper.nissa.telemetry.health_record import FIELDS, HealthRecord, pack, unpack

COUNTS = st.integers(0, 2**32 - 1)
NAMES = st.text(max_size=300)


@st.composite
def packed(draw: st.DrawFn) -> tuple[HealthRecord, bytes]:
    states = tuple(draw(st.lists(st.sampled_from(SeedState), max_size=20)))
    values = draw(arrays(np.float32, (len(states), len(FIELDS)), elements=st.floats(width=32)))
    record = HealthRecord(draw(NAMES), draw(COUNTS), draw(COUNTS), draw(COUNTS), states, values)
    return record, pack(record.layer, record.epoch, record.step, record.sampled, record.states, record.values)


def test_version_1_is_this_very_layout() -> None:
    assert FIELDS == (
        "activation_mean",
        "activation_variance",
        "gradient_norm",
        "dead_share",
        "latency_ms",
        "health",
    )
    assert [state.value for state in SeedState][:3] == ["DORMANT", "GERMINATED", "TRAINING"]
    values = np.array([[1, 2, 3, 4, 5, 0.5]], np.float32)
    data = pack("é", 7, 8, 9, [SeedState.TRAINING], values)
    assert data == (
        b"ESPH\x01\x06\x01\x00\x07\x00\x00\x00\x08\x00\x00\x00\x09\x00\x00\x00\x02\xc3\xa9\x02"
        + struct.pack("<6f", 1, 2, 3, 4, 5, 0.5)
    )
    assert unpack(data).signals() == (HealthSignal(1, 2, 3, 4, 5, 0.5),)


@settings(max_examples=50)
@given(packed())
def test_what_was_packed_comes_back(sample: tuple[HealthRecord, bytes]) -> None:
    record, data = sample
    found = unpack(data)
    assert record.layer.encode().startswith(found.layer.encode())
    assert found.layer == record.layer or len(found.layer.encode()) > 251
    assert (found.epoch, found.step, found.sampled) == (record.epoch, record.step, record.sampled)
    assert found.states == record.states
    np.testing.assert_array_equal(found.values, record.values)  # NaN equals NaN here


@settings(max_examples=50)
@given(packed(), st.data())
def test_what_was_changed_is_a_record_or_refused(
    sample: tuple[HealthRecord, bytes], data: st.DataObject
) -> None:
    changed = bytearray(sample[1])
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(changed[: data.draw(st.integers(0, len(changed)))])
    for candidate in (bytes(changed), cut, cut + b"\0"):
        try:
            found = unpack(candidate)
        except ValueError:
            continue
        again = pack(found.layer, found.epoch, found.step, found.sampled, found.states, found.values)
        assert again == candidate


@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"record|bytes"):
        unpack(data)


def test_another_version_and_a_cut_record_are_refused() -> None:
    data = pack("layer", 0, 0, 1, [SeedState.DORMANT], np.zeros((1, 6), np.float32))
    for wrong in (data[:4] + b"\x02" + data[5:], data[:-1], data + b"\0", b""):
        with pytest.raises(ValueError, match=r"record"):
            unpack(wrong)


def test_numbers_without_a_place_in_it_are_refused() -> None:
    values = np.zeros((1, 6), np.float32)
    for epoch, shape in ((-1, values), (2**32, values), (0, values[:, :5])):
        with pytest.raises(ValueError, match=r"epoch|seeds"):
            pack("layer", epoch, 0, 0, [SeedState.DORMANT], shape)
    assert math.isnan(unpack(pack("l", 0, 0, 0, [SeedState.DORMANT], values * math.nan)).values[0, 0])
