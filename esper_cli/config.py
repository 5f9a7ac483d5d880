"""Composing the configuration: ``conf/``, ``experiments/`` and what the user overrides.

``train`` goes through ``hydra.main`` for what that brings: sweeps, ``--cfg`` and ``--info``. One run, and the
other commands, compose once and directly.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from esper.errors import ConfigError, RunError, StorageError
from esper.security.logs import choose
from esper_cli import config_source
from esper_cli.config_errors import check, explain, keys
from esper_cli.config_secrets import redacted_output, refuse_in, refuse_in_overrides
from esper_cli.folders import shipped

NAME = "config"
VERSION_BASE = "1.3"
_COMPOSERS = ("hydra.", "omegaconf.")


@contextmanager
def loader() -> Iterator[ConfigLoader]:
    """Hydra's config loader over our folders: the one of a running ``hydra.main``, else a fresh one."""
    config_source.register()
    if GlobalHydra.instance().is_initialized():
        yield GlobalHydra.instance().config_loader()
        return
    with hydra.initialize_config_dir(str(shipped("conf")), version_base=VERSION_BASE):
        yield GlobalHydra.instance().config_loader()


def compose(overrides: Sequence[str]) -> DictConfig:
    """The configuration with ``overrides`` applied, without Hydra's own part.

    Raises:
        ConfigError: an override or a file that cannot be composed, an unknown key, a value of a wrong type.
    """
    refuse_in_overrides(overrides)
    with _explained(overrides), loader() as config_loader:
        cfg = config_loader.load_configuration(NAME, list(overrides), RunMode.RUN)
        return _checked(cfg, cfg.hydra.runtime.choices, overrides, config_loader)


def compose_from(saved: Path, overrides: Sequence[str]) -> DictConfig:
    """The configuration saved in the file ``saved``, with ``overrides`` applied on top.

    Raises:
        ConfigError: an override that the saved configuration does not know, or a damaged file.
        RunError: there is no such file.
    """
    if not saved.is_file():
        raise RunError(f"the run has no {saved.name} in {saved.parent}", hint="choose another run")
    config_source.register()
    refuse_in_overrides(overrides)
    with (
        _explained(overrides),
        hydra.initialize_config_dir(str(saved.parent.resolve()), version_base=VERSION_BASE),
    ):
        config_loader = GlobalHydra.instance().config_loader()
        base = config_loader.load_configuration(saved.stem, [], RunMode.RUN)
        cfg = config_loader.load_configuration(saved.stem, list(overrides), RunMode.RUN)
        check(_without_hydra(cfg), _without_hydra(base), _added(overrides))
        _heed(cfg)
        return cfg


def run(task: Callable[[DictConfig], None], flags: Sequence[str], overrides: Sequence[str]) -> None:
    """Run ``task`` as Hydra does: once, or once for each job of a sweep.

    Args:
        task: receives the configuration of its job; picklable, for launchers that use processes.
        flags: Hydra's own flags, such as ``--multirun``.
        overrides: Hydra's override grammar.

    Raises:
        ConfigError: an override or a file that cannot be composed; nothing was run.
        StorageError: the folder of the runs, or of the sweep, cannot be made.
    """
    config_source.register()
    refuse_in_overrides(overrides)
    with _explained(overrides), _raising(), _shown(flags):
        try:
            if flags or not _ran_one(task, overrides):
                _run_main(task, flags, overrides)
        except HydraException:  # some of these are an OSError, too
            raise
        except OSError as error:  # a job keeps its own; Hydra makes the folders that runs and sweeps go to
            raise StorageError.from_os(error, error.filename or "the runs", "cannot write to") from error


def _ran_one(task: Callable[[DictConfig], None], overrides: Sequence[str]) -> bool:
    """Run ``task`` once as ``hydra.main`` would, which composes once more only to see whether it is a sweep.

    False, and nothing was run, where it is one, or where nothing can be composed.
    """
    with hydra.initialize_config_dir(str(shipped("conf")), version_base=VERSION_BASE, job_name="train"):
        engine = GlobalHydra.instance().hydra
        assert engine is not None
        try:
            cfg = engine.config_loader.load_configuration(NAME, list(overrides), RunMode.RUN)
        except (HydraException, OmegaConfBaseException, YAMLError, ValueError):
            return False
        if cfg.hydra.mode == RunMode.MULTIRUN:
            return False
        # Hydra's own run would compose once more what was composed to see that it is no sweep.
        engine.compose_config = lambda *_, **__: cfg  # type: ignore[method-assign]
        engine.run(NAME, task, list(overrides))
        return True


def _run_main(task: Callable[[DictConfig], None], flags: Sequence[str], overrides: Sequence[str]) -> None:
    entry = hydra.main(config_path=str(shipped("conf")), config_name=NAME, version_base=VERSION_BASE)(task)
    with _argv(["esper train", *flags, *overrides]):
        try:
            entry()
        except SystemExit as refusal:
            if refusal.code:  # Hydra has said why, in a line of its own
                raise SystemExit(ConfigError.exit_code) from refusal
            raise


def job_config(cfg: DictConfig) -> DictConfig:
    """``cfg`` of a job that Hydra started: checked, with the name of its experiment filled in.

    Raises:
        ConfigError: an unknown key, a value of a wrong type, or one that must be given and is not.
    """
    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise ConfigError(f"{missing[0]} must be given", hint=f"add {missing[0]}=VALUE")
    with _explained(overrides), loader() as config_loader:
        return _checked(cfg, hydra_config.runtime.choices, overrides, config_loader)


def experiments() -> list[str]:
    """The names that ``+experiment=`` takes here, the user's own among them."""
    with loader() as config_loader:
        return list(config_loader.get_group_options(config_source.GROUP))


def _checked(
    cfg: DictConfig, choices: Mapping[str, Any], overrides: Sequence[str], config_loader: ConfigLoader
) -> DictConfig:
    defaults = config_loader.compute_defaults_list(NAME, [], RunMode.RUN).overrides.known_choices
    chosen = {
        group: choice
        for group, choice in choices.items()
        if group != config_source.GROUP and not group.startswith("hydra/")
    }
    for group, choice in chosen.items():
        if choice is None and defaults.get(group) is not None:
            raise ConfigError(f"{group} must be given", hint=f"choose one: {group}=OPTION")
    # All of them or none: what a chosen group chooses below itself may not be what was chosen there.
    differs = any(group not in defaults or choice != defaults[group] for group, choice in chosen.items())
    selected = [
        f"{'' if group in defaults else '+'}{group}={'null' if choice is None else choice}"
        for group, choice in chosen.items()
        if differs
    ]
    base = config_loader.load_configuration(NAME, selected, RunMode.RUN)
    check(_without_hydra(cfg), _without_hydra(base), _added(overrides), chosen)
    _heed(cfg)
    with open_dict(cfg):
        cfg.experiment = cfg.experiment or choices.get(config_source.GROUP)
    return cfg


def _without_hydra(cfg: DictConfig) -> DictConfig:
    with read_write(cfg), open_dict(cfg):
        cfg.pop("hydra", None)
    return cfg


def _heed(cfg: DictConfig) -> None:
    """What holds for every command: no secret in ``cfg``, and logs as it says."""
    refuse_in(cfg)
    if "log" in cfg:  # not in runs from before there was a choice
        choose(cfg.log.format, cfg.log.level)


def _shown(flags: Sequence[str]) -> AbstractContextManager[None]:
    """Around what prints a configuration: a file of the user's may hold what no configuration may."""
    return redacted_output() if {"--cfg", "--info", "--hydra-help"} & set(flags) else nullcontext()


def _added(overrides: Sequence[str]) -> list[str]:
    """The keys that the user adds with ``+``."""
    return [override.lstrip("+").partition("=")[0] for override in overrides if override.startswith("+")]


@contextmanager
def _explained(overrides: Sequence[str]) -> Iterator[None]:
    """Turn what Hydra, OmegaConf and YAML raise into one ConfigError."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise explain(error, overrides, _known_names(overrides), experiments()) from error
    except ValueError as error:
        if not _raised_by_hydra(error):
            raise
        raise explain(error, overrides, []) from error


def _raised_by_hydra(error: Exception) -> bool:
    """Whether Hydra or OmegaConf objected: some checks raise a bare ValueError, as a job's code may."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and str(frames[-1][0].f_globals.get("__name__", "")).startswith(_COMPOSERS)


def _known_names(overrides: Sequence[str]) -> list[str]:
    """What an override may name: keys, those of the chosen groups if they compose, then groups."""
    choices = [override for override in overrides if "." not in override.partition("=")[0]]
    for chosen in (choices, []):
        try:
            with loader() as config_loader:
                cfg = config_loader.load_configuration(NAME, chosen, RunMode.MULTIRUN)
                return [*keys(cfg), *config_loader.list_groups("")]
        except (HydraException, OmegaConfBaseException, YAMLError):
            continue  # what raised first is what the user is told
    return []


@contextmanager
def _argv(argv: list[str]) -> Iterator[None]:
    """``hydra.main`` reads the process's arguments."""
    before, sys.argv = sys.argv, argv
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _raising() -> Iterator[None]:
    """Make Hydra raise its errors: by default it prints them its own way and exits with code 1."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before
