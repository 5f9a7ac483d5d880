"""``esper kernels export`` and ``import``: kernels as files that anybody may be given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from esper.errors import ConfigError, RefusedProgram
from esper_cli.compile import parse_shape
from esper_cli.completion import complete_paths_or_overrides
from esper_cli.importing import importing_pytorch
from esper_cli.kernels import AsJson, KernelId, Overrides, library, resolve, split_overrides
from esper_cli.kernels_upkeep import app
from esper_cli.terminal import console, counted, print_json, print_lines

if TYPE_CHECKING:  # they take PyTorch seconds to import; --help and completion must not wait for it
    from esper.assembly.importing import Import
    from esper.blueprint import Blueprint
    from esper.messages import Slot

__all__ = ["app"]  # of kernels.py, with the commands of this file


@app.command("export", epilog="Example: esper kernels export kernel_13c6 good.safetensors")
def export_kernel(
    kernel_id: KernelId,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to; a file there is replaced.")],
    overrides: Overrides = None,
) -> None:
    """Write a kernel's blueprint and weights to a file, for esper kernels import anywhere.

    The file holds no program, and nothing of this library's keys.
    """
    from esper.assembly.importing import export_kernel as export

    with library(overrides or ()) as opened:
        kernel = resolve(opened, kernel_id)
        size = export(opened, kernel.kernel_id, file)
    print_lines(f"wrote {file}: {kernel.kernel_id} ({kernel.name} for {kernel.slot}), {size:,} bytes")


@app.command(
    "import",
    epilog="Example: esper kernels import theirs/*.safetensors\n\n"
    "Example: esper kernels import net.pt --blueprint mine.yaml --shape features:16:16",
)
def import_kernels(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            show_default=False,
            metavar="FILES|KEY=VALUE",
            help="Files of esper kernels export, TorchScript programs; overrides of the configuration.",
            autocompletion=complete_paths_or_overrides,
        ),
    ] = None,
    blueprint: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The blueprint of TorchScript programs among the files."),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="LAYOUT:IN:OUT[:STRIDE]", help="With --blueprint: its shape, as channels:16:16."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compile kernels anew from files from elsewhere, validate and store them.

    Of a TorchScript program only the weights are taken, in a process that can do no harm, once it computes
    what the blueprint does. One refused file stops no other; it makes the exit code 6.
    """
    with importing_pytorch():
        from esper.assembly.importing import import_files
        from esper_cli.config import compose

    names, overrides = split_overrides(files)
    if not names:
        raise ConfigError("no file to import was named", hint="esper kernels export ID FILE makes one")
    of = _described(blueprint, shape)
    told: list[Import] = []
    paths = [Path(name) for name in names]
    with library(overrides) as opened, _progress(len(paths)) as starting:
        for done in import_files(compose(overrides), opened, paths, of, starting=starting):
            told.append(done)
            if not as_json:
                _tell(done)
    refused = [done for done in told if done.error is not None]
    if as_json:
        print_json([_as_json(done) for done in told])
    else:
        new = sum(done.new for done in told)
        there = len(told) - new - len(refused)
        not_taken = counted(len(refused), "file")
        print_lines(f"{counted(new, 'kernel')} imported, {there} already there, {not_taken} refused")
    if refused:
        raise typer.Exit(RefusedProgram.exit_code)


def _described(blueprint: Path | None, shape: str | None) -> tuple[Blueprint, Slot] | None:
    from esper.blueprint import load_blueprints

    if blueprint is None and shape is None:
        return None
    if blueprint is None or shape is None:
        raise ConfigError(
            "--blueprint and --shape go together: they say what a program computes, and on what",
            hint="for example: --blueprint mine.yaml --shape channels:16:32:2",
        )
    found = load_blueprints(blueprint)
    if len(found) != 1:
        raise ConfigError(f"--blueprint {blueprint} has {len(found)} blueprints, and one is needed")
    return found[0], parse_shape(shape)


def _tell(done: Import) -> None:
    if done.error is not None:
        hint = f"; {done.error.hint}" if done.error.hint else ""
        print_lines(f"refused: {done.file}: {done.error.message}{hint}", stderr=True)
    elif done.kernel is not None:
        kernel = done.kernel
        how = "imported" if done.new else "there already:"
        print_lines(f"{how} {kernel.kernel_id} ({kernel.name} for {kernel.slot}), from {done.file}")


def _as_json(done: Import) -> dict[str, Any]:
    return {
        "file": str(done.file),
        "seconds": done.seconds,
        "kernel": done.kernel.to_json() if done.kernel is not None else None,
        "new": done.new,
        "refused": str(done.error) if done.error is not None else None,
    }


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Path], None]]:
    """What to call as each file begins; which one it is stands on stderr, where somebody looks."""
    out = console(stderr=True)
    columns = (TextColumn("importing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    name = TextColumn("{task.description}", markup=False)
    bar = Progress(*columns, name, console=out, transient=True, disable=not out.is_terminal)
    with bar:
        task = bar.add_task("", total=total, completed=-1)
        yield lambda path: bar.update(task, advance=1, description=path.name)
