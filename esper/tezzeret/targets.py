"""The program formats that kernels may be of, by the word in their record."""

from __future__ import annotations

from esper.errors import CompilationError
from esper.tezzeret.eager import EagerTarget
from esper.tezzeret.export import ExportTarget
from esper.tezzeret.target import Target
from esper.tezzeret.torchscript import TorchScriptTarget

TARGETS: dict[str, Target] = {
    target.name: target for target in (TorchScriptTarget(), ExportTarget(), EagerTarget())
}


def target_named(name: str, own: Target | None = None) -> Target:
    """The target called ``name``: ``own``, which a configuration gave, else one of those that ship.

    Raises ``CompilationError`` where there is none.
    """
    if own is not None and own.name == name:
        return own
    if name not in TARGETS:
        raise CompilationError(
            f"there is no target {name!r}", stage="compile", hint=f"one of: {', '.join(TARGETS)}"
        )
    return TARGETS[name]


def ships(target: Target) -> bool:
    """Whether ``target`` is one of those that ship, which every machine with Esper has."""
    return type(target) is type(TARGETS.get(target.name))
