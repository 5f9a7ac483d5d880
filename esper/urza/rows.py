"""Between the records of ``esper.messages`` and the rows of the database, which have the same fields."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import RowMapping

from esper.messages import CompilationRecord, FieldReport, InventionRecord, KernelMetadata, Slot

Values = dict[str, Any]
Row = RowMapping | Mapping[str, Any]
"""Column to value."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One finished trial of a kernel: in which run, and what it showed."""

    run_id: str
    report: FieldReport


def _names(record: type[Any], *but: str) -> tuple[str, ...]:
    return tuple(field.name for field in fields(record) if field.name not in but)


_KERNEL = _names(KernelMetadata, "input_shape", "output_shape", "tags")
_COMPILATION = _names(CompilationRecord, "slot")
# What a policy thought stays in its run's journal, and a kernel's tags are its own.
_REPORT = _names(FieldReport, "slot", "confidence", "tags")
_INVENTION = _names(InventionRecord, "slot", "parents")


def _copy(source: object, names: tuple[str, ...]) -> Values:
    return {name: getattr(source, name) for name in names}


def _pick(row: Row, names: tuple[str, ...]) -> Values:
    return {name: row[name] for name in names}


def _spread(slot: Slot) -> Values:
    return _copy(slot, ("layout", "in_features", "out_features", "stride"))


def _slot(row: Row) -> Slot:
    return Slot(row["layout"], row["in_features"], row["out_features"], row["stride"])


def kernel_values(metadata: KernelMetadata) -> Values:
    """The columns of ``kernels`` that the metadata fills; the tags have a table of their own."""
    features = {"in_features": metadata.input_shape[-1], "out_features": metadata.output_shape[-1]}
    return _copy(metadata, _KERNEL) | features


def tag_values(metadata: KernelMetadata, tags: Collection[str]) -> list[Values]:
    """The rows of ``kernel_tags`` that give a kernel these tags, each once."""
    kernel = {"kernel_id": metadata.kernel_id} | _spread(metadata.slot)
    return [kernel | {"tag": tag, "position": n} for n, tag in enumerate(dict.fromkeys(tags))]


def kernel_metadata(row: Row, tags: Sequence[str]) -> KernelMetadata:
    """What the library knows of the kernel in ``row``."""
    shapes: Values = {"input_shape": (row["in_features"],), "output_shape": (row["out_features"],)}
    return KernelMetadata(**_pick(row, _KERNEL), **shapes, tags=tuple(tags))


def compilation_values(record: CompilationRecord) -> Values:
    """The columns of ``compilations`` for one attempt to compile."""
    return _copy(record, _COMPILATION) | _spread(record.slot)


def compilation_record(row: RowMapping) -> CompilationRecord:
    """The attempt to compile in ``row``."""
    return CompilationRecord(**_pick(row, _COMPILATION), slot=_slot(row))


def trial_values(trial: Trial) -> Values:
    """The columns of ``trials`` for one trial."""
    report = trial.report
    return {"run_id": trial.run_id} | _copy(report, _REPORT) | _spread(report.slot)


def trial_of(row: RowMapping) -> Trial:
    """The trial in ``row``."""
    return Trial(row["run_id"], FieldReport(**_pick(row, _REPORT), slot=_slot(row)))


def invention_values(record: InventionRecord) -> Values:
    """The columns of ``inventions`` for one invention."""
    return _copy(record, _INVENTION) | _spread(record.slot) | {"parents": " ".join(record.parents)}


def invention_record(row: RowMapping) -> InventionRecord:
    """The invention in ``row``."""
    parents = tuple(row["parents"].split())
    return InventionRecord(**_pick(row, _INVENTION), slot=_slot(row), parents=parents)
