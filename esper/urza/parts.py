"""The bytes that a kernel is made of: asked for in the nearest tier first, checked against the record."""

from __future__ import annotations

from collections.abc import Mapping

from esper.errors import CorruptKernel, KernelNotFound, SealBroken
from esper.urza.records import KernelRecords, corrupt
from esper.urza.tiers import MISSING, TieredStore


class KernelParts:
    """Reads the blueprint, the program and the weights of kernels; each by its name and its digest.

    Every method raises ``CorruptKernel`` for a part that is gone, or is not what was sealed or what its
    digest says, and ``KernelNotFound`` when the whole kernel was removed meanwhile.
    """

    def __init__(self, records: KernelRecords, store: TieredStore) -> None:
        """``store`` must end in the tier of the same database as ``records``."""
        self._records = records
        self._store = store

    def several(self, kernel_id: str, digests: Mapping[str, str]) -> dict[str, bytes]:
        """The parts that ``digests`` names, asked for together."""
        try:
            found = self._store.get_many(list(digests.values()))
        except CorruptKernel:  # which part it is shows when each is asked for
            found = {}
        return {
            part: found[digest] if digest in found else self.one(kernel_id, part, digest)
            for part, digest in digests.items()
        }

    def one(self, kernel_id: str, part: str, digest: str) -> bytes:
        """One part, from the nearest tier that holds it."""
        try:
            data = self._store.get(digest)
        except CorruptKernel as error:
            raise corrupt(kernel_id, _reason(part, error)) from error
        if data is MISSING:
            # The store may know only that it was absent a moment ago, before another process put it.
            data = self.on_record(kernel_id, part, digest)
            self._store.remember(digest, data)
        return data

    def on_record(self, kernel_id: str, part: str, digest: str) -> bytes:
        """One part from the record itself, past all caches."""
        try:
            data = self._records.blob(digest)
        except CorruptKernel as error:
            raise corrupt(kernel_id, _reason(part, error)) from error
        if data is MISSING:
            # Another process may have removed the kernel between our two reads; then nothing is corrupt.
            if not self._records.contains(kernel_id):
                raise KernelNotFound(kernel_id)
            raise corrupt(kernel_id, f"its {part} is missing")
        return data


def _reason(part: str, error: CorruptKernel) -> str:
    if isinstance(error.__cause__, SealBroken):
        return f"its {part} {'are' if part == 'weights' else 'is'} not what was sealed"
    return f"the digest of its {part} does not match"
