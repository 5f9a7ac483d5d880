"""Hydra plugins that make ``+experiment=NAME`` read ``experiments/NAME.yaml``.

Hydra looks for a group's files in a folder of the group's name below ``conf/``. Experiments lie in a
top-level folder of their own, and a user has more in ``./experiments``; a config source with its own scheme
maps the group onto such a folder, so that composition, sweeps, ``--info`` and completion treat it like any
other group. ``./conf`` of the working directory may add options to the shipped groups.
"""

from __future__ import annotations

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from esper_cli.folders import shipped

GROUP = "experiment"


class ExperimentSource(ConfigSource):
    """The files below one folder, as the config group ``experiment`` and its sub-groups."""

    @staticmethod
    def scheme() -> str:
        """The scheme of such a folder in Hydra's search path."""
        return "experiments"

    def _locate(self, config_path: str) -> Path | None:
        group, _, rest = config_path.partition("/")
        return Path(self.path, rest) if group == GROUP else None

    def load_config(self, config_path: str) -> ConfigResult:
        """Read one experiment, its ``# @package`` header included."""
        located = self._locate(self._normalize_file_name(config_path))
        if located is None or not located.is_file():
            raise ConfigLoadError(f"Config not found : {config_path}")
        return ConfigResult(
            provider=self.provider,
            path=f"{self.scheme()}://{self.path}",
            config=OmegaConf.load(located),
            header=self._get_header_dict(located.read_text(encoding="utf-8")[:512]),
        )

    def available(self) -> bool:
        """Whether the folder exists."""
        return Path(self.path).is_dir()

    def is_group(self, config_path: str) -> bool:
        """Whether ``config_path`` is the group itself or a folder below it."""
        located = self._locate(config_path)
        return config_path == "" or (located is not None and located.is_dir())

    def is_config(self, config_path: str) -> bool:
        """Whether ``config_path`` is an experiment of this folder."""
        located = self._locate(self._normalize_file_name(config_path))
        return located is not None and located.is_file()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """The names below ``config_path``, sorted and unique."""
        if config_path == "":
            return [GROUP] if results_filter in (None, ObjectType.GROUP) else []
        located = self._locate(config_path)
        names: list[str] = []
        for entry in located.iterdir() if located is not None else ():
            # A study's folder holds more than configs, and Hydra's completion lists files of any kind.
            holds = any(entry.rglob("*.yaml")) if entry.is_dir() else entry.suffix == ".yaml"
            if holds and not entry.name.startswith((".", "_")):
                self._list_add_result(names, f"{config_path}/{entry.name}", entry.name, results_filter)
        return sorted(set(names))


class EsperSearchPath(SearchPathPlugin):
    """The user's experiments first, then those that ship; ``./conf`` after ``conf/``.

    A user's experiment wins over a shipped one of the same name: naming a file is asking for it. A file in
    ``./conf`` never replaces a shipped one: many projects have a folder of that name for other reasons.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the folders that exist."""
        conf, experiments = shipped("conf"), shipped("experiments")
        own_experiments, own_conf = Path.cwd() / "experiments", Path.cwd() / "conf"
        if own_experiments.is_dir() and own_experiments != experiments:
            search_path.append("your experiments", f"experiments://{own_experiments}")
        if experiments.is_dir():
            search_path.append("esper experiments", f"experiments://{experiments}")
        if own_conf.is_dir() and own_conf != conf:
            search_path.append("your conf", f"file://{own_conf}")


def register() -> None:
    """Make both plugins, and ``${shipped:FOLDER}``, known to Hydra; safe to call again."""
    plugins = Plugins.instance()
    plugins.register(ExperimentSource)
    plugins.register(EsperSearchPath)
    OmegaConf.register_new_resolver("shipped", lambda name: str(shipped(name)), replace=True)
