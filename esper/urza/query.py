"""Which kernels, in which order: the conditions as data, and the statements that they become."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from sqlalchemy import ColumnElement, Select, exists, func, select

from esper.errors import ConfigError
from esper.messages import Layout, Slot
from esper.urza.schema import KernelRow, KernelTagRow

Status = Literal["validated", "retired"]
"""Only validated kernels are found for a slot; a retired one stays in the library for those who name it."""

SORT_KEYS: Final[dict[str, ColumnElement[Any]]] = {
    "rank": KernelRow.rank.desc(),
    "name": func.lower(KernelRow.name),
    "created": KernelRow.created_at.desc(),
    "score": KernelRow.performance_score.desc(),
    "latency": KernelRow.latency_ratio.asc(),
    "parameters": KernelRow.parameters.asc(),
    "size": (KernelRow.program_bytes + KernelRow.weights_bytes).asc(),
    "trials": KernelRow.trial_count.desc(),
}
"""What ``KernelQuery.sort`` takes. Each sorts the way one reads it: best, newest, fastest, smallest first."""


@dataclass(frozen=True, slots=True)
class KernelQuery:
    """Which kernels to list; a field left alone does not narrow. A kernel has all of ``tags``.

    ``input`` and ``output`` are features (channels), ``name`` is any part of the name in any case, ``sort``
    one of ``SORT_KEYS``, ``limit`` the most to return.
    """

    tags: tuple[str, ...] = ()
    input: int | None = None
    output: int | None = None
    layout: Layout | None = None
    status: Status | None = None
    name: str | None = None
    sort: str = "rank"
    limit: int | None = None


def fitting(slot: Slot, tags: Collection[str], limit: int) -> Select[Any]:
    """The rows of ``kernels`` that are validated, fit ``slot`` and have any of ``tags``, best first."""
    conditions = [
        KernelRow.in_features == slot.in_features,
        KernelRow.out_features == slot.out_features,
        KernelRow.stride == slot.stride,
        KernelRow.layout.in_([layout for layout in get_args(Layout) if slot.accepts(layout)]),
        KernelRow.status == "validated",
    ]
    if tags:
        conditions.append(_tagged(KernelTagRow.tag.in_(sorted(tags))))
    return _ordered(conditions, "rank", limit)


def matching(query: KernelQuery) -> Select[Any]:
    """The rows of ``kernels`` that ``query`` describes; ``ConfigError`` for a sort that is none."""
    if query.sort not in SORT_KEYS:
        near = difflib.get_close_matches(query.sort, SORT_KEYS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"one of: {', '.join(SORT_KEYS)}"
        raise ConfigError(f"kernels cannot be sorted by {query.sort!r}", hint=hint)
    conditions = [_tagged(KernelTagRow.tag == tag) for tag in query.tags]
    columns = {
        KernelRow.in_features: query.input,
        KernelRow.out_features: query.output,
        KernelRow.layout: query.layout,
        KernelRow.status: query.status,
    }
    conditions += [column == value for column, value in columns.items() if value is not None]
    if query.name is not None:
        conditions.append(KernelRow.name.icontains(query.name, autoescape=True))
    return _ordered(conditions, query.sort, query.limit)


def _ordered(conditions: list[ColumnElement[bool]], sort: str, limit: int | None) -> Select[Any]:
    # Equal ranks are common, so the faster comes first; the id makes any order repeatable.
    order = (SORT_KEYS[sort], KernelRow.latency_ratio, KernelRow.kernel_id)
    return select(KernelRow.__table__).where(*conditions).order_by(*order).limit(limit)


def _tagged(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists().where(KernelTagRow.kernel_id == KernelRow.kernel_id, condition)
