"""Reports of trials for people: some of them, the newest first, a page at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Select, func, or_, select

from esper.errors import ConfigError
from esper.messages import FieldReport
from esper.urza.rows import trial_of
from esper.urza.schema import KernelRow, TrialRow


@dataclass(frozen=True, slots=True)
class ReportQuery:
    """Which reports to list; a field left alone does not narrow.

    ``blueprint`` is the start of a blueprint's id, or the name of kernels in the library; ``run`` is the
    start of a run's id. ``after`` is the ``next`` of an earlier page, ``id`` the number of one report.
    """

    layer_kind: str | None = None
    blueprint: str | None = None
    verdict: Literal["kept", "culled", "failed"] | None = None
    run: str | None = None
    limit: int | None = None
    after: str | None = None
    id: int | None = None


@dataclass(frozen=True, slots=True)
class StoredReport:
    """A report on record: its number, its run, and its kernel's name, empty once that was removed."""

    id: int
    run_id: str
    name: str
    report: FieldReport


@dataclass(frozen=True, slots=True)
class ReportPage:
    """Reports, the newest first; ``next`` is what ``ReportQuery.after`` takes to go on, None at the end."""

    reports: tuple[StoredReport, ...]
    next: str | None


def report_page(connection: Connection, query: ReportQuery) -> ReportPage:
    """The reports that ``query`` describes; ``ConfigError`` where ``after`` is no place in them."""
    most = None if query.limit is None else query.limit + 1  # one more tells whether that is all
    rows = connection.execute(_statement(query).limit(most)).mappings().all()
    more = len(rows) == most
    reports = tuple(
        StoredReport(row["id"], row["run_id"], row["name"], trial_of(row).report)
        for row in rows[: query.limit]
    )
    return ReportPage(reports, str(reports[-1].id) if more else None)


def _statement(query: ReportQuery) -> Select[Any]:
    names = select(KernelRow.name).where(KernelRow.kernel_id == TrialRow.kernel_id).scalar_subquery()
    statement = select(TrialRow.__table__, func.coalesce(names, "").label("name")).order_by(
        TrialRow.id.desc()
    )
    equal = {
        TrialRow.layer_kind: query.layer_kind,
        TrialRow.verdict: query.verdict,
        TrialRow.id: query.id,
    }
    statement = statement.where(*[column == value for column, value in equal.items() if value is not None])
    if query.run is not None:
        statement = statement.where(TrialRow.run_id.startswith(query.run, autoescape=True))
    if query.blueprint is not None:
        named = select(KernelRow.blueprint_id).where(KernelRow.name == query.blueprint)
        starts = [
            TrialRow.blueprint_id.startswith(start + query.blueprint, autoescape=True)
            for start in ("", "blueprint_")
        ]
        statement = statement.where(or_(*starts, TrialRow.blueprint_id.in_(named)))
    if query.after is not None:
        if not query.after.isdecimal():
            raise ConfigError("after is no place in a list of reports", hint="take it from the page before")
        statement = statement.where(TrialRow.id < int(query.after))
    return statement
