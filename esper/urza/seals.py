"""What makes a kernel on record its author's own: sealed bytes, and a signature over what does not change."""

from __future__ import annotations

import json
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields
from typing import Final

from esper.errors import CorruptKernel, SealBroken
from esper.messages import KernelMetadata
from esper.security.envelope import Envelope
from esper.urza.tiers import digest_of

_CHANGING: Final = ("tags", "status")
"""Fields of the metadata that may be edited, and are not signed."""

_SIGNED: Final = [(each.name, each.default) for each in fields(KernelMetadata) if each.name not in _CHANGING]

_canonical: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


class Seals:
    """Seals blobs and signs kernels with an ``Envelope``; with none, as in memory, does neither.

    A blob is sealed under its digest as the identity: the bytes of another do not open in its place.
    """

    def __init__(self, envelope: Envelope | None) -> None:
        self._envelope = envelope

    @property
    def key_id(self) -> str:
        """The id of the key that seals; empty where nothing is sealed."""
        return self._envelope.authenticate(b"").partition(":")[0] if self._envelope else ""

    def close(self, digest: str, data: bytes) -> tuple[bytes, str]:
        """What to store for ``data``, and the id of the key that it is sealed with."""
        if self._envelope is None:
            return data, ""
        sealed = self._envelope.seal(data, digest)
        return sealed, self._envelope.key_id(sealed)

    def open(self, digest: str, stored: bytes) -> bytes:
        """The bytes whose SHA-256 is ``digest``, or ``CorruptKernel`` with the reason."""
        data = stored
        if self._envelope is not None:
            try:
                data = self._envelope.open(stored, digest)
            except SealBroken as error:
                raise CorruptKernel(f"they are not what was sealed under sha256:{digest[:16]}") from error
        if digest_of(data) != digest:
            raise CorruptKernel(f"they do not match the digest sha256:{digest[:16]}")
        return data

    def rewrap(self, digest: str, stored: bytes) -> tuple[bytes, str]:
        """The same blob under the key that seals now, and the id of that key."""
        assert self._envelope is not None
        sealed = self._envelope.rewrap(stored, digest)
        return sealed, self._envelope.key_id(sealed)

    def sign(self, metadata: KernelMetadata, blueprint_digest: str) -> str:
        """The signature of a kernel; empty where nothing is sealed."""
        if self._envelope is None:
            return ""
        return self._envelope.authenticate(_message(metadata, blueprint_digest))

    def check(self, metadata: KernelMetadata, blueprint_digest: str, signature: str) -> None:
        """Raise ``CorruptKernel`` unless the kernel is what was signed."""
        if self._envelope is None:
            return
        try:
            self._envelope.check(_message(metadata, blueprint_digest), signature)
        except SealBroken as error:
            reason = "its record was changed" if signature else "its record was never sealed"
            raise CorruptKernel(reason) from error


def _message(metadata: KernelMetadata, blueprint_digest: str) -> bytes:
    """All of a kernel that does not change, as canonical JSON.

    A field at its default is left out, so that one that is added to the record later changes no signature.
    """
    values = {
        name: value
        for name, default in _SIGNED
        if (value := getattr(metadata, name)) != default or default is NO_DEFAULT
    }
    return _canonical({"kernel": values, "blueprint_digest": blueprint_digest}).encode()
