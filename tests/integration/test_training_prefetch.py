"""Kernels that may be wanted next are fetched in the background: no result shows it, nobody waits for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from urza_support import artefact, never_load, open_sealed
from waiting import LONG, until

from esper.assembly.training import build_training
from esper.errors import LibraryError
from esper.messages import AdaptationDecision, SeedState, Slot, SystemStatePacket
from esper.tolaria.choice import likely_wanted
from esper.tolaria.orchestrator import AHEAD, NEXT_IN_RANK, SeedOrchestrator
from esper.urza import KernelLibrary, KernelQuery
from esper.urza.ranking import TrialContext, Wanted
from esper.urza.tiers import MISSING
from esper_cli.config import compose

PACKET = SystemStatePacket(
    epoch=0, global_step=0, loss=1.0, accuracy=0.5, layer_metrics={}, held_out_loss=1.0
)
WANTED = {"seed_idx": 0, "alpha_blend": 1.0, "site": "parallel", "blend": "residual", "tags": []}
DECISION = AdaptationDecision("add_seed", "hidden.0", WANTED, 1.0, 0.0)


FIRST, SECOND = Slot("features", 16, 4), Slot("features", 4, 4)
"""Of the first hidden layer and of the second."""


def places(folder: Path) -> list[str]:
    """Overrides that keep everything below ``folder``."""
    library = [f"urza.url=sqlite:///{folder}/kernels.db", f"security.path={folder}/keys.json"]
    return [f"runs={folder}/runs", *library]


@pytest.fixture
def orchestrator(tmp_path: Path) -> Iterator[SeedOrchestrator]:
    """Of a run whose library was filled by another, so that its memory is empty."""
    cfg = compose(["+experiment=smoke", *places(tmp_path)])
    for is_second in (False, True):
        trainer = build_training(cfg).trainer
        with trainer.recorder.journal, trainer.orchestrator.library:
            if is_second:
                yield trainer.orchestrator


def ranked(orchestrator: SeedOrchestrator, slot: Slot) -> list[str]:
    """The digests of the kernels for ``slot``, best first."""
    context = TrialContext("linear", orchestrator.task)
    return [kernel.program_digest for kernel in orchestrator.library.find(slot, context=context)]


def in_memory(library: KernelLibrary) -> set[str]:
    memory = library._store._memory
    assert memory is not None
    return set(memory.get_many([kernel.program_digest for kernel in library.query(KernelQuery(limit=1000))]))


def test_the_next_in_rank_are_fetched_with_the_best(orchestrator: SeedOrchestrator) -> None:
    digests = ranked(orchestrator, FIRST)
    assert orchestrator.apply(DECISION, PACKET) is not None
    expected = set(digests[: 1 + NEXT_IN_RANK])
    assert len(expected) == 1 + NEXT_IN_RANK < len(digests)
    until(lambda: in_memory(orchestrator.library) >= expected)
    assert in_memory(orchestrator.library) == expected


def test_the_best_for_the_slots_of_dormant_seeds_are_fetched_once(
    orchestrator: SeedOrchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = ranked(orchestrator, FIRST)
    best = digests[: AHEAD // 2] + ranked(orchestrator, SECOND)[: AHEAD // 2]
    asked: list[list[str]] = []
    prefetcher = orchestrator.library._store._prefetcher
    fetch = prefetcher._fetch

    def counted(digests: Any) -> None:
        fetch(digests)
        asked.append(list(digests))

    monkeypatch.setattr(prefetcher, "_fetch", counted)
    for _ in range(3):
        orchestrator.look_ahead()
    until(lambda: asked)
    prefetcher.wait()
    assert asked == [best]
    assert in_memory(orchestrator.library) == set(best)
    reports = orchestrator.seeds.reports
    orchestrator.seeds.reports = reports.plus(None)
    orchestrator.look_ahead()
    until(lambda: len(asked) == 2)
    assert asked[1] == []  # looked for again, as ranks may have changed, and nothing twice
    orchestrator.seeds.reports = reports
    assert orchestrator.apply(DECISION, PACKET) is not None
    orchestrator.look_ahead()  # while a seed is on trial
    until(lambda: len(asked) == 3)
    prefetcher.wait()
    assert asked[2:] == [[digest for digest in digests[1 : 1 + NEXT_IN_RANK] if digest not in best]]


def test_slots_are_those_of_dormant_seeds_each_once_and_bounded(orchestrator: SeedOrchestrator) -> None:
    layers, context = orchestrator.layers, TrialContext("linear", "digits")
    both = tuple(Wanted(slot, context, limit=4) for slot in (FIRST, SECOND))
    assert likely_wanted(layers, "digits", 8) == both
    assert likely_wanted(layers, "digits", 1) == (Wanted(FIRST, context, limit=1),)
    assert likely_wanted({}, "digits", 8) == ()
    for layer in layers.values():
        for idx in range(len(layer.seeds)):
            layer.seed(idx).state = SeedState.EMBARGOED
    assert likely_wanted(layers, "digits", 8) == ()


def test_nobody_waits_for_a_record_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered, asked = threading.Event(), threading.Event()

    def rank(_: Wanted) -> Any:
        asked.set()
        answered.wait()
        raise LibraryError("gone")

    with open_sealed(f"sqlite:///{tmp_path}/kernels.db", never_load) as library:
        kernel = library.put(artefact("a"))
        library._store.evict(kernel.program_digest)
        monkeypatch.setattr(library._records, "rank", rank)
        library.prefetch_best([Wanted(Slot("features", 8, 8))])
        assert asked.wait(LONG)  # and it is in our hands again
        library.prefetch([kernel])
        answered.set()
        memory = library._store._memory
        assert memory is not None
        until(lambda: memory.get(kernel.program_digest) is not MISSING)
        assert library._store._prefetcher.errors == 1


def test_no_result_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []
    ahead: list[int] = []
    for name in ("with", "without"):
        run = build_training(compose(["+experiment=smoke", *places(tmp_path / name)]))
        if name == "without":
            monkeypatch.setattr(KernelLibrary, "prefetch", lambda *_: ahead.append(1))
            monkeypatch.setattr(KernelLibrary, "prefetch_best", lambda *_: ahead.append(2))
        summary = run.run()
        assert summary["adaptations"]
        weights.append(summary["weights_sha256"])
    assert set(ahead) == {1, 2}  # both would have happened
    assert weights[0] == weights[1]
