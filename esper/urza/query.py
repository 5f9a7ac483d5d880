"""Which kernels, in which order: the conditions as data, and the statements that they become."""

from __future__ import annotations

import base64
import binascii
import difflib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, RowMapping, Select, and_, func, or_, select

from esper.errors import ConfigError
from esper.messages import Layout
from esper.urza.schema import KernelRow
from esper.urza.tags import among_tagged, has_tag

Status = Literal["validated", "retired"]
"""Only validated kernels are found for a slot; a retired one stays in the library for those who name it."""

_DESCENDING: Final[dict[str, ColumnElement[Any]]] = {
    "rank": KernelRow.__table__.c.rank,
    "created": KernelRow.__table__.c.created_at,
    "score": KernelRow.__table__.c.performance_score,
    "trials": KernelRow.__table__.c.trial_count,
}
_ASCENDING: Final[dict[str, ColumnElement[Any]]] = {
    "name": func.lower(KernelRow.name),
    "latency": KernelRow.__table__.c.latency_ratio,
    "parameters": KernelRow.__table__.c.parameters,
    "size": KernelRow.__table__.c.program_bytes + KernelRow.__table__.c.weights_bytes,
    "id": KernelRow.__table__.c.kernel_id,
}
SORT_KEYS: Final = ("rank", "name", "created", "score", "latency", "parameters", "size", "trials", "id")
"""What ``KernelQuery.sort`` takes. Each sorts the way one reads it: best, newest, fastest, smallest first."""


@dataclass(frozen=True, slots=True)
class KernelQuery:
    """Which kernels to list; a field left alone does not narrow.

    A kernel has all of ``tags``, one or more of ``any_tags``, none of ``no_tags``. ``input`` and ``output``
    are features (channels), ``name`` is any part of the name in any case, ``created_after`` (that moment
    included) and ``created_before`` (excluded) are dates or times in ISO 8601, UTC unless they say otherwise.
    ``id_prefix`` is the start of the id, which may leave ``kernel_`` out.
    ``sort`` is one of ``SORT_KEYS``, ``limit`` the most to return, ``after`` the ``next`` of an earlier page.
    """

    tags: tuple[str, ...] = ()
    input: int | None = None
    output: int | None = None
    layout: Layout | None = None
    status: Status | None = None
    name: str | None = None
    sort: str = "rank"
    limit: int | None = None
    any_tags: tuple[str, ...] = ()
    no_tags: tuple[str, ...] = ()
    dtype: str | None = None
    device: str | None = None
    author: str | None = None
    blueprint: str | None = None
    created_after: str | None = None
    created_before: str | None = None
    after: str | None = None
    id_prefix: str | None = None


def tag_groups(query: KernelQuery) -> list[tuple[str, ...]]:
    """Tags of which a kernel must have one or more, for each group."""
    return [*((tag,) for tag in query.tags), *((query.any_tags,) if query.any_tags else ())]


def matching(query: KernelQuery, rare: tuple[str, ...] | None = None) -> list[Select[Any]]:
    """Statements whose rows, one after the other, are those of ``kernels`` that ``query`` describes.

    Each row has its ``sort_value``. The limit is left out. ``rare`` is the one of the ``tag_groups`` that few
    kernels have, if any. Raises ``ConfigError``.
    """
    if query.sort not in SORT_KEYS:
        near = difflib.get_close_matches(query.sort, SORT_KEYS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"one of: {', '.join(SORT_KEYS)}"
        raise ConfigError(f"kernels cannot be sorted by {query.sort!r}", hint=hint)
    table: Any = KernelRow.__table__
    groups = tag_groups(query)
    conditions: list[ColumnElement[bool]]
    conditions = [among_tagged(tags) if tags == rare else has_tag(tags, table.c.kernel_id) for tags in groups]
    if query.no_tags:
        conditions.append(~has_tag(query.no_tags, table.c.kernel_id))
    if query.id_prefix:
        conditions.append(or_(*[_starts_with(start + query.id_prefix) for start in ("", "kernel_")]))
    equal = {
        KernelRow.in_features: query.input,
        KernelRow.out_features: query.output,
        KernelRow.layout: query.layout,
        KernelRow.status: query.status,
        KernelRow.dtype: query.dtype,
        KernelRow.device: query.device,
        KernelRow.author: query.author,
        KernelRow.blueprint_id: query.blueprint,
    }
    conditions += [column == value for column, value in equal.items() if value is not None]
    if query.name is not None:
        conditions.append(KernelRow.name.icontains(query.name, autoescape=True))
    if query.created_after is not None:
        conditions.append(KernelRow.created_at >= _moment(query.created_after))
    if query.created_before is not None:
        conditions.append(KernelRow.created_at < _moment(query.created_before))
    descending = query.sort in _DESCENDING
    key = _DESCENDING[query.sort] if descending else _ASCENDING[query.sort]
    statement = select(table, key.label("sort_value")).where(*conditions)
    columns: Any = table.c
    if rare is not None or query.id_prefix:
        # Few rows: sorted once they are found, not found in the order of an index.
        columns = statement.offset(0).subquery().c
        key = columns.sort_value
        statement = select(columns)
    first = key.desc() if descending else key.asc()
    # Equal ranks are common, so the faster comes first; the id makes any order repeatable.
    then = (columns.latency_ratio, columns.kernel_id)
    if query.after is None:
        return [statement.order_by(first, *then)]
    value, latency, kernel_id = _place(query)
    # Behind the place of a cursor: first its equals, for in an index each of the two is one stretch.
    tie = and_(
        key == value,
        columns.latency_ratio >= latency,
        or_(columns.latency_ratio > latency, columns.kernel_id > kernel_id),
    )
    beyond = statement.where(key < value if descending else key > value)
    return [statement.where(tie).order_by(*then), beyond.order_by(first, *then)]


def cursor_after(query: KernelQuery, row: RowMapping) -> str:
    """What continues ``query`` behind ``row``: to callers a word without a meaning."""
    place = [query.sort, row["sort_value"], row["latency_ratio"], row["kernel_id"]]
    return base64.urlsafe_b64encode(json.dumps(place, separators=(",", ":")).encode()).decode()


def _starts_with(start: str) -> ColumnElement[bool]:
    return and_(KernelRow.kernel_id >= start, KernelRow.kernel_id < start + "\U0010ffff")


def _place(query: KernelQuery) -> tuple[Any, float, str]:
    try:
        sort, value, latency, kernel_id = json.loads(base64.urlsafe_b64decode(query.after or ""))
    except (binascii.Error, ValueError, TypeError):
        sort = value = latency = kernel_id = None
    kind = str if query.sort in ("name", "created", "id") else (int, float)
    good = isinstance(value, kind) and isinstance(latency, (int, float)) and isinstance(kernel_id, str)
    if sort != query.sort or not good:
        hint = "take it from the page before, with the same sort"
        raise ConfigError("after is no place in a list of kernels sorted that way", hint=hint)
    return value, latency, kernel_id


def _moment(text: str) -> str:
    """``text`` as the record writes a time: UTC, to the second."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        hint = "for example 2026-11-23, or 2026-11-23T12:00:00+00:00"
        raise ConfigError(f"{text!r} is not a date or time", hint=hint) from error
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.isoformat(timespec="seconds")
