"""``esper compile``: blueprint files to validated kernels in the library."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from esper.errors import BlueprintError, ConfigError
from esper.messages import CompilationRecord, Layout, Slot
from esper_cli.compile_report import Report, compile_progress
from esper_cli.completion import complete_names, complete_paths_or_overrides
from esper_cli.importing import importing_pytorch
from esper_cli.keys import tell_key_made
from esper_cli.terminal import print_lines

if TYPE_CHECKING:  # PyTorch takes seconds to import; --help and completion must not wait for it
    from omegaconf import DictConfig

    from esper.blueprint import Blueprint

_SHAPE = re.compile(r"(?P<layout>\w+):(?P<input>\d{1,9}):(?P<output>\d{1,9})(?::(?P<stride>\d{1,4}))?")

EPILOG = "Example: esper compile blueprints/ --shape features:128:256"


def _complete_experiments() -> list[str]:
    from esper_cli.config import experiments

    return experiments()


def compile_blueprints(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            show_default=False,
            metavar="PATHS|KEY=VALUE",
            help="Blueprint files, and folders of them; overrides of the configuration.",
            autocompletion=complete_paths_or_overrides,
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYOUT:IN:OUT[:STRIDE]",
            help="Compile for this shape, such as channels:16:16; repeated: for each.",
        ),
    ] = None,
    for_: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="EXPERIMENT",
            help="Compile for every seed of this experiment's network.",
            autocompletion=complete_names(_complete_experiments),
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Processes that compile at once; short for tezzeret.workers=N."
        ),
    ] = None,
    failed: Annotated[
        bool,
        typer.Option(
            "--failed", help="Try again what has failed and is not stored; without PATHS, of karn.paths."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compile blueprints to validated kernels and store them in the library.

    What the library has already is not compiled again. One bad blueprint does not stop the others; it makes
    the exit code 1.
    """
    with importing_pytorch():
        from esper.assembly.kernels import build_pipeline, compile_pairs
        from esper.assembly.network import slots_of
        from esper.assembly.storage import build_library
        from esper.tezzeret.interrupts import interrupts_noted
        from esper.tezzeret.worker import stored_as
        from esper_cli.config import compose

    files, overrides = _split(paths or ())
    if failed and (shape or for_):
        raise ConfigError(
            "--failed tries again for the shapes that failed", hint="leave out --shape and --for"
        )
    if workers is not None:
        overrides.append(f"tezzeret.workers={workers}")
    cfg = compose([*([f"+experiment={for_}"] if for_ else []), *overrides])
    files = files or ([Path(path) for path in cfg.karn.paths] if failed else [])
    if not files:
        raise ConfigError(
            "no blueprint to compile was named", hint="the ones that ship: esper compile blueprints/"
        )
    for file in files:
        if not file.exists():
            raise BlueprintError(f"there is no {file}", hint="name blueprint files, or folders of them")
    slots = [parse_shape(text) for text in shape or ()]
    if for_:
        slots += slots_of(cfg)
    report = Report()
    blueprints = report.read(files)
    with closing(build_library(cfg, on_key_made=tell_key_made)) as library, interrupts_noted():
        pipeline = build_pipeline(cfg)
        if failed:
            pairs = list(_failed_before(library.compilations(), pipeline.target.name, blueprints, report))
        else:
            pairs = list(_pairs(blueprints, dict.fromkeys(slots or _default_slots(cfg)), report))
        missing = [pair for pair in pairs if stored_as(library, pipeline, *pair) is None]
        report.present = len(pairs) - len(missing)
        with compile_progress(len(missing)) as advance:
            report.records = compile_pairs(cfg, library, pipeline, missing, advance, _tell)
    report.show(as_json)
    if report.failed:
        raise typer.Exit(1)


def parse_shape(text: str, flag: str = "--shape") -> Slot:
    """``channels:16:32:2`` as the slot of a kernel from 16 to 32 channels that halves height and width.

    Raises:
        ConfigError: another form, an unknown layout, no features, a stride where there is no space.
    """
    match = _SHAPE.fullmatch(text)
    layouts = get_args(Layout)
    if match is None or match["layout"] not in layouts:
        raise ConfigError(
            f"{flag} {text!r} is not LAYOUT:IN:OUT[:STRIDE] with a layout of {', '.join(layouts)}",
            hint=f"for example: {flag} channels:16:32:2",
        )
    slot = Slot(
        cast(Layout, match["layout"]), int(match["input"]), int(match["output"]), int(match["stride"] or 1)
    )
    if min(slot.in_features, slot.out_features, slot.stride) < 1:
        raise ConfigError(f"{flag} {text!r}: features and stride are at least 1")
    if slot.stride > 1 and slot.layout != "channels":
        raise ConfigError(f"{flag} {text!r}: only channels have a stride", hint="leave the last number out")
    return slot


def _split(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    return [Path(word) for word in words if word not in overrides], overrides


def _pairs(
    blueprints: Iterable[Blueprint], slots: Iterable[Slot], report: Report
) -> Iterator[tuple[Blueprint, Slot]]:
    """Every blueprint with each slot that it can be built for.

    A blueprint that no slot of its layouts fits is refused with the reason; one that has no slot of its
    layouts is noted.
    """
    from esper.blueprint import plan

    slots = list(slots)
    for blueprint in blueprints:
        refusals = []
        candidates = [slot for slot in slots if any(slot.accepts(layout) for layout in blueprint.layouts)]
        for slot in candidates:
            try:
                plan(blueprint, slot)
            except BlueprintError as error:
                refusals.append(str(error))
            else:
                yield blueprint, slot
        if not candidates:
            report.unfit.append(blueprint.name)
        elif len(refusals) == len(candidates):
            report.refused.append(refusals[0])


def _failed_before(
    log: Iterable[CompilationRecord], target: str, blueprints: Iterable[Blueprint], report: Report
) -> Iterator[tuple[Blueprint, Slot]]:
    """What the log has failures of, for ``target``; what of it has no blueprint here is noted."""
    known = {blueprint.blueprint_id: blueprint for blueprint in blueprints}
    failed = {
        (record.blueprint_id, record.slot): record.blueprint_name
        for record in log
        if record.status == "failed" and record.target == target
    }
    for (blueprint_id, slot), name in failed.items():
        if blueprint_id in known:
            yield known[blueprint_id], slot
        else:
            report.unknown.append(f"{name} for {slot}")


def _tell(text: str) -> None:
    print_lines(text, stderr=True)


def _default_slots(cfg: DictConfig) -> list[Slot]:
    return [parse_shape(text) for text in cfg.compile.shapes]
