"""The commands by name: the module of one is imported, and its type hints are read, when it is asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

_PLACES = {
    "train": "train.train",
    "prove": "prove.prove",
    "compile": "compile.compile_blueprints",
    "watch": "watch.watch",
    "worker": "worker.worker",
    "doctor": "doctor.doctor",
    "drill": "drill.drill",
    "serve-metrics": "serve.serve_metrics",
    "train-process": "processes.train_process",
    "blueprints": "blueprints.app",
    "kernels": "kernels_files.app",
    "keys": "keys.app",
    "audit": "audit.app",
    "token": "token.app",
    "runs": "runs_rm.app",
    "checkpoints": "checkpoints.app",
    "reports": "reports.app",
    "karn": "karn.app",
}
"""The module of a command, and what is in it: a function, with its EPILOG beside it, or a group."""

_HIDDEN = ("train-process",)


class Commands(TyperGroup):
    """The root group; to build all commands at once would be most of what a short command takes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands: Any = _OnDemand()

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """The names alone."""
        return list(self.commands)


class _OnDemand(Mapping[str, Any]):
    def __getitem__(self, name: str) -> Any:
        return _built(name)

    def __iter__(self) -> Iterator[str]:
        return iter(_PLACES)

    def __len__(self) -> int:
        return len(_PLACES)


@cache
def _built(name: str) -> Any:
    module_name, attribute = _PLACES[name].split(".")
    module = import_module(f"esper_cli.{module_name}")
    part = getattr(module, attribute)
    holder = typer.Typer()
    if isinstance(part, typer.Typer):
        holder.add_typer(part, name=name)
    else:
        epilog = getattr(module, "EPILOG", None)
        holder.command(name, epilog=epilog, hidden=name in _HIDDEN)(part)
    built: Any = get_group(holder).commands[name]
    if "ls" in getattr(built, "commands", {}):  # what a group has comes first
        built.commands = {"ls": built.commands.pop("ls"), **built.commands}
    _unwrap(built)
    return built


def _unwrap(command: Any) -> None:
    """Join the lines of each paragraph: Typer would break the later ones where the source does."""
    command.help = re.sub(r"(?<!\n)\n(?!\n)", " ", command.help or "")
    for inner in getattr(command, "commands", {}).values():
        _unwrap(inner)
