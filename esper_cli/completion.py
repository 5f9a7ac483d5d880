"""Completion of paths, and of overrides, asked of Hydra: groups, their options, keys and experiment names.

Hydra's own completion belongs to a command that is all overrides; ours hangs below ``esper train`` and
Typer installs it for each shell. So only Hydra's query is used, through its plugin interface.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path

from hydra.errors import HydraException
from hydra.plugins.completion_plugin import CompletionPlugin
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from esper.errors import EsperError
from esper_cli import config
from esper_cli.config_source import GROUP

ADD_EXPERIMENT = f"+{GROUP}="


class OverrideCompletion(CompletionPlugin):
    """Hydra's query without a shell: installing is Typer's part."""

    def candidates(self, words: list[str], incomplete: str) -> list[str]:
        """The overrides that ``incomplete`` may become, after the overrides ``words``."""
        matches = []
        for match in self._query(config.NAME, " ".join([*words, incomplete])):
            # A group that holds both options and groups comes bare; either may follow.
            bare = "=" not in match and not match.endswith((".", "/"))
            matches += [f"{match}=", f"{match}/"] if bare else [match]
        # hydra.* is for sweeps and launchers; offered only to who starts to type it.
        offered = [match for match in matches if not _internal(match) or _internal(incomplete)]
        # The key of that name only records the choice; what chooses begins with +.
        return [ADD_EXPERIMENT if match == f"{GROUP}=" else match for match in offered]

    def install(self) -> None:
        """Not here: ``esper --install-completion``."""
        raise NotImplementedError

    def uninstall(self) -> None:
        """Not here: Typer's script is a file of its own."""
        raise NotImplementedError

    @staticmethod
    def provides() -> str:
        """A name that no shell has."""
        return "esper"

    def query(self, config_name: str | None) -> None:
        """Not here: Typer prints."""
        raise NotImplementedError

    @staticmethod
    def help(command: str) -> str:
        """How to install."""
        return f"esper --{command}-completion"


def complete_overrides(incomplete: str) -> list[str]:
    """Typer's hook for arguments of the form ``key=value``.

    Bash breaks words at ``=``, replaces only the last piece and appends a space to a single match. So the
    pieces are joined again before Hydra is asked, the answers are cut to the last piece, and a match that is
    not the end of an override is offered together with what may follow it.
    """
    words, word = _words(incomplete)
    try:
        with config.loader() as loader:
            plugin = OverrideCompletion(loader)
            matches = plugin.candidates(words, word)
            if len(matches) <= 2 and matches and matches[0].endswith(("=", ".", "/")):
                matches = [*matches, *plugin.candidates(words, matches[0])]
    except (EsperError, HydraException, OmegaConfBaseException, YAMLError, OSError):
        return []  # a command line that does not compose yet has no completions; running it will say why
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


def _internal(word: str) -> bool:
    return word.lstrip("+~").startswith("hydra")
