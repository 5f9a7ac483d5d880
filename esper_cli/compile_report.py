"""What ``esper compile`` prints: its progress, and what became of each blueprint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from esper.errors import BlueprintError
from esper.messages import CompilationRecord, Slot
from esper_cli.progress import describe
from esper_cli.terminal import console, duration, print_json, print_lines, table

if TYPE_CHECKING:  # it takes a while to import; --help and completion must not wait for it
    from esper.blueprint import Blueprint


@dataclass
class Report:
    """What became of each blueprint."""

    records: list[CompilationRecord] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    present: int = 0

    @property
    def failed(self) -> bool:
        """Whether anything could not be read or compiled."""
        return bool(self.refused or self.outcomes("failed"))

    def outcomes(self, status: str) -> list[CompilationRecord]:
        """The last attempt at each kernel, where it came to ``status``: a failed one may be tried again."""
        last = {(record.blueprint_id, record.slot): record for record in self.records}
        return [record for record in last.values() if record.status == status]

    def read(self, paths: Iterable[Path]) -> list[Blueprint]:
        """The blueprints in files and folders; what cannot be read is noted and left out."""
        from esper.blueprint import load_blueprints

        blueprints: dict[str, Blueprint] = {}
        for path in paths:
            files = _files(path)
            if not files:
                self.refused.append(f"{path}: no blueprints in this folder")
            for file in files:
                try:
                    blueprints |= {blueprint.blueprint_id: blueprint for blueprint in load_blueprints(file)}
                except BlueprintError as error:
                    self.refused.append(str(error))
        return list(blueprints.values())

    def show(self, as_json: bool) -> None:
        """Print the result."""
        if as_json:
            print_json(
                {
                    "compiled": [asdict(record) for record in self.outcomes("compiled")],
                    "failed": [asdict(record) for record in self.outcomes("failed")],
                    "refused": self.refused,
                    "already_present": self.present,
                    "no_shape_fits": sorted(self.unfit),
                    "blueprint_not_found": self.unknown,
                }
            )
            return
        if self.records:
            print_lines(self._table())
        for line in self.refused:
            print_lines(f"refused: {line}", stderr=True)
        for name in self.unfit:
            print_lines(f"{name}: none of the shapes fits it", stderr=True)
        for name in self.unknown:
            print_lines(f"{name}: failed before, and its blueprint is not among these", stderr=True)
        compiled, failed = len(self.outcomes("compiled")), len(self.outcomes("failed"))
        parts = [f"{compiled} kernels compiled", f"{self.present} already in the library"]
        parts += [f"{failed} failed"] if failed else []
        parts += [f"{len(self.refused)} refused"] if self.refused else []
        nothing = "Nothing to compile: " if not self.records and not self.failed and self.present else ""
        print_lines(nothing + ", ".join(parts if not nothing else parts[1:]))

    def _table(self) -> Table:
        rows = table(("blueprint", "for", "result", "time", "kernel"), right=("time",), whole=("kernel",))
        for record in self.records:
            good = record.status == "compiled"
            rows.add_row(
                record.blueprint_name,
                str(record.slot),
                Text("compiled", "yellow" if record.reason else "green")
                if good
                else Text(f"failed in {record.stage}", "red"),
                duration(record.seconds),
                _kernel(record),
            )
        return rows


def _kernel(record: CompilationRecord) -> Text:
    """The kernel, and the configuration where it is not the one that was asked for; or why there is none."""
    if record.kernel_id is None:
        return Text(record.reason or "", "red")
    return Text(f"{record.kernel_id}{f' as a fallback: {record.reason}' if record.reason else ''}")


def _files(path: Path) -> list[Path]:
    from esper.blueprint import SUFFIXES

    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())


@contextmanager
def compile_progress(total: int) -> Iterator[Callable[[CompilationRecord], None]]:
    """A progress bar in a terminal, a line a kernel elsewhere; on stderr, as stdout is for the result."""
    out = console(stderr=True)
    tried: set[tuple[str, Slot]] = set()  # pairs, not attempts: one that fails may be tried twice
    if not out.is_terminal:

        def tell(record: CompilationRecord) -> None:
            tried.add((record.blueprint_id, record.slot))
            fields = {"record": record, "done": len(tried), "total": total}
            out.print(Text(describe("compile", fields) or ""))

        yield tell
        return
    columns = (TextColumn("compiling"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, TextColumn("{task.description}"), console=out, transient=True) as bar:
        task = bar.add_task("", total=total, visible=total > 0)

        def advance(record: CompilationRecord) -> None:
            tried.add((record.blueprint_id, record.slot))
            bar.update(task, completed=len(tried), description=record.blueprint_name)

        yield advance
