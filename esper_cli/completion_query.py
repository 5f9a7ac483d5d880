"""What Hydra says that an override may become.

Hydra's own completion belongs to a command that is all overrides; ours hangs below ``esper train`` and
Typer installs it for each shell. So only Hydra's query is used, through its plugin interface.
"""

from __future__ import annotations

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


def candidates(words: list[str], word: str) -> list[str]:
    """What ``word`` may become after the overrides ``words``; what leads on comes with what may follow it."""
    try:
        with config.loader() as loader:
            plugin = OverrideCompletion(loader)
            matches = plugin.candidates(words, word)
            if len(matches) <= 2 and matches and matches[0].endswith(("=", ".", "/")):
                matches = [*matches, *plugin.candidates(words, matches[0])]
    except (EsperError, HydraException, OmegaConfBaseException, YAMLError, OSError):
        return []  # a command line that does not compose yet has no completions; running it will say why
    return matches


def _internal(word: str) -> bool:
    return word.lstrip("+~").startswith("hydra")
