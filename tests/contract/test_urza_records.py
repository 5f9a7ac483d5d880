"""Putting, getting, finding, listing and removing kernels; trials and compilations; on every database."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
from urza_support import artefact, never_load, open_sealed, report

from esper.errors import ConfigError, CorruptKernel, KernelNotFound, LibraryError
from esper.messages import CompilationRecord, KernelMetadata, Slot
from esper.urza import SORT_KEYS, KernelLibrary, KernelQuery, Trial

SLOT = Slot("features", 8, 8)


@pytest.fixture
def url(library_url: str) -> str:
    return library_url


@pytest.fixture
def library(url: str) -> Iterator[KernelLibrary]:
    with open_sealed(url, never_load) as opened:
        yield opened


def names(kernels: list[KernelMetadata]) -> list[str]:
    return [kernel.name for kernel in kernels]


def test_metadata_comes_back_field_for_field(library: KernelLibrary) -> None:
    full = artefact(
        "full",
        input_shape=(12,),
        output_shape=(34,),
        layout="channels",
        stride=2,
        tags=("zeta", "alpha", "mid"),
        target="torchscript",
        device="cuda",
        dtype="bfloat16",
        status="retired",
        parameters=2**40,
        latency_ms=0.75,
        latency_ratio=1.25,
        created_at="2026-11-23T12:00:00+00:00",
    )
    stored = library.put(full)
    assert stored == replace(full.metadata, program_bytes=len(full.program), weights_bytes=len(full.weights))
    assert library.get("kernel_full") == stored
    assert library.blueprint("kernel_full") == full.blueprint


def test_put_dates_what_has_no_date(library: KernelLibrary) -> None:
    stored = library.put(artefact("a"))
    assert stored.created_at.endswith("+00:00")
    assert library.get("kernel_a") == stored


def test_putting_a_kernel_again_changes_nothing(library: KernelLibrary) -> None:
    first = library.put(artefact("a"))
    again = library.put(artefact("a", program=b"other bytes", performance_score=0.9, tags=("other",)))
    assert again == first == library.get("kernel_a")
    assert len(library.query(KernelQuery())) == 1
    library.verify("kernel_a")


def test_a_tag_given_twice_is_one_tag(library: KernelLibrary) -> None:
    assert library.put(artefact("a", tags=("b", "a", "b"))).tags == ("b", "a")
    assert library.get("kernel_a").tags == ("b", "a")


@pytest.mark.parametrize("part", ["program", "weights"])
def test_bytes_that_are_not_those_of_the_metadata_are_not_stored(library: KernelLibrary, part: str) -> None:
    broken = replace(artefact("a"), **{part: b"something else"})
    with pytest.raises(CorruptKernel, match=f"the digest of its {part} does not match"):
        library.put(broken)
    assert not library.contains("kernel_a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"performance_score": math.nan}, "performance_score is nan"),
        ({"latency_ratio": math.inf}, "latency_ratio is inf"),
        ({"input_shape": (3, 8)}, "not one feature count"),
        ({"output_shape": ()}, "not one feature count"),
    ],
)
def test_metadata_that_the_record_cannot_hold_is_refused(
    library: KernelLibrary, change: dict[str, object], message: str
) -> None:
    with pytest.raises(LibraryError, match=message):
        library.put(artefact("a", **change))
    assert not library.contains("kernel_a")


@pytest.mark.parametrize("call", ["get", "fetch", "blueprint", "verify", "remove"])
def test_a_kernel_that_is_not_there_is_named(library: KernelLibrary, call: str) -> None:
    library.put(artefact("a"))
    with pytest.raises(KernelNotFound, match="kernel_b"):
        getattr(library, call)("kernel_b")
    with pytest.raises(KernelNotFound, match="kernel_b"):
        library.set_status("kernel_b", "retired")
    assert library.contains("kernel_a")
    assert not library.contains("kernel_b")


def test_what_no_column_can_hold_is_an_error_of_ours(library: KernelLibrary) -> None:
    with pytest.raises(LibraryError, match="cannot look that up"):
        library.get("kernel_\udcff")


def test_find_takes_only_what_fits_the_slot(library: KernelLibrary) -> None:
    library.put(artefact("fits"))
    library.put(artefact("other-input", input_shape=(9,)))
    library.put(artefact("other-output", output_shape=(9,)))
    library.put(artefact("other-stride", stride=2))
    library.put(artefact("other-layout", layout="channels"))
    library.put(artefact("retired", status="retired"))
    assert names(library.find(SLOT)) == ["fits"]
    assert names(library.find(Slot("channels", 8, 8))) == ["other-layout"]
    assert names(library.find(Slot("features", 8, 8, stride=2))) == ["other-stride"]
    assert library.find(Slot("features", 8, 10)) == []


def test_tokens_take_kernels_for_features_and_not_the_other_way(library: KernelLibrary) -> None:
    library.put(artefact("features", layout="features"))
    library.put(artefact("tokens", layout="tokens"))
    assert sorted(names(library.find(Slot("tokens", 8, 8)))) == ["features", "tokens"]
    assert names(library.find(SLOT)) == ["features"]


def test_find_takes_any_of_the_tags(library: KernelLibrary) -> None:
    library.put(artefact("ab", tags=("a", "b"), performance_score=0.9))
    library.put(artefact("b", tags=("b",), performance_score=0.8))
    library.put(artefact("c", tags=("c",), performance_score=0.7))
    library.put(artefact("none", tags=(), performance_score=0.6))
    assert names(library.find(SLOT, tags={"a", "b"})) == ["ab", "b"]
    assert names(library.find(SLOT, tags=["c"])) == ["c"]
    assert names(library.find(SLOT, tags=["A"])) == []
    assert names(library.find(SLOT)) == ["ab", "b", "c", "none"]


def test_rank_is_the_mean_verdict_with_the_score_as_one_trial_more(library: KernelLibrary) -> None:
    # (kept + score) / (trials + 1): a (1 + .5)/(2 + 1) = .5, b .6/1 = .6, c (2 + .2)/3 = .73, d .1/2 = .05
    verdicts = {"a": ["kept", "culled"], "b": [], "c": ["kept", "kept"], "d": ["failed"]}
    for (name, results), score in zip(verdicts.items(), (0.5, 0.6, 0.2, 0.1), strict=True):
        library.put(artefact(name, performance_score=score))
        for epoch, verdict in enumerate(results):
            trial = report(kernel_id=f"kernel_{name}", verdict=verdict, started_epoch=epoch, layer=name)
            library.record_trial(trial, "run")
    assert names(library.find(SLOT)) == ["c", "b", "a", "d"]
    assert names(library.find(SLOT, limit=2)) == ["c", "b"]


def test_of_equal_rank_the_faster_comes_first(library: KernelLibrary) -> None:
    for name, ratio in (("slow", 3.0), ("fast", 0.5), ("middle", 1.0), ("also-middle", 1.0)):
        library.put(artefact(name, latency_ratio=ratio))
    assert names(library.find(SLOT)) == ["fast", "also-middle", "middle", "slow"]


def test_a_retired_kernel_is_not_offered_until_it_is_back(library: KernelLibrary) -> None:
    library.put(artefact("a"))
    library.set_status("kernel_a", "retired")
    assert library.find(SLOT) == []
    assert library.get("kernel_a").status == "retired"
    library.set_status("kernel_a", "validated")
    assert names(library.find(SLOT)) == ["a"]


def test_query_narrows_by_each_field(library: KernelLibrary) -> None:
    library.put(artefact("Bottleneck", tags=("linear", "residual"), input_shape=(16,)))
    library.put(artefact("Gated_100%", tags=("linear",), output_shape=(32,)))
    library.put(artefact("Depthwise", tags=("conv",), layout="channels", status="retired"))

    def listed(**conditions: object) -> list[str]:
        return names(library.query(KernelQuery(sort="name", **conditions)))

    assert listed() == ["Bottleneck", "Depthwise", "Gated_100%"]
    assert listed(tags=("linear",)) == ["Bottleneck", "Gated_100%"]
    assert listed(tags=("linear", "residual")) == ["Bottleneck"]
    assert listed(tags=("linear", "conv")) == []
    assert listed(input=16) == ["Bottleneck"]
    assert listed(output=32) == ["Gated_100%"]
    assert listed(layout="channels") == ["Depthwise"]
    assert listed(status="validated") == ["Bottleneck", "Gated_100%"]
    assert listed(name="TT") == ["Bottleneck"]
    assert listed(name="0%") == ["Gated_100%"]
    assert listed(name="o%k") == []  # a percent sign is a percent sign, not a wildcard
    assert listed(tags=("linear",), output=8, limit=5) == ["Bottleneck"]
    assert listed(limit=1) == ["Bottleneck"]


def test_query_sorts_the_way_one_reads_it(library: KernelLibrary) -> None:
    small = {"performance_score": 0.9, "latency_ratio": 2.0, "parameters": 10, "created_at": "2026-01-01"}
    large = {"performance_score": 0.1, "latency_ratio": 1.0, "parameters": 99, "created_at": "2026-02-01"}
    library.put(artefact("small", program=b"s", **small))
    library.put(artefact("Large", program=b"large program", **large))
    library.record_trial(report(kernel_id="kernel_Large", verdict="culled"), "run")
    firsts = {sort: library.query(KernelQuery(sort=sort))[0].name for sort in SORT_KEYS}
    assert firsts == {
        "rank": "small",
        "name": "Large",
        "created": "Large",
        "score": "small",
        "latency": "Large",
        "parameters": "small",
        "size": "small",
        "trials": "Large",
        "id": "Large",
    }


def test_an_unknown_sort_names_the_nearest(library: KernelLibrary) -> None:
    with pytest.raises(ConfigError, match="latency") as caught:
        library.query(KernelQuery(sort="latencies"))
    assert caught.value.hint == "did you mean latency?"
    with pytest.raises(ConfigError, match="one of: rank, name"):
        library.query(KernelQuery(sort="zzz"))


def test_trials_come_back_field_for_field(library: KernelLibrary) -> None:
    measured = {"gradient_norm": 0.1, "activation_variance": 0.5, "health": 0.9, "latency_ms": 0.2}
    place = {"task": "digits", "depth": 2, "layers": 6, "seconds": 1.5}
    first = report(slot=Slot("channels", 16, 32, stride=2), **place, **measured)
    second = report(kernel_id="kernel_b", seed_idx=0, verdict="culled", task="fashion")
    library.record_trial(first, "run-1")
    library.record_trial(second, "run-1")
    assert library.trials() == [Trial("run-1", first), Trial("run-1", second)]
    assert library.trials("kernel_b") == [Trial("run-1", second)]
    assert library.trials("kernel_c") == []


def test_a_trial_that_measured_nothing_keeps_its_nan(library: KernelLibrary) -> None:
    library.record_trial(report(verdict="failed", gain=math.nan, loss_after=math.inf), "run")
    stored = library.trials()[0].report
    assert math.isnan(stored.gain)
    assert stored.loss_after == math.inf
    assert replace(stored, gain=0.0) == report(verdict="failed", gain=0.0, loss_after=math.inf)


def test_a_repeated_trial_replaces_the_first_and_both_kernels_are_counted_anew(
    library: KernelLibrary,
) -> None:
    for name in ("a", "b"):
        library.put(artefact(name))
    library.record_trial(report(kernel_id="kernel_a", verdict="kept"), "run")
    assert names(library.find(SLOT)) == ["a", "b"]  # 0.75, 0.5
    library.record_trial(report(kernel_id="kernel_b", verdict="kept"), "run")
    assert names(library.find(SLOT)) == ["b", "a"]  # the same place in the same run: b, not a, had it
    assert len(library.trials()) == 1
    library.record_trial(report(kernel_id="kernel_a", verdict="kept"), "another run")
    assert len(library.trials()) == 2


def test_trials_outlive_their_kernel_and_count_when_it_is_back(library: KernelLibrary) -> None:
    library.put(artefact("a", performance_score=0.0))
    library.put(artefact("b", performance_score=0.1))
    library.record_trial(report(kernel_id="kernel_a"), "run")
    library.remove("kernel_a")
    assert len(library.trials("kernel_a")) == 1
    library.put(artefact("a", performance_score=0.0))
    assert names(library.find(SLOT)) == ["a", "b"]


def test_compilations_come_back_in_the_order_they_were_made(library: KernelLibrary) -> None:
    records = [
        CompilationRecord("blueprint_a", "A", SLOT, "torchscript", "compiled", 0.2, "2026-11-23", "kernel_a"),
        CompilationRecord(
            "blueprint_b",
            "B",
            Slot("channels", 4, 8, stride=2),
            "torchscript",
            "failed",
            1.5,
            "2026-11-22",
            stage="validate",
            reason="output is not finite",
        ),
    ]
    for record in records:
        library.record_compilation(record)
    assert library.compilations() == records
