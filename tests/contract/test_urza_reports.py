"""Reports in pages and inventions on record, on every database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from sqlalchemy import text
from urza_support import artefact, never_load, open_sealed, report

from esper.errors import ConfigError
from esper.messages import InventionRecord, Slot
from esper.urza import KernelLibrary, ReportQuery, migrations
from esper.urza.database import open_database

INVENTION = InventionRecord(
    graph_id="graph_1",
    blueprint_id="blueprint_1",
    blueprint_name="child",
    slot=Slot("channels", 8, 16, stride=2),
    layer_kind="conv2d",
    origin="crossover",
    parents=("blueprint_a", "blueprint_b"),
    reason="two that were kept",
    predicted_impact=0.02,
    uncertainty=0.01,
    run_id="run-1",
    at="2026-11-25T00:00:00+00:00",
    kernel_id="kernel_1",
)


@pytest.fixture
def library(library_url: str) -> Iterator[KernelLibrary]:
    with open_sealed(library_url, never_load) as opened:
        yield opened


def numbers(library: KernelLibrary, query: ReportQuery) -> list[int]:
    return [stored.report.started_epoch for stored in library.reports(query).reports]


def test_reports_come_newest_first_in_pages_that_neither_repeat_nor_leave_out(library: KernelLibrary) -> None:
    for epoch in range(7):
        library.record_trial(report(started_epoch=epoch), "run-1")
    page = library.reports(ReportQuery(limit=3))
    seen = [stored.report.started_epoch for stored in page.reports]
    library.record_trial(report(started_epoch=99), "run-2")  # between two pages
    while page.next is not None:
        page = library.reports(ReportQuery(limit=3, after=page.next))
        seen += [stored.report.started_epoch for stored in page.reports]
    assert seen == [6, 5, 4, 3, 2, 1, 0]
    with pytest.raises(ConfigError, match="after is no place"):
        library.reports(ReportQuery(after="x"))


def test_reports_are_narrowed_by_what_they_are_about(library: KernelLibrary) -> None:
    library.put(artefact("a", blueprint_id="blueprint_mine"))
    library.record_trial(report(started_epoch=0, layer_kind="linear"), "run-1")
    library.record_trial(report(started_epoch=1, verdict="culled"), "run-12")
    library.record_trial(
        report(started_epoch=2, kernel_id="kernel_gone", blueprint_id="blueprint_mine"), "run_1"
    )
    assert numbers(library, ReportQuery(layer_kind="linear")) == [0]
    assert numbers(library, ReportQuery(verdict="culled")) == [1]
    assert numbers(library, ReportQuery(run="run-1")) == [1, 0]  # _ is no wildcard
    assert numbers(library, ReportQuery(blueprint="mine")) == [2]
    assert numbers(library, ReportQuery(blueprint="blueprint_m")) == [2]
    assert numbers(library, ReportQuery(blueprint="a")) == [2]  # the name of a kernel
    assert [stored.name for stored in library.reports(ReportQuery()).reports] == ["", "a", "a"]


def test_inventions_come_back_field_for_field_and_a_second_record_replaces_the_first(
    library: KernelLibrary,
) -> None:
    failed = InventionRecord(
        **{name: getattr(INVENTION, name) for name in ("graph_id", "blueprint_id", "blueprint_name", "at")},
        slot=Slot("features", 8, 8),
        layer_kind="",
        origin="catalogue",
        parents=(),
        reason="cold start",
        predicted_impact=None,
        uncertainty=None,
        run_id="",
        failure="too slow",
    )
    library.record_invention(failed)
    library.record_invention(INVENTION)
    library.record_invention(failed)
    assert library.inventions() == [INVENTION, failed]
    assert library.inventions("kernel_1") == [INVENTION]
    assert library.inventions("kernel_2") == []


def test_what_an_older_version_recorded_is_read_with_what_it_lacks_unknown(stored_url: str) -> None:
    with open_sealed(stored_url, never_load) as library:
        library.record_trial(report(depth=1, layers=3, health=0.5, seconds=2.0, task="digits"), "run")
    with closing(open_database(stored_url)) as database, database.writing() as connection:
        migrations.downgrade(connection, "0003")
        assert connection.scalar(text("SELECT count(*) FROM trials")) == 1
    with open_sealed(stored_url, never_load) as library:  # which brings it up to date
        assert library.trials()[0].report == report(task="digits")
        assert library.inventions() == []
