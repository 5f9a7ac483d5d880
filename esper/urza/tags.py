"""Kernels by their tags, read one by one where they are few and looked for in the wanted order where not.

Databases guess which is faster, and guess wrong; so the few are counted, which an index answers, and a
condition is written so that it can be met in one way only.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Final, get_args

from sqlalchemy import ColumnElement, Connection, Select, exists, func, select

from esper.messages import Layout, Slot
from esper.urza.schema import KernelRow, KernelTagRow

FEW: Final = 1000
"""So many kernels are read one by one in two milliseconds or so."""


def is_scarce(connection: Connection, tags: Collection[str], slot: Slot | None = None) -> bool:
    """Whether only ``FEW`` kernels, of those that fit ``slot``, have one or more of ``tags``."""
    if not tags:
        return False
    return connection.scalar(_not_more(FEW, tuple(tags), slot)) is True


@lru_cache(maxsize=256)
def _not_more(few: int, tags: tuple[str, ...], slot: Slot | None) -> Select[bool]:
    some = select(KernelTagRow.kernel_id).where(*_tagged(tags, slot)).limit(few + 1).subquery()
    return select(func.count() <= few).select_from(some)


def among_tagged(tags: Collection[str], slot: Slot | None = None) -> ColumnElement[bool]:
    """That a row of ``kernels`` is one of the few that have one or more of ``tags`` and fit ``slot``."""
    # An offset, even of 0, keeps the planners of both databases from turning the condition into another.
    return KernelRow.kernel_id.in_(select(KernelTagRow.kernel_id).where(*_tagged(tags, slot)).offset(0))


def has_tag(tags: Collection[str], kernel_id: ColumnElement[str]) -> ColumnElement[bool]:
    """That the kernel of ``kernel_id`` has one or more of ``tags``, asked of each row in turn."""
    mine = select(1).where(KernelTagRow.kernel_id == kernel_id, KernelTagRow.tag.in_(sorted(tags)))
    return exists(mine.correlate_except(KernelTagRow).offset(0))


def _tagged(tags: Collection[str], slot: Slot | None) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [KernelTagRow.tag.in_(sorted(tags))]
    if slot is not None:
        conditions += [
            KernelTagRow.in_features == slot.in_features,
            KernelTagRow.out_features == slot.out_features,
            KernelTagRow.stride == slot.stride,
            KernelTagRow.layout.in_([layout for layout in get_args(Layout) if slot.accepts(layout)]),
        ]
    return conditions
