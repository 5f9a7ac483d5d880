"""Opening a library: the record, what stands before it, and what ends with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from esper.errors import ConfigError
from esper.security.envelope import Envelope
from esper.urza.database import open_database
from esper.urza.encrypted import Encrypted
from esper.urza.library import Changes, KernelLibrary
from esper.urza.memory import MemoryTier
from esper.urza.modules import LoadedModules
from esper.urza.records import KernelRecords
from esper.urza.sealing import Sealing
from esper.urza.seals import Seals
from esper.urza.sql import SqlTier
from esper.urza.tiers import Tier, TieredStore
from esper.urza.trail import Auditor, LibraryTrail

if TYPE_CHECKING:
    from esper.urza.library import Loader

MEMORY_BYTES: Final = 256 * 2**20
"""How much the nearest tier holds unless told otherwise: thousands of kernels of the shipped families."""


def open_library(
    url: str,
    loader: Loader,
    *,
    envelope: Envelope | None = None,
    caches: Sequence[Tier] = (),
    changes: Changes | None = None,
    auditor: Auditor | None = None,
    memory_bytes: int = MEMORY_BYTES,
    adopting: Callable[[], bool] = lambda: False,
    adopt_later: bool = False,
    seconds: float | None = None,
    on_close: Callable[[], None] = lambda: None,
) -> KernelLibrary:
    """The library at ``url``, behind ``memory_bytes`` of memory and ``caches``; made if it is not there.

    ``url`` is ``sqlite:///PATH``, ``postgresql://USER@HOST:PORT/DATABASE``, or ``sqlite://`` for a library
    that lives until it is closed, the only one that is not sealed with ``envelope``. ``adopting`` says, once
    the keys are at hand, whether kernels that nobody sealed are to be sealed or refused; with ``adopt_later``
    they are left for :meth:`KernelLibrary.adopt`. ``changes`` are closed with it, and ``on_close`` is called
    when it is closed or does not open; ``auditor`` writes its audit trail. Takes ``seconds`` and raises as
    :func:`esper.urza.database.open_database` does, and LibraryError for a library that is not sealed.
    """
    try:
        database = open_database(url, seconds=seconds)
    except BaseException:
        on_close()
        raise
    try:
        if database.in_memory:
            envelope = auditor = None  # nothing is at rest
        elif envelope is None:
            raise ConfigError("a kernel library that is stored must be sealed", hint="give an envelope")
        seals = Seals(envelope)
        trail = LibraryTrail(database, auditor)
        sealing = Sealing(database, seals, trail)
        if envelope is not None and not adopt_later:
            sealing.on_opening(adopting)
    except BaseException:
        database.close()
        on_close()
        raise
    record: Tier = SqlTier(database)
    if envelope is not None:
        record = Encrypted(record, envelope, record=True)
    store = TieredStore([*caches, record], memory=MemoryTier(memory_bytes))
    modules = LoadedModules(memory_bytes)
    records = KernelRecords(database, seals, trail)
    return KernelLibrary(records, store, loader, sealing, modules=modules, changes=changes, on_close=on_close)
