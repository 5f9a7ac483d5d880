"""From a node of the configuration to the object that it describes."""

from __future__ import annotations

from typing import Any, cast

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from esper.errors import ConfigError, EsperError


def configured(cfg: DictConfig, key: str, **arguments: Any) -> Any:
    """The object that the node ``key`` describes, given ``arguments`` besides.

    Raises:
        ConfigError: a ``_target_`` that is not allowed, or an object that cannot be made of its settings.
        EsperError: whatever of it the constructor raises.
    """
    node = OmegaConf.select(cfg, key)
    try:
        check_targets(cfg, key)
        return instantiate(node, **arguments, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, EsperError):
            raise cause from error
        first, *rest = str(cause or error).splitlines() or [type(cause).__name__]
        reason = f"{first} {rest[0]}" if rest and first.endswith(":") else first
        raise ConfigError(f"{key}: {reason}", hint=_hint(node, reason)) from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from error


def _hint(node: Any, reason: str) -> str:
    """A module of the user's own that Python does not find is what stops most who bring one."""
    own = str(node.get("_target_")).partition(".")[0]
    if f"No module named '{own}'" in reason:
        return f"if {own} is a file or folder of this directory, begin the command with PYTHONPATH=."
    return "look at it with: esper train --cfg job"


def settings(cfg: DictConfig, key: str) -> dict[str, Any]:
    """The node ``key`` as keyword arguments."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.select(cfg, key), resolve=True))


def check_targets(cfg: DictConfig, key: str) -> None:
    """Refuse to call what the user has not allowed: a configuration is data, ``_target_`` makes it code."""
    _check(OmegaConf.to_container(OmegaConf.select(cfg, key), resolve=True), tuple(cfg.allow_targets), key)


def _check(node: Any, allowed: tuple[str, ...], key: str) -> None:
    if isinstance(node, dict):
        target = node.get("_target_")
        if target is not None and not str(target).startswith(allowed):
            more = ",".join([*allowed, f"{str(target).partition('.')[0]}."])
            raise ConfigError(
                f"{key}._target_ is {target}, which is not among allow_targets",
                hint=f"if you trust it, add 'allow_targets=[{more}]'",
            )
        for name, child in node.items():
            _check(child, allowed, f"{key}.{name}")
    elif isinstance(node, list):
        for index, child in enumerate(node):
            _check(child, allowed, f"{key}[{index}]")


def quoted(text: str) -> str:
    """``text`` as a value of Hydra's override grammar."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
