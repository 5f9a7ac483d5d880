"""A tier that holds sealed bytes only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from esper.errors import CorruptKernel, SealBroken, UnknownKey
from esper.security.envelope import Envelope
from esper.urza.tiers import MISSING, Missing, Tier
from esper.urza.wrapping import WrappedTier


class Encrypted(WrappedTier):
    """A tier whose values are sealed on their way in and opened on their way out, each bound to its key.

    In a cache a value that cannot be opened, because it was changed, moved to another key, or sealed with a
    key that is not at hand, is a miss. In the record it is an error.
    """

    def __init__(self, tier: Tier, envelope: Envelope, *, record: bool = False) -> None:
        """Over ``tier``; ``record`` says that it is the library's record and no cache."""
        super().__init__(tier)
        self._envelope = envelope
        self._record = record

    def get(self, key: str) -> bytes | Missing:
        """The value under ``key``, or ``MISSING``.

        Raises:
            CorruptKernel: this is the record, and what it holds is not what was sealed under ``key``.
            UnknownKey: this is the record, and the key that it was sealed with is not at hand.
        """
        sealed = self._tier.get(key)
        return MISSING if sealed is MISSING else self._opened(key, sealed)

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The values of those of ``keys`` that are held; raises as :meth:`get` does."""
        opened = {key: self._opened(key, sealed) for key, sealed in self._tier.get_many(keys).items()}
        return {key: value for key, value in opened.items() if value is not MISSING}

    def put(self, key: str, value: bytes) -> None:
        """Seal ``value`` and hold it under ``key``."""
        self._tier.put(key, self._envelope.seal(value, key))

    def put_many(self, items: Mapping[str, bytes]) -> None:
        """As :meth:`put` for each."""
        self._tier.put_many({key: self._envelope.seal(value, key) for key, value in items.items()})

    def delete(self, key: str) -> None:
        """Hold nothing under ``key``."""
        self._tier.delete(key)

    def _opened(self, key: str, sealed: bytes) -> bytes | Missing:
        try:
            return self._envelope.open(sealed, key)
        except (SealBroken, UnknownKey) as error:
            if not self._record:
                return MISSING
            if isinstance(error, UnknownKey):
                raise
            raise CorruptKernel(
                f"the bytes stored under sha256:{key[:16]} are not those that were sealed: {error.message}",
                hint=error.hint,
            ) from error
