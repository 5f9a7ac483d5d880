"""Blueprints from files and folders, and those among them that fit a slot."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from esper.blueprint import SUFFIXES, Blueprint, fits, load_blueprints
from esper.errors import BlueprintError
from esper.messages import Slot


class Catalogue(NamedTuple):
    """The blueprints that could be read, by name; and one error for each file that could not."""

    blueprints: list[Blueprint]
    errors: list[BlueprintError]


def load_catalogue(paths: Iterable[Path | str]) -> Catalogue:
    """Every blueprint in ``paths``: files, and folders with all below them.

    One bad file does not stop the others. The same blueprint met twice counts once; another one under a name
    that is taken is an error.
    """
    by_name: dict[str, Blueprint] = {}
    errors: list[BlueprintError] = []
    for path in paths:
        try:
            files = list(blueprint_files(Path(path)))
        except BlueprintError as error:
            errors.append(error)
            continue
        for file in files:
            try:
                for blueprint in load_blueprints(file):
                    _add(by_name, blueprint)
            except BlueprintError as error:
                errors.append(error)
    return Catalogue([by_name[name] for name in sorted(by_name)], errors)


def fitting(blueprints: Iterable[Blueprint], slot: Slot) -> list[Blueprint]:
    """Those of ``blueprints`` that can be built for ``slot``, in their order."""
    return [blueprint for blueprint in blueprints if fits(blueprint, slot)]


def _add(by_name: dict[str, Blueprint], blueprint: Blueprint) -> None:
    known = by_name.setdefault(blueprint.name, blueprint)
    if known != blueprint:
        raise BlueprintError(
            f"{blueprint.where()}: another blueprint has that name: {known.where()}",
            hint="rename one of them",
        )


def blueprint_files(path: Path) -> Iterator[Path]:
    """``path`` itself, or the blueprint files below it in alphabetical order."""
    if not path.is_dir():
        yield path
        return
    found = False
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            if name.endswith(SUFFIXES):
                found = True
                yield Path(folder, name)
    if not found:
        raise BlueprintError(
            f"{path}: no blueprints in this folder", hint=f"they end in {', '.join(SUFFIXES)}"
        )
