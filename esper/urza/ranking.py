"""The best kernels for a slot, by what they did in contexts like the one at hand.

A kernel's chance of being kept has a Beta posterior. Its prior is the score of the validation, which weighs
one trial, and the trials in unlike contexts, whose mean weighs ``UNLIKE`` of a trial each. On top come the
trials in the slot at hand: one in the same kind of layer on the same task counts fully, one with either in
common ``HALF_LIKE``. A kernel without such trials has the posterior mean that its ``rank`` column holds, so
the best of those are read from an index, and only kernels with such trials are computed. Ranked apart and
merged, the best of both are the best of all: nothing is left out.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, get_args

from sqlalchemy import (
    ColumnElement,
    Double,
    Select,
    and_,
    case,
    exists,
    func,
    literal,
    or_,
    select,
    union_all,
)

from esper.messages import KernelMetadata, Layout, Slot
from esper.urza.schema import KernelRow, TrialRow
from esper.urza.tags import among_tagged, has_tag

UNLIKE: Final = 0.25
HALF_LIKE: Final = 0.5


@dataclass(frozen=True, slots=True)
class TrialContext:
    """Where a kernel is to be tried, besides its slot: the kind of layer, and the task that is trained on."""

    layer_kind: str
    task: str


@dataclass(frozen=True, slots=True)
class RankedKernel:
    """A kernel with its chance of being kept: the mean of its posterior, and its standard deviation."""

    metadata: KernelMetadata
    score: float
    error: float


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is looked for: ``limit`` kernels for ``slot``, with any of ``tags``, of a dtype, for a device."""

    slot: Slot
    context: TrialContext | None = None
    tags: tuple[str, ...] = ()
    dtype: str | None = None
    device: str | None = None
    limit: int = 20


@lru_cache(maxsize=256)
def ranking(wanted: Wanted, scarce: bool = False) -> Select[Any]:
    """The rows of ``kernels`` that are the best, best first, each with its ``score`` and ``weight``.

    They are the best of several parts: one for each layout that fits, for only then does an index have them
    in order, or if the tags are ``scarce`` one for all kernels with the tags; and one for those with trials
    in the context.
    """
    like = None if wanted.context is None else _like(wanted.slot, wanted.context)
    layouts = [layout for layout in get_args(Layout) if wanted.slot.accepts(layout)]
    parts: list[Select[Any]] = []
    for each in [layouts] if scarce else [[layout] for layout in layouts]:
        fits = _fits(wanted, each, scarce, KernelRow.__table__.c.kernel_id)
        if like is not None:
            fits.append(~exists().where(TrialRow.kernel_id == KernelRow.kernel_id, *like))
        unlike = 1 + (UNLIKE if wanted.context else 1) * KernelRow.trial_count
        parts.append(_best(fits, KernelRow.__table__.c.rank, unlike, wanted.limit))
    if wanted.context is not None and like is not None:
        parts.append(_computed(wanted, wanted.context, like, layouts, scarce))
    # All in one statement, for a round trip to a server takes longer than the reading.
    all_parts = union_all(*[select(part.subquery()) for part in parts]).subquery()
    best = _in_order(select(all_parts), all_parts.c).limit(wanted.limit).subquery()
    table: Any = KernelRow.__table__
    rows = select(table, best.c.score, best.c.weight).where(table.c.kernel_id == best.c.kernel_id)
    return _in_order(rows, best.c)


def _in_order(statement: Select[Any], columns: Any) -> Select[Any]:
    return statement.order_by(columns.score.desc(), columns.latency_ratio, columns.kernel_id)


def error_of(mean: float, weight: float) -> float:
    """The standard deviation of the posterior: that of a Beta distribution of this mean and weight."""
    return math.sqrt(max(mean * (1 - mean), 0.0) / (weight + 1))


def _fits(
    wanted: Wanted, layouts: list[Layout], scarce: bool, kernel_id: ColumnElement[str]
) -> list[ColumnElement[bool]]:
    slot = wanted.slot
    conditions: list[ColumnElement[bool]] = [KernelRow.status == "validated"]
    if scarce:  # the rows of the tags have the slot as well
        conditions.append(among_tagged(wanted.tags, slot))
    else:
        conditions += [
            KernelRow.in_features == slot.in_features,
            KernelRow.out_features == slot.out_features,
            KernelRow.stride == slot.stride,
            KernelRow.layout.in_(layouts) if len(layouts) > 1 else KernelRow.layout == layouts[0],
        ]
        if wanted.tags:
            conditions.append(has_tag(wanted.tags, kernel_id))
    if wanted.dtype is not None:
        conditions.append(KernelRow.dtype == wanted.dtype)
    if wanted.device is not None:
        conditions.append(KernelRow.device == wanted.device)
    return conditions


def _like(slot: Slot, context: TrialContext) -> list[ColumnElement[bool]]:
    """That a row of ``trials`` was in this slot and has the kind of layer or the task in common."""
    return [
        TrialRow.in_features == slot.in_features,
        TrialRow.out_features == slot.out_features,
        TrialRow.stride == slot.stride,
        TrialRow.layout == slot.layout,
        or_(TrialRow.layer_kind == context.layer_kind, TrialRow.task == context.task),
    ]


def _computed(
    wanted: Wanted,
    context: TrialContext,
    like: list[ColumnElement[bool]],
    layouts: list[Layout],
    scarce: bool,
) -> Select[Any]:
    half, full, none, unlike = (literal(value, Double) for value in (HALF_LIKE, 1.0, 0.0, UNLIKE))
    same = and_(TrialRow.layer_kind == context.layer_kind, TrialRow.task == context.task)
    weight = case((same, full), else_=half)
    kept = TrialRow.verdict == "kept"
    seen = (
        select(
            TrialRow.kernel_id.label("kernel_id"),
            func.count().label("trials"),
            func.sum(case((kept, 1), else_=0)).label("kept"),
            func.sum(weight).label("weight"),
            func.sum(case((kept, weight), else_=none)).label("kept_weight"),
        )
        .where(*like)
        .group_by(TrialRow.kernel_id)
        .subquery()
    )
    elsewhere = KernelRow.trial_count - seen.c.trials
    kept_elsewhere = KernelRow.kept_count - seen.c.kept
    mean = (kept_elsewhere + KernelRow.performance_score) / (elsewhere + full)
    prior = full + unlike * elsewhere
    total = prior + seen.c.weight
    score = (prior * mean + seen.c.kept_weight) / total
    # Tags are asked of the trials' ids, so that only kernels with the tags are read at all.
    fits = [KernelRow.kernel_id == seen.c.kernel_id, *_fits(wanted, layouts, scarce, seen.c.kernel_id)]
    return _best(fits, score, total, wanted.limit)


def _best(
    fits: Collection[ColumnElement[bool]], score: ColumnElement[Any], weight: ColumnElement[Any], limit: int
) -> Select[Any]:
    # No more columns than it takes to rank: the rest is read of those that are the best of all.
    columns = (KernelRow.kernel_id, KernelRow.latency_ratio, score.label("score"), weight.label("weight"))
    statement = select(*columns).where(*fits)
    return statement.order_by(score.desc(), KernelRow.latency_ratio, KernelRow.kernel_id).limit(limit)
