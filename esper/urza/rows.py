"""Between the records of ``esper.messages`` and the rows of the database, which have the same fields."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from esper.messages import CompilationRecord, FieldReport, KernelMetadata, Slot
from esper.urza.schema import CompilationRow, KernelRow, KernelTagRow, TrialRow


@dataclass(frozen=True, slots=True)
class Trial:
    """One finished trial of a kernel: in which run, on which task, and what it showed."""

    run_id: str
    task: str
    report: FieldReport


def _names(record: type[Any], *but: str) -> tuple[str, ...]:
    return tuple(field.name for field in fields(record) if field.name not in but)


_KERNEL = _names(KernelMetadata, "input_shape", "output_shape", "tags")
_COMPILATION = _names(CompilationRecord, "slot")
_REPORT = _names(FieldReport, "slot")


def _copy(source: object, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(source, name) for name in names}


def _spread(slot: Slot) -> dict[str, Any]:
    return _copy(slot, ("layout", "in_features", "out_features", "stride"))


def _slot(row: CompilationRow | TrialRow) -> Slot:
    return Slot(row.layout, row.in_features, row.out_features, row.stride)


def kernel_row(metadata: KernelMetadata, blueprint_digest: str, trials: int, kept: int) -> KernelRow:
    """The row of a new kernel, of whose ``trials`` on record ``kept`` ended well."""
    return KernelRow(
        **_copy(metadata, _KERNEL),
        in_features=metadata.input_shape[-1],
        out_features=metadata.output_shape[-1],
        blueprint_digest=blueprint_digest,
        trial_count=trials,
        kept_count=kept,
        tags=[KernelTagRow(tag=tag, position=i) for i, tag in enumerate(dict.fromkeys(metadata.tags))],
    )


def kernel_metadata(row: KernelRow) -> KernelMetadata:
    """What the library knows of the kernel in ``row``."""
    return KernelMetadata(
        **_copy(row, _KERNEL),
        input_shape=(row.in_features,),
        output_shape=(row.out_features,),
        tags=tuple(tag.tag for tag in row.tags),
    )


def compilation_row(record: CompilationRecord) -> CompilationRow:
    """The row of one attempt to compile."""
    return CompilationRow(**_copy(record, _COMPILATION), **_spread(record.slot))


def compilation_record(row: CompilationRow) -> CompilationRecord:
    """The attempt to compile in ``row``."""
    return CompilationRecord(**_copy(row, _COMPILATION), slot=_slot(row))


def trial_row(trial: Trial) -> TrialRow:
    """The row of one trial."""
    report = trial.report
    return TrialRow(run_id=trial.run_id, task=trial.task, **_copy(report, _REPORT), **_spread(report.slot))


def trial_of(row: TrialRow) -> Trial:
    """The trial in ``row``."""
    return Trial(row.run_id, row.task, FieldReport(**_copy(row, _REPORT), slot=_slot(row)))
