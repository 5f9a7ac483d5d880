"""Inventing for a library: its reports in, blueprints compiled and stored with what they were made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig
from torch import nn

from esper.assembly.configured import configured
from esper.blueprint import Blueprint, from_json
from esper.errors import BlueprintError, ConfigError, CorruptKernel, KernelNotFound
from esper.karn.catalogue import load_catalogue
from esper.karn.invention import Invention, Inventor, Past, Place
from esper.karn.retirement import Retirement
from esper.kasmina import seeded_layers
from esper.messages import INVENTED, CompilationRecord, FieldReport, InventionRecord, KernelArtefact, Slot
from esper.tezzeret.builder import build
from esper.tezzeret.pipeline import Pipeline
from esper.tezzeret.queue_depth import TellQueue
from esper.tezzeret.worker import Told, Workers, compile_missing, stored_as
from esper.tolaria.choice import dormant_slots
from esper.urza import KernelQuery
from esper.urza.library import KernelLibrary

LOSING = "losing"
"""The tag of a kernel that was retired because it kept losing, not by hand."""
RESTORED = "restored"
"""The tag of a kernel that was brought back by hand; losing does not retire it again."""
_REASON = 600
"""Characters of a reason that the record of a kernel has room for."""

TellInvention = Callable[[InventionRecord], None]


def build_inventor(cfg: DictConfig) -> Inventor:
    """What ``cfg.karn.generator`` describes; raises ConfigError, also where scikit-learn is missing."""
    if find_spec("sklearn") is None:
        raise ConfigError("inventing needs scikit-learn", hint="pip install 'esper-morph[karn]'")
    inventor: Inventor = configured(cfg, "karn.generator", build=build)
    return inventor


def places_of(model: nn.Module) -> list[Place]:
    """Where a kernel could be grafted into ``model`` now: the slots of dormant seeds, each once."""
    return [Place(slot, kind) for slot, kind in dormant_slots(seeded_layers(model))]


def places_in(reports: Iterable[FieldReport]) -> list[Place]:
    """Where the trials of ``reports`` were, each place once."""
    return list(dict.fromkeys(Place(report.slot, report.layer_kind) for report in reports))


@dataclass(frozen=True)
class Inventing:
    """Invents for one library. ``paths`` are where the blueprints are that may be parents from the start.

    ``on_failure`` is told of each kernel that no configuration gives, ``on_queue`` how many wait to be
    compiled; ``run_id`` is the run that it is for.
    Only trials of runs whose ids start with ``reports_of`` count.
    With ``only_new`` no blueprint of ``paths`` itself is proposed for a slot that it was not compiled for.
    """

    library: KernelLibrary
    pipeline: Pipeline
    inventor: Inventor
    paths: Sequence[Path]
    retirement: Retirement = field(default_factory=Retirement)
    workers: Workers | None = None
    on_failure: Told = lambda _: None
    on_queue: TellQueue | None = None
    run_id: str = ""
    only_new: bool = False
    reports_of: str = ""
    _read: dict[str, Blueprint] = field(default_factory=dict)

    def reports(self) -> list[FieldReport]:
        """The trials that count, oldest first."""
        return [trial.report for trial in self.library.trials() if trial.run_id.startswith(self.reports_of)]

    def past(self, places: Sequence[Place] = ()) -> Past:
        """All that the next inventions for ``places`` depend on, as the library has it now."""
        reports = self.reports()
        inventions = self.library.inventions()
        blueprints = {each.blueprint_id: each for each in load_catalogue(self.paths).blueprints}
        known = {(record.graph_id, record.slot) for record in inventions}
        if self.only_new:
            graphs = [each.graph_id for each in blueprints.values()]
            known |= {(graph, place.slot) for graph in graphs for place in places}
        named = {record.blueprint_id: record.kernel_id for record in inventions if record.kernel_id}
        named |= {report.blueprint_id: report.kernel_id for report in reports}
        for blueprint_id, kernel_id in named.items():
            if blueprint_id not in blueprints and (found := self._blueprint(blueprint_id, kernel_id)):
                blueprints[blueprint_id] = found
        for record in self.library.compilations():
            if record.blueprint_id in blueprints:
                known.add((blueprints[record.blueprint_id].graph_id, record.slot))
        return Past(reports, list(blueprints.values()), known)

    def invent(
        self, places: Sequence[Place], count: int, tell: TellInvention = lambda _: None
    ) -> list[InventionRecord]:
        """Up to ``count`` inventions, each stored before ``tell`` learns of it.

        Where ``count`` is not enough for all ``places``, those come first for which the least was invented.
        """
        earlier = self.library.inventions()
        made_for = Counter(record.slot for record in earlier)
        places = sorted(places, key=lambda place: made_for[place.slot])
        inventions = self.inventor.propose(self.past(places), places, count)
        told: dict[tuple[str, Slot], InventionRecord] = {}

        def record(invention: Invention, kernel_id: str | None = None, failure: str | None = None) -> None:
            made = replace(_record(invention, self.run_id), kernel_id=kernel_id, failure=failure)
            made = _with_lineage(made, earlier)
            self.library.record_invention(made)
            told[made.blueprint_id, made.slot] = made
            tell(made)

        storing = _Storing(self.library, {_key(each): each for each in inventions}, record, self.run_id)

        def failed(compilation: CompilationRecord) -> None:
            reason = f"{compilation.stage}: {compilation.reason}"
            record(storing.inventions[compilation.blueprint_id, compilation.slot], failure=reason)
            self.on_failure(compilation)

        pairs = [(each.blueprint, each.place.slot) for each in inventions]
        compile_missing(
            self.pipeline, storing, pairs, on_failure=failed, on_queue=self.on_queue, workers=self.workers
        )
        for invention in inventions:
            if _key(invention) not in told:  # the library had it, from elsewhere
                made = stored_as(self.library, self.pipeline, invention.blueprint, invention.place.slot)
                record(invention, kernel_id=made)
        return list(told.values())

    def retire(self) -> dict[str, str]:
        """Retire the invented kernels of blueprints that keep losing wherever they are tried, and why.

        What no longer loses by that rule, and was retired by it, comes back.
        """
        invented = self.library.query(KernelQuery(tags=(INVENTED,), sort="id"))
        revived = frozenset(kernel.blueprint_id for kernel in invented if RESTORED in kernel.tags)
        reports = self.reports()
        retired = replace(self.retirement, revived=self.retirement.revived | revived).retired(reports)
        tried = {(report.blueprint_id, report.layer_kind) for report in reports}
        found: dict[str, str] = {}
        for kernel in invented:
            where = [key for key in tried if key[0] == kernel.blueprint_id]
            losing = bool(where) and all(key in retired for key in where)
            if losing and kernel.status == "validated":
                found[kernel.kernel_id] = "; ".join(retired[key] for key in sorted(where))
                self.library.set_status(kernel.kernel_id, "retired")
                self.library.set_tags(kernel.kernel_id, [*kernel.tags, LOSING])
            elif not losing and kernel.status == "retired" and LOSING in kernel.tags:
                self.library.set_status(kernel.kernel_id, "validated")
                self.library.set_tags(kernel.kernel_id, [tag for tag in kernel.tags if tag != LOSING])
        return found

    def _blueprint(self, blueprint_id: str, kernel_id: str) -> Blueprint | None:
        """That of a kernel, None where it is gone or damaged: then nothing is learned from its trials."""
        if blueprint_id not in self._read:
            try:
                self._read[blueprint_id] = from_json(self.library.blueprint(kernel_id))
            except (KernelNotFound, CorruptKernel, BlueprintError):
                return None
        return self._read[blueprint_id]


@dataclass(frozen=True)
class _Storing:
    """The library as the compilation sees it: what it stores gets its lineage."""

    library: KernelLibrary
    inventions: Mapping[tuple[str, Slot], Invention]
    record: Callable[..., None]
    run_id: str

    def contains(self, kernel_id: str) -> bool:
        return self.library.contains(kernel_id)

    def put(self, artefact: KernelArtefact) -> None:
        metadata = artefact.metadata
        # One that was made smaller, since it could not be compiled as it was, names what it stands in for.
        asked = metadata.parent_blueprint or metadata.blueprint_id
        invention = self.inventions[asked, metadata.slot]
        lineage = replace(
            metadata,
            author="esper karn",
            parent_blueprint=invention.parents[0] if invention.parents else "",
            run_id=self.run_id,
            decision=invention.reason[:_REASON],
        )
        self.library.put(replace(artefact, metadata=lineage))
        self.record(invention, kernel_id=metadata.kernel_id)

    def record_compilation(self, record: CompilationRecord) -> None:
        self.library.record_compilation(record)


def _key(invention: Invention) -> tuple[str, Slot]:
    return invention.blueprint.blueprint_id, invention.place.slot


def _with_lineage(made: InventionRecord, earlier: Sequence[InventionRecord]) -> InventionRecord:
    """``made``; of a blueprint that was invented for another slot, with the parents from there."""
    first = next((each for each in earlier if each.blueprint_id == made.blueprint_id), None)
    if made.parents or first is None:
        return made
    reason = f"{made.reason}; for {first.slot}: {first.reason}"
    return replace(made, origin=first.origin, parents=first.parents, reason=reason)


def _record(invention: Invention, run_id: str) -> InventionRecord:
    return InventionRecord(
        graph_id=invention.blueprint.graph_id,
        blueprint_id=invention.blueprint.blueprint_id,
        blueprint_name=invention.blueprint.name,
        slot=invention.place.slot,
        layer_kind=invention.place.layer_kind,
        origin=invention.origin,
        parents=invention.parents,
        reason=invention.reason,
        predicted_impact=invention.predicted_impact,
        uncertainty=invention.uncertainty,
        run_id=run_id,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
