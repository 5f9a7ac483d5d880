"""Sealed bytes: AES-256-GCM in chunks, under a data key that a key-encryption key wraps.

::

    ESPRSEAL | version 1 | id of the key 8 | nonce 12 | wrapped data key 32 + 16 | chunk + 16 | chunk + 16 ...

Chunks follow STREAM (Hoang, Reyhanitabar, Rogaway, Vizar: Online Authenticated-Encryption and its Nonce-Reuse
Misuse-Resistance, 2015): the nonce is the position and a mark of the last chunk. The data key is drawn anew
for each message, so no nonce is used twice with a key. docs/decisions/0090 has the reasons.
"""

from __future__ import annotations

import hmac
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from struct import Struct
from typing import BinaryIO, Final, NamedTuple, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from esper.errors import SealBroken
from esper.security.keys import KEY_BYTES, Key, Keys

MAGIC: Final = b"ESPRSEAL"
VERSION: Final = 1
CHUNK: Final = 2**18
STREAMED: Final = 16
"""How many chunks a stream hands on at a time: the file system takes large pieces faster than small ones."""
_TAG: Final = 16
_NONCE: Final = 12
_HEADER: Final = Struct(f"> {len(MAGIC)}s B 8s {_NONCE}s {KEY_BYTES + _TAG}s")
HEADER_BYTES: Final = _HEADER.size
_RECORD_TAG: Final = re.compile("([0-9a-f]{16}):([0-9a-f]{64})")


class Envelope:
    """Seals bytes under an identity, and opens what was sealed under the same one.

    Threads may share one. Every method may raise what its keys raise: ``UnknownKey``, ``SecurityError`` or
    ``StorageError``.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._used: dict[str, _Derived] = {}

    def seal(self, data: bytes, identity: str) -> bytes:
        """``data``, to be opened by a holder of the primary key who names the same ``identity``."""
        secret = os.urandom(KEY_BYTES)
        cipher = AESGCM(secret)
        # A buffer that its BytesIO hands out as it is: the one allocation, which costs more than to encrypt.
        sealed = io.BytesIO(bytes(_sealed_length(len(data))))
        with sealed.getbuffer() as target, memoryview(data) as source:
            target[:HEADER_BYTES] = self._header(secret, identity)
            for piece in _pieces(len(data), identity):
                cipher.encrypt_into(piece.nonce, source[piece.plain], piece.bound, target[piece.sealed])
        return sealed.getvalue()

    def open(self, sealed: bytes, identity: str) -> bytes:
        """The bytes that were sealed under ``identity``, all of them authenticated, or ``SealBroken``."""
        cipher = AESGCM(self._data_key(sealed, identity))
        length = _plain_length(len(sealed), identity)
        try:
            if length <= CHUNK:  # as of most kernels: in three quarters of the time
                nonce = _nonce(0, last=True)
                return cipher.decrypt(nonce, memoryview(sealed)[HEADER_BYTES:], _bound(nonce, identity))
            data = io.BytesIO(bytes(length))
            with data.getbuffer() as target, memoryview(sealed) as source:
                for piece in _pieces(length, identity):
                    cipher.decrypt_into(piece.nonce, source[piece.sealed], piece.bound, target[piece.plain])
        except InvalidTag:
            _refuse(identity)
        return data.getvalue()

    def seal_stream(self, pieces: Sequence[memoryview], identity: str) -> Iterator[memoryview]:
        """What :meth:`seal` makes of ``pieces`` (of bytes) joined, in parts: each holds until the next."""
        secret = os.urandom(KEY_BYTES)
        cipher, line, length = AESGCM(secret), _Line(pieces), sum(map(len, pieces))
        buffer = memoryview(bytearray(min(_sealed_length(length), HEADER_BYTES + STREAMED * (CHUNK + _TAG))))
        buffer[:HEADER_BYTES] = self._header(secret, identity)
        end = HEADER_BYTES
        for piece in _pieces(length, identity):
            size = piece.plain.stop - piece.plain.start
            if end + size + _TAG > len(buffer):
                yield buffer[:end]
                end = 0
            taken = line.take(size)
            plain = taken[0] if len(taken) == 1 else b"".join(taken)
            end += cipher.encrypt_into(piece.nonce, plain, piece.bound, buffer[end : end + size + _TAG])
        yield buffer[:end]

    def open_stream(
        self, file: BinaryIO, sealed: int, identity: str, targets: Sequence[memoryview] | None = None
    ) -> None:
        """Authenticate the ``sealed`` bytes that ``file`` has from here on, and fill ``targets`` with them.

        ``SealBroken`` unless they are all that the file has, and as many as the targets hold. The targets
        are worth nothing before this returns; None only authenticates.
        """
        cipher = AESGCM(self._data_key(file.read(HEADER_BYTES), identity))
        length = _plain_length(sealed, identity)
        if targets is not None and sum(map(len, targets)) != length:
            _refuse(identity)
        line = None if targets is None else _Line(targets)
        scratch = memoryview(bytearray(CHUNK))
        for piece in _pieces(length, identity):
            size = piece.plain.stop - piece.plain.start
            data = file.read(size + _TAG)
            room = [scratch[:size]] if line is None else line.take(size)
            whole = room[0] if len(room) == 1 else scratch[:size]
            if len(data) != size + _TAG:
                _refuse(identity)
            try:
                cipher.decrypt_into(piece.nonce, data, piece.bound, whole)
            except InvalidTag:
                _refuse(identity)
            if len(room) != 1:
                _spread(whole, room)
        if file.read(1):
            _refuse(identity)

    @staticmethod
    def plain_length(sealed: int) -> int:
        """How many bytes were sealed where there are ``sealed`` now; ``SealBroken`` if it can be none."""
        return _plain_length(sealed, None)

    def rewrap(self, sealed: bytes, identity: str) -> bytes:
        """``sealed`` with a header of the primary key; the chunks are the same, and are not looked at."""
        header = self._header(self._data_key(sealed, identity), identity)
        return b"".join((header, memoryview(sealed)[HEADER_BYTES:]))

    def key_id(self, sealed: bytes) -> str:
        """The id of the key that ``sealed`` says it was sealed with; ``SealBroken`` if it is not sealed."""
        return _parsed(sealed)[0].hex()

    def authenticate(self, message: bytes) -> str:
        """A tag that only a holder of the primary key can make: the key's id and an HMAC-SHA256."""
        key = self._keys.primary
        return f"{key.id}:{self._derived(key.id).tag(message)}"

    def check(self, message: bytes, tag: str) -> None:
        """Raise ``SealBroken`` unless ``tag`` was made by :meth:`authenticate` for ``message``."""
        match = _RECORD_TAG.fullmatch(tag)
        if match is None or not hmac.compare_digest(self._derived(match[1]).tag(message), match[2]):
            raise SealBroken(
                "a record does not match its tag: somebody without the key has changed it",
                hint="take it from a copy of the library",
            )

    def _header(self, secret: bytes, identity: str) -> bytes:
        key = self._keys.primary
        key_id, nonce = bytes.fromhex(key.id), os.urandom(_NONCE)
        wrapped = self._derived(key.id).cipher.encrypt(nonce, secret, _bound(key_id, identity))
        return _HEADER.pack(MAGIC, VERSION, key_id, nonce, wrapped)

    def _data_key(self, sealed: bytes, identity: str) -> bytes:
        key_id, nonce, wrapped = _parsed(sealed, identity)
        try:
            return self._derived(key_id.hex()).cipher.decrypt(nonce, wrapped, _bound(key_id, identity))
        except InvalidTag:
            _refuse(identity)

    def _derived(self, key_id: str) -> _Derived:
        known = self._used.get(key_id)
        if known is None:
            known = self._used[key_id] = _Derived(self._keys.key(key_id))
        return known


class _Derived:
    """What a key does: a cipher for data keys, and tags. Neither has a key that the other uses."""

    def __init__(self, key: Key) -> None:
        self.cipher = AESGCM(key.derived("data keys"))
        self._records = hmac.new(key.derived("records"), digestmod="sha256")

    def tag(self, message: bytes) -> str:
        tag = self._records.copy()
        tag.update(message)
        return tag.hexdigest()


class _Piece(NamedTuple):
    plain: slice
    sealed: slice
    nonce: bytes
    bound: bytes


class _Line:
    """Memory in several places, gone through once."""

    def __init__(self, pieces: Iterable[memoryview]) -> None:
        self._left = iter(pieces)
        self._now = memoryview(b"")

    def take(self, size: int) -> list[memoryview]:
        """Where the next ``size`` bytes are."""
        taken = []
        while size:
            while not self._now:
                self._now = next(self._left)
            taken.append(self._now[:size])
            self._now = self._now[size:]
            size -= len(taken[-1])
        return taken


def _spread(whole: memoryview, places: Iterable[memoryview]) -> None:
    for place in places:
        place[:] = whole[: len(place)]
        whole = whole[len(place) :]


def _pieces(length: int, identity: str) -> Iterator[_Piece]:
    """Where each chunk of ``length`` bytes lies, plain and sealed, with its nonce and associated data."""
    count = _count(length, CHUNK)
    for position in range(count):
        start, end = position * CHUNK, min((position + 1) * CHUNK, length)
        shift = HEADER_BYTES + position * _TAG
        nonce = _nonce(position, last=position == count - 1)
        sealed = slice(start + shift, end + shift + _TAG)
        yield _Piece(slice(start, end), sealed, nonce, _bound(nonce, identity))


def _nonce(position: int, *, last: bool) -> bytes:
    return position.to_bytes(_NONCE - 1, "big") + bytes([last])


def _bound(place: bytes, identity: str) -> bytes:
    """Associated data: format, ``place`` (a nonce or the id of a key, by length) and ``identity``."""
    return MAGIC + bytes([VERSION, len(place)]) + place + identity.encode()


def _count(length: int, size: int) -> int:
    return max(1, -(-length // size))


def _sealed_length(length: int) -> int:
    return HEADER_BYTES + length + _count(length, CHUNK) * _TAG


def _plain_length(sealed: int, identity: str | None) -> int:
    body = sealed - HEADER_BYTES
    length = body - _count(body, CHUNK + _TAG) * _TAG
    if length < 0 or _sealed_length(length) != sealed:
        _refuse(identity)
    return length


def _parsed(sealed: bytes, identity: str | None = None) -> tuple[bytes, bytes, bytes]:
    """The id of the key, the nonce and the wrapped data key in the header."""
    if len(sealed) < HEADER_BYTES or not sealed.startswith(MAGIC):
        _refuse(identity, "they are not sealed, or cut short")
    _, version, key_id, nonce, wrapped = _HEADER.unpack_from(sealed)
    if version != VERSION:
        _refuse(identity, f"they say format {version}, and this Esper reads {VERSION}")
    return key_id, nonce, wrapped


def _refuse(identity: str | None, reason: str = "they were changed, cut or put under this name") -> NoReturn:
    name = f" of {identity}" if identity else ""
    raise SealBroken(f"the stored bytes{name} do not authenticate: {reason}", hint="take them from a copy")
