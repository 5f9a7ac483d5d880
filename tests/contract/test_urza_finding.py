"""Ranking by context, lists in pages, tags and garbage; on every database."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from urza_support import artefact, never_load, open_sealed, report

from esper.errors import ConfigError, KernelNotFound
from esper.messages import FieldReport, KernelMetadata, Slot
from esper.urza import SORT_KEYS, KernelLibrary, KernelQuery, TrialContext, Wanted, tags
from esper.urza.database import open_database
from esper.urza.sql import SqlTier
from esper.urza.tiers import digest_of

SLOT = Slot("tokens", 8, 8)
HERE = TrialContext("attention", "text")


@pytest.fixture
def library(library_url: str) -> Iterator[KernelLibrary]:
    with open_sealed(library_url, never_load) as opened:
        yield opened


@pytest.fixture(params=[1000, 0])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many kernels with a tag are read one by one: all or none of a test's."""
    monkeypatch.setattr(tags, "FEW", request.param)
    return int(request.param)


def posterior(kernel: KernelMetadata, trials: list[tuple[FieldReport, str]], context: TrialContext) -> float:
    """The mean as docs/decisions/0097 states it, kernel by kernel."""
    mine = [(trial, task) for trial, task in trials if trial.kernel_id == kernel.kernel_id]
    shared = [
        ((trial.layer_kind == context.layer_kind) + (task == context.task)) * (trial.slot == SLOT) / 2
        for trial, task in mine
    ]
    elsewhere = [trial for (trial, _), share in zip(mine, shared, strict=True) if share == 0]
    kept_elsewhere = sum(trial.verdict == "kept" for trial in elsewhere)
    prior = 1 + 0.25 * len(elsewhere)
    mean = (kept_elsewhere + kernel.performance_score) / (len(elsewhere) + 1)
    kept = sum(share * (trial.verdict == "kept") for (trial, _), share in zip(mine, shared, strict=True))
    return (prior * mean + kept) / (prior + sum(shared))


@pytest.mark.parametrize("seed", range(3))
def test_the_rank_is_that_of_the_whole_computation_and_leaves_nothing_out(
    library: KernelLibrary, seed: int, few: int
) -> None:
    draw = random.Random(seed)
    kernels = [
        library.put(
            artefact(
                str(number),
                layout=draw.choice(["features", "tokens", "tokens", "channels"]),
                input_shape=(draw.choice([8, 8, 8, 16]),),
                performance_score=draw.choice([0.1, 0.5, 0.5, 0.9]),
                latency_ratio=draw.choice([0.5, 1.0]),
                tags=draw.choice([("a",), ("b",), ("a", "b"), ()]),
                dtype=draw.choice(["float32", "bfloat16"]),
            )
        )
        for number in range(40)
    ]
    trials: list[tuple[FieldReport, str]] = []
    for number in range(150):
        kernel = draw.choice(kernels[:30])
        slot = draw.choice([SLOT, SLOT, Slot("features", 8, 8)])
        kind, task = draw.choice(["attention", "linear"]), draw.choice(["text", "digits"])
        verdict = draw.choice(["kept", "culled", "failed"])
        trial = report(
            kernel_id=kernel.kernel_id,
            slot=slot,
            layer_kind=kind,
            verdict=verdict,
            started_epoch=number,
            task=task,
        )
        library.record_trial(trial, "run")
        trials.append((trial, task))
    fit = [
        kernel
        for kernel in kernels
        if SLOT.accepts(kernel.layout) and kernel.input_shape == (8,) and kernel.dtype == "float32"
        if "a" in kernel.tags
    ]
    expected = {kernel.kernel_id: posterior(kernel, trials, HERE) for kernel in fit}
    with library._records._database.reading() as connection:
        assert tags.is_scarce(connection, ("a",), SLOT) is (few > 0)
    for limit in (1, 3, 1000):
        ranked = library.rank(Wanted(SLOT, HERE, tags=("a",), dtype="float32", limit=limit))
        assert len(ranked) == min(limit, len(fit))
        for found in ranked:
            assert found.score == pytest.approx(expected[found.metadata.kernel_id], abs=1e-12)
        cut = sorted(expected.values(), reverse=True)[: len(ranked)]
        assert [found.score for found in ranked] == pytest.approx(cut, abs=1e-12)
        keys = [(-round(f.score, 9), f.metadata.latency_ratio, f.metadata.kernel_id) for f in ranked]
        assert keys == sorted(keys)


def names(kernels: list[KernelMetadata]) -> list[str]:
    return [kernel.name for kernel in kernels]


def test_what_was_kept_in_a_like_context_comes_before_what_was_kept_elsewhere(
    library: KernelLibrary,
) -> None:
    for name in ("here", "half", "elsewhere", "untried"):
        library.put(artefact(name, layout="tokens"))
    places = {"here": ("attention", "text"), "half": ("attention", "digits"), "elsewhere": ("conv", "digits")}
    for epoch, (name, (kind, task)) in enumerate(places.items()):
        trial = report(kernel_id=f"kernel_{name}", slot=SLOT, layer_kind=kind, started_epoch=epoch, task=task)
        library.record_trial(trial, "run")
    # .5 by the score; (.5 + 1)/2; (.5 + .5)/1.5; and all others by their mean alone: (.5 + 1)/2
    ranked = library.rank(Wanted(SLOT, HERE))
    scores = {found.metadata.name: found.score for found in ranked}
    assert scores == pytest.approx({"here": 0.75, "half": 2 / 3, "elsewhere": 0.75, "untried": 0.5})
    assert library.find(SLOT, context=HERE) == [found.metadata for found in ranked]
    away = library.rank(Wanted(SLOT, TrialContext("conv", "digits")))
    assert away[0].metadata.name == "elsewhere"


def test_the_error_shrinks_with_what_was_measured(library: KernelLibrary) -> None:
    library.put(artefact("a", layout="tokens"))
    (untried,) = library.rank(Wanted(SLOT, HERE))
    assert untried.error == pytest.approx(math.sqrt(0.25 / 2))
    errors = [untried.error]
    for epoch in range(4):
        verdict = "kept" if epoch % 2 else "culled"
        trial = report(slot=SLOT, layer_kind="attention", verdict=verdict, started_epoch=epoch, task="text")
        library.record_trial(trial, "run")
        errors.append(library.rank(Wanted(SLOT, HERE))[0].error)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == pytest.approx(math.sqrt(0.25 / 6))


def test_find_narrows_by_dtype_and_device(library: KernelLibrary) -> None:
    library.put(artefact("a", layout="tokens"))
    library.put(artefact("b", layout="tokens", dtype="bfloat16"))
    library.put(artefact("c", layout="tokens", device="cuda"))
    assert names(library.find(SLOT, dtype="bfloat16")) == ["b"]
    assert names(library.find(SLOT, device="cuda")) == ["c"]
    assert names(library.find(SLOT, dtype="float32", device="cpu", context=HERE)) == ["a"]


def test_a_query_narrows_by_tags_author_and_date(library: KernelLibrary) -> None:
    library.put(artefact("a", tags=("x", "y"), author="Ada", created_at="2026-01-01T00:00:00+00:00"))
    library.put(artefact("b", tags=("y", "z"), blueprint_id="bp", created_at="2026-01-02T12:00:00+00:00"))
    library.put(artefact("c", tags=(), dtype="bfloat16", created_at="2026-01-03T00:00:00+00:00"))

    def listed(**conditions: object) -> list[str]:
        return names(library.query(KernelQuery(sort="name", **conditions)))

    assert listed(any_tags=("x", "z")) == ["a", "b"]
    assert listed(no_tags=("x", "q")) == ["b", "c"]
    assert listed(tags=("y",), any_tags=("x", "z"), no_tags=("z",)) == ["a"]
    assert listed(author="Ada") == ["a"]
    assert listed(blueprint="bp") == ["b"]
    assert listed(dtype="bfloat16") == ["c"]
    assert listed(device="cuda") == []
    assert listed(created_after="2026-01-02") == ["b", "c"]
    assert listed(created_before="2026-01-02T12:00:00+00:00") == ["a"]
    assert listed(created_before="2026-01-02T13:00:01+01:00") == ["a", "b"]
    with pytest.raises(ConfigError, match="'yesterday' is not a date or time"):
        listed(created_after="yesterday")


def test_lineage_and_author_come_back(library: KernelLibrary) -> None:
    lineage = {
        "author": "harvest",
        "parent_blueprint": "blueprint_p",
        "parent_kernel": "kernel_p",
        "run_id": "20261125-resnet",
        "decision": "epoch 12, stage1.conv, seed 3",
    }
    stored = library.put(artefact("a", **lineage))
    assert {name: getattr(stored, name) for name in lineage} == lineage
    assert library.get("kernel_a") == stored


@pytest.mark.parametrize("sort", SORT_KEYS)
def test_pages_hold_each_kernel_once_though_others_are_added_between(
    library: KernelLibrary, sort: str
) -> None:
    draw = random.Random(4)

    def add(name: str) -> None:
        library.put(
            artefact(
                name,
                performance_score=draw.choice([0.1, 1 / 3]),
                latency_ratio=draw.choice([0.1, 2 / 3]),
                parameters=draw.randrange(3),
                created_at=f"2026-01-0{draw.randrange(1, 4)}",
            )
        )

    for number in range(23):
        add(f"Kernel {number}")
    whole = library.query(KernelQuery(sort=sort))
    seen: list[KernelMetadata] = []
    after: str | None = None
    for page_number in range(100):
        page = library.page(KernelQuery(sort=sort, limit=5, after=after))
        seen += page.kernels
        after = page.next
        if after is None:
            break
        add(f"added {page_number}")
    first = [kernel for kernel in seen if not kernel.name.startswith("added")]
    assert first == whole
    assert len({kernel.kernel_id for kernel in seen}) == len(seen)


@pytest.mark.parametrize("sort", ["rank", "created"])
def test_pages_of_a_tag_are_those_of_the_whole_list(library: KernelLibrary, sort: str, few: int) -> None:
    draw = random.Random(few)
    for number in range(60):
        library.put(
            artefact(
                str(number),
                tags=("a", "b")[: draw.randrange(3)],
                performance_score=draw.choice([0.1, 0.9]),
                latency_ratio=draw.choice([0.5, 1.0, 1.5]),
                created_at=draw.choice(["2026-01-01", "2026-01-02"]),
            )
        )
    whole = [kernel for kernel in library.query(KernelQuery(sort=sort)) if "b" in kernel.tags]
    seen: list[KernelMetadata] = []
    query = KernelQuery(tags=("a", "b"), any_tags=("b", "c"), sort=sort, limit=5)
    for _ in range(len(whole)):
        page = library.page(query)
        seen += page.kernels
        if page.next is None:
            break
        query = replace(query, after=page.next)
    assert seen == whole
    assert len(seen) > 2 * 5
    with library._records._database.reading() as connection:
        assert tags.is_scarce(connection, ("b",)) is (few > 0)


def test_ids_are_found_by_their_start_with_or_without_the_usual_one(library: KernelLibrary) -> None:
    for name in ("ab1", "ab2", "b", "kernel_ab3"):
        library.put(artefact(name, kernel_id=name if name == "b" else f"kernel_{name}"))

    def listed(start: str, **conditions: object) -> list[str]:
        found = library.query(KernelQuery(id_prefix=start, sort="id", **conditions))
        return [kernel.kernel_id for kernel in found]

    assert listed("ab") == ["kernel_ab1", "kernel_ab2"]
    assert listed("kernel_ab") == ["kernel_ab1", "kernel_ab2", "kernel_kernel_ab3"]
    assert listed("ab", limit=1) == ["kernel_ab1"]
    assert listed("b") == ["b"]
    assert listed("ker", limit=2) == ["kernel_ab1", "kernel_ab2"]
    assert listed("%") == listed("kernel%") == listed("zz") == []
    assert listed("") == ["b", "kernel_ab1", "kernel_ab2", "kernel_kernel_ab3"]


@pytest.mark.parametrize("after", ["", "nonsense", "WzFd", "bnVsbA==", "äöü"])
def test_a_place_in_no_list_is_refused(library: KernelLibrary, after: str) -> None:
    with pytest.raises(ConfigError, match="no place in a list"):
        library.page(KernelQuery(after=after))


def test_a_place_in_a_list_of_another_order_is_refused(library: KernelLibrary) -> None:
    for name in "ab":
        library.put(artefact(name))
    page = library.page(KernelQuery(sort="name", limit=1))
    assert names(list(page.kernels)) == ["a"]
    with pytest.raises(ConfigError, match="no place in a list"):
        library.page(KernelQuery(sort="rank", after=page.next))


def test_tags_are_replaced_in_their_order_and_found(library: KernelLibrary) -> None:
    library.put(artefact("a", tags=("old", "kept")))
    library.set_tags("kernel_a", ("new", "kept", "new"))
    assert library.get("kernel_a").tags == ("new", "kept")
    assert names(library.query(KernelQuery(tags=("new",)))) == ["a"]
    assert library.query(KernelQuery(tags=("old",))) == []
    library.set_tags("kernel_a", ())
    assert library.get("kernel_a").tags == ()
    with pytest.raises(KernelNotFound):
        library.set_tags("kernel_b", ("x",))


def test_garbage_is_named_by_a_dry_run_and_then_taken_out(stored_url: str) -> None:
    long_ago = (datetime.now(UTC) - timedelta(days=40)).isoformat(timespec="seconds")
    with open_sealed(stored_url, never_load) as library:
        for name, age, status in (
            ("old", long_ago, "retired"),
            ("kept", long_ago, "retired"),
            ("used", long_ago, "validated"),
            ("fresh", "", "retired"),
        ):
            library.put(artefact(name, created_at=age, status=status))
        library.record_trial(report(kernel_id="kernel_kept"), "run")
        with closing(open_database(stored_url)) as database:
            SqlTier(database).put(digest_of(b"nobody's"), b"nobody's")
            dry = library.gc(dry_run=True)
            assert (dry.kernels, dry.blobs, dry.bytes) == ((), (digest_of(b"nobody's"),), 8)
            old = library.gc(retired_days=30, dry_run=True)
            assert old.kernels == ("kernel_old",)
            assert set(old.blobs) == {digest_of(b"nobody's"), digest_of(b"program of old")}
            assert library.contains("kernel_old")
            assert library.gc(retired_days=30) == old
            assert library.gc(retired_days=30).blobs == ()
        assert sorted(names(library.query(KernelQuery()))) == ["fresh", "kept", "used"]
        for name in ("fresh", "kept", "used"):
            library.verify(f"kernel_{name}")
