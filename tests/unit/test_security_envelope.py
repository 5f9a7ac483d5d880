"""Sealed bytes: whatever was done to them without the key, they are refused and nothing is returned."""

import io
import os
import tracemalloc

import pytest

from esper.errors import SealBroken, UnknownKey
from esper.security import Envelope, Key, KeyRing, new_key
from esper.security.envelope import CHUNK, HEADER_BYTES, MAGIC, STREAMED

NAME = "kernel_0123456789abcdef/program"
PIECE = CHUNK + 16
RING = KeyRing((new_key(),), "a test")
ENVELOPE = Envelope(RING)


@pytest.fixture(scope="module")
def data() -> bytes:
    return os.urandom(3 * CHUNK + 100)


@pytest.fixture(scope="module")
def sealed(data: bytes) -> bytes:
    return ENVELOPE.seal(data, NAME)


# Sealed and signed by the first version, with the key of the bytes 0 to 31.
OLD_KEYS = KeyRing((Key(bytes(range(32))),), "a test")
OLD_SEALED = bytes.fromhex(
    "455350525345414c01f52ee837a24c6345c0eecae2ca4621b00092afd89acafd742868a73de0afb5c4b6e8280936a982"
    "69536dfaf383c49ecbe79d38a2842e551edde11e199f11d31ee26cbba331889bc0544591a0e451f10b56b62ee6c87d76"
    "cb300d1b58"
)
OLD_TAG = "f52ee837a24c6345:0967a42796f02ab690c519c15fecb73fbde8158494d5d72f52bd153b596da1bc"


def pieces(sealed: bytes) -> tuple[bytes, list[bytes]]:
    body = sealed[HEADER_BYTES:]
    return sealed[:HEADER_BYTES], [body[at : at + PIECE] for at in range(0, len(body), PIECE)]


def refused(sealed: bytes, identity: str = NAME, envelope: Envelope = ENVELOPE) -> str:
    with pytest.raises(SealBroken) as caught:
        envelope.open(sealed, identity)
    assert identity in caught.value.message or "not sealed" in caught.value.message
    with pytest.raises(SealBroken):
        envelope.open_stream(io.BytesIO(sealed), len(sealed), identity)
    return caught.value.message


WHOLE = STREAMED * CHUNK


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [0],
        [1, 0, 70],
        [CHUNK],
        [CHUNK - 1, 2, CHUNK, 5],
        [3 * CHUNK + 1],
        [WHOLE],
        [WHOLE, 1],
        [WHOLE + 1000, WHOLE],
    ],
)
def test_a_stream_is_what_is_sealed_at_once(sizes: list[int]) -> None:
    data = [os.urandom(size) for size in sizes]
    sealed = b"".join(map(bytes, ENVELOPE.seal_stream([memoryview(piece) for piece in data], NAME)))
    assert ENVELOPE.open(sealed, NAME) == b"".join(data)
    assert ENVELOPE.plain_length(len(sealed)) == sum(sizes)
    targets = [bytearray(size) for size in sizes]
    ENVELOPE.open_stream(io.BytesIO(sealed), len(sealed), NAME, [memoryview(target) for target in targets])
    assert targets == data


def test_a_stream_that_is_longer_shorter_or_of_other_targets_is_refused(sealed: bytes) -> None:
    for changed in (sealed + b"x", sealed[:-1], sealed[: HEADER_BYTES + PIECE], b""):
        with pytest.raises(SealBroken):
            ENVELOPE.open_stream(io.BytesIO(changed), len(sealed), NAME)
    with pytest.raises(SealBroken):
        ENVELOPE.open_stream(io.BytesIO(sealed), len(sealed), NAME, [memoryview(bytearray(CHUNK))])


def test_what_is_stored_shows_nothing_of_the_data_and_is_never_twice_the_same() -> None:
    data = b"the same secret words" * 100
    first, second = ENVELOPE.seal(data, NAME), ENVELOPE.seal(data, NAME)
    assert b"secret" not in first
    assert first[HEADER_BYTES:] != second[HEADER_BYTES:]
    assert (
        first[len(MAGIC) + 9 : HEADER_BYTES - 48] != second[len(MAGIC) + 9 : HEADER_BYTES - 48]
    )  # the nonce
    assert type(first) is bytes
    assert type(ENVELOPE.open(first, NAME)) is bytes


def test_what_the_first_version_stored_is_read_for_ever() -> None:
    old = Envelope(OLD_KEYS)
    assert old.open(OLD_SEALED, "kernel_a/program") == b"a kernel"
    assert old.authenticate(b"a record") == OLD_TAG


def test_each_flipped_bit_is_refused() -> None:
    sealed = ENVELOPE.seal(b"a small kernel", NAME)
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises((SealBroken, UnknownKey)):
            ENVELOPE.open(bytes(changed), NAME)


def test_each_length_but_its_own_is_refused() -> None:
    sealed = ENVELOPE.seal(b"a small kernel", NAME)
    for length in range(len(sealed)):
        refused(sealed[:length])
    for more in range(1, 64):
        refused(sealed + bytes(more))
        refused(bytes(more) + sealed)


@pytest.mark.parametrize("length", [HEADER_BYTES, HEADER_BYTES + PIECE, HEADER_BYTES + 2 * PIECE])
@pytest.mark.parametrize("off", [-17, -16, -15, -1, 0, 1, 15, 16, 17])
def test_cut_at_the_end_of_a_chunk_or_near_it_is_refused(sealed: bytes, length: int, off: int) -> None:
    refused(sealed[: length + off])


def test_a_tag_of_bytes_that_stands_behind_the_last_chunk_is_refused() -> None:
    """The length is then that of two chunks, the second shorter than its tag."""
    sealed = ENVELOPE.seal(bytes(CHUNK - 8), NAME)
    for more in range(1, 32):
        refused(sealed + bytes(more))


@pytest.mark.parametrize(
    "order",
    [
        [1, 0, 2, 3],
        [0, 2, 1, 3],
        [0, 0, 1, 2, 3],
        [0, 1, 1, 3],
        [0, 1, 2, 2, 3],
        [0, 1, 2, 3, 3],
        [1, 2, 3],
        [0, 2, 3],
        [0, 1, 3],
        [0, 1, 2],
        [3],
        [],
    ],
)
def test_chunks_out_of_order_twice_or_missing_are_refused(sealed: bytes, order: list[int]) -> None:
    header, chunks = pieces(sealed)
    refused(header + b"".join(chunks[at] for at in order))


def test_the_last_chunk_of_a_message_without_a_rest_cannot_be_dropped() -> None:
    header, chunks = pieces(ENVELOPE.seal(bytes(2 * CHUNK), NAME))
    assert len(chunks) == 2
    refused(header + chunks[0])


def test_a_chunk_of_another_message_is_refused(data: bytes, sealed: bytes) -> None:
    """The same data under the same key and name: what differs is the data key."""
    header, chunks = pieces(sealed)
    _, others = pieces(ENVELOPE.seal(data, NAME))
    for at in range(len(chunks)):
        refused(header + b"".join([*chunks[:at], others[at], *chunks[at + 1 :]]))


def test_the_header_of_another_message_is_refused(data: bytes, sealed: bytes) -> None:
    other, _ = pieces(ENVELOPE.seal(data, NAME))
    refused(other + sealed[HEADER_BYTES:])


@pytest.mark.parametrize("name", ["", "kernel_0123456789abcdef/weights", NAME + "x", NAME[:-1], NAME + "\0"])
def test_under_another_name_it_is_refused(sealed: bytes, name: str) -> None:
    refused(sealed, name)
    with pytest.raises(SealBroken):
        ENVELOPE.rewrap(sealed, name)


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_refused_by_its_number(sealed: bytes, version: int) -> None:
    changed = MAGIC + bytes([version]) + sealed[len(MAGIC) + 1 :]
    assert f"format {version}" in refused(changed)
    with pytest.raises(SealBroken):
        ENVELOPE.key_id(changed)


@pytest.mark.parametrize("stored", [b"", b"plain bytes", MAGIC, bytes(500)])
def test_what_is_not_sealed_is_refused(stored: bytes) -> None:
    assert "not sealed" in refused(stored)


def test_the_key_of_somebody_else_opens_nothing(sealed: bytes) -> None:
    stranger = Envelope(KeyRing((new_key(),), "another test"))
    with pytest.raises(UnknownKey, match=f"{RING.primary.id}.*another test"):
        stranger.open(sealed, NAME)
    theirs = stranger.seal(b"a program of theirs", NAME)
    claimed = theirs[: len(MAGIC) + 1] + bytes.fromhex(RING.primary.id) + theirs[len(MAGIC) + 9 :]
    refused(claimed)


def test_rewrapping_changes_the_header_alone_and_needs_no_look_at_the_chunks(
    data: bytes, sealed: bytes
) -> None:
    both = RING.with_primary(new_key())
    rotated = Envelope(both)
    again = rotated.rewrap(sealed, NAME)
    assert again[HEADER_BYTES:] == sealed[HEADER_BYTES:]
    assert (ENVELOPE.key_id(sealed), rotated.key_id(again)) == (RING.primary.id, both.primary.id)
    only_new = Envelope(both.without(RING.primary.id))
    assert only_new.open(again, NAME) == rotated.open(sealed, NAME) == data
    with pytest.raises(UnknownKey):
        ENVELOPE.open(again, NAME)
    damaged = sealed[:-1] + bytes([sealed[-1] ^ 1])
    refused(rotated.rewrap(damaged, NAME), envelope=rotated)


def test_a_header_is_not_moved_to_another_name_by_rewrapping(data: bytes, sealed: bytes) -> None:
    rotated = Envelope(RING.with_primary(new_key()))
    other = rotated.rewrap(ENVELOPE.seal(data, "other"), "other")
    refused(other[:HEADER_BYTES] + sealed[HEADER_BYTES:], envelope=rotated)


def test_a_record_holds_as_it_was_signed_and_in_no_other_way() -> None:
    tag = ENVELOPE.authenticate(b"kernel_a: digest")
    ENVELOPE.check(b"kernel_a: digest", tag)
    for message, claimed in [
        (b"kernel_b: digest", tag),
        (b"", tag),
        (b"kernel_a: digest", ENVELOPE.authenticate(b"kernel_b: digest")),
        (b"kernel_a: digest", ""),
        (b"kernel_a: digest", tag[:-1]),
        (b"kernel_a: digest", tag + "0"),
        (b"kernel_a: digest", tag + "\n"),
        (b"kernel_a: digest", tag.upper()),
        (b"kernel_a: digest", tag.replace(":", "")),
        (b"kernel_a: digest", "é" * len(tag)),
    ]:
        with pytest.raises(SealBroken, match="record"):
            ENVELOPE.check(message, claimed)
    for at in range(len(tag)):
        changed = tag[:at] + ("0" if tag[at] != "0" else "1") + tag[at + 1 :]
        with pytest.raises((SealBroken, UnknownKey)):
            ENVELOPE.check(b"kernel_a: digest", changed)


def test_a_record_outlives_the_primary_that_signed_it() -> None:
    rotated = Envelope(RING.with_primary(new_key()))
    rotated.check(b"record", ENVELOPE.authenticate(b"record"))
    with pytest.raises(UnknownKey):
        ENVELOPE.check(b"record", rotated.authenticate(b"record"))


def test_to_seal_and_to_open_take_one_allocation_of_the_size_of_the_data() -> None:
    size = 8 * 2**20
    data = bytes(size)
    tracemalloc.start()
    try:
        sealed = ENVELOPE.seal(data, NAME)
        assert size <= tracemalloc.get_traced_memory()[1] < 1.1 * size
        tracemalloc.reset_peak()
        ENVELOPE.open(sealed, NAME)
        assert 2 * size <= tracemalloc.get_traced_memory()[1] < 2.1 * size  # the sealed bytes and the plain
    finally:
        tracemalloc.stop()
