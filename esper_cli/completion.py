"""Completion of paths, and of overrides, asked of Hydra: groups, their options, keys and experiment names."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path

from esper.errors import EsperError


def complete_overrides(incomplete: str) -> list[str]:
    """Typer's hook for arguments of the form ``key=value``.

    Bash breaks words at ``=``, replaces only the last piece and appends a space to a single match. So the
    pieces are joined again before Hydra is asked, the answers are cut to the last piece, and a match that is
    not the end of an override is offered together with what may follow it.
    """
    from esper_cli.completion_query import candidates  # Hydra; the others need not wait for it

    words, word = _words(incomplete)
    matches = candidates(words, word)
    cut = len(word) - len(incomplete)
    return [match[cut:] for match in dict.fromkeys(matches) if match.startswith(word)]


def complete_paths(incomplete: str, suffixes: Collection[str] = ()) -> list[str]:
    """Folders and files, of files those with one of ``suffixes`` alone where any are given."""
    if "=" in incomplete:
        return []
    folder, slash, start = incomplete.rpartition("/")
    found = sorted(Path(folder or slash or ".").glob(f"{start}*"))
    fitting = [path for path in found if path.is_dir() or not suffixes or path.suffix in suffixes]
    return [f"{path}/" if path.is_dir() else str(path) for path in fitting]


def complete_paths_or_overrides(incomplete: str) -> list[str]:
    """Typer's hook for arguments that are paths or of the form ``key=value``."""
    return [*complete_paths(incomplete), *complete_overrides(incomplete)]


def complete_names(list_names: Callable[[], list[str]]) -> Callable[[str], list[str]]:
    """Typer's hook for an argument that is one of ``list_names()``."""

    def complete(incomplete: str) -> list[str]:
        try:
            return [name for name in list_names() if name.startswith(incomplete)]
        except (EsperError, OSError):
            return []

    return complete


def _words(incomplete: str) -> tuple[list[str], str]:
    """The overrides before the cursor, and the one that it is in."""
    if not os.environ.get("_ESPER_COMPLETE", "").endswith("bash"):
        typed = os.environ.get("_TYPER_COMPLETE_ARGS", "").split()[2:]
        before = typed[:-1] if incomplete else typed
        return [word for word in before if _is_override(word)], incomplete
    pieces = os.environ["COMP_WORDS"].split("\n")[: int(os.environ["COMP_CWORD"]) + 1]
    joined: list[str] = []
    for piece in pieces:
        if joined and (piece == "=" or joined[-1].endswith("=")):
            joined[-1] += piece
        else:
            joined.append(piece)
    return [word for word in joined[2:-1] if _is_override(word)], joined[-1]


def _is_override(word: str) -> bool:
    return "=" in word or word.startswith("~")
