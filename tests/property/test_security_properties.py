"""Any bytes under any name come back whole, and any change to what is stored is refused."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.errors import SealBroken, UnknownKey
from esper.security import Envelope, KeyRing, new_key
from esper.security.envelope import CHUNK, HEADER_BYTES

RING = KeyRing((new_key(), new_key()), "a test")
ENVELOPE = Envelope(RING)
DATA = os.urandom(3 * CHUNK + 20)

near_a_border = st.builds(
    lambda chunks, off: max(0, chunks * CHUNK + off), st.integers(0, 3), st.integers(-17, 17)
)
sizes = st.one_of(near_a_border, st.integers(0, len(DATA)))
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@settings(deadline=None)
@given(sizes, names)
def test_what_was_sealed_opens_under_its_name(size: int, name: str) -> None:
    sealed = ENVELOPE.seal(DATA[:size], name)
    assert ENVELOPE.open(sealed, name) == DATA[:size]
    assert len(sealed) == HEADER_BYTES + size + 16 * max(1, -(-size // CHUNK))


@settings(deadline=None)
@given(sizes, names, names)
def test_and_under_no_other(size: int, name: str, other: str) -> None:
    sealed = ENVELOPE.seal(DATA[:size], name)
    if other != name:
        with pytest.raises(SealBroken):
            ENVELOPE.open(sealed, other)


@settings(deadline=None)
@given(sizes, st.data())
def test_any_stretch_that_is_changed_cut_out_or_put_in_is_refused(size: int, draw: st.DataObject) -> None:
    sealed = ENVELOPE.seal(DATA[:size], "name")
    start = draw.draw(st.integers(0, len(sealed)))
    end = draw.draw(st.integers(start, min(len(sealed), start + 2 * CHUNK)))
    put = draw.draw(st.one_of(st.binary(max_size=40), st.just(sealed[end:start:-1]), st.just(DATA[:CHUNK])))
    changed = sealed[:start] + put + sealed[end:]
    if changed != sealed:
        with pytest.raises((SealBroken, UnknownKey)):
            ENVELOPE.open(changed, "name")


@settings(deadline=None, max_examples=30)
@given(sizes, names, st.lists(st.booleans(), max_size=4))
def test_through_any_rotations_the_chunks_stay_and_open(size: int, name: str, with_new: list[bool]) -> None:
    sealed, ring = ENVELOPE.seal(DATA[:size], name), RING
    chunks = sealed[HEADER_BYTES:]
    for new in with_new:
        ring = ring.with_primary(new_key()) if new else ring
        sealed = Envelope(ring).rewrap(sealed, name)
    assert sealed[HEADER_BYTES:] == chunks
    assert Envelope(ring).open(sealed, name) == DATA[:size]
