"""The keys of a configuration. Importing this does not import PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from omegaconf import DictConfig, OmegaConf

from esper.assembly.configured import configured
from esper.security import Envelope, KeySource, StoredKeys

_BEFORE_KEYS: Final = {
    "_target_": "esper.security.FileKeys",
    "path": "${oc.env:ESPER_HOME,.esper}/keys.json",
}
"""The default, for the configuration of a run that was begun before there were keys, and is resumed."""


def build_key_source(cfg: DictConfig) -> KeySource:
    """The place of keys that ``cfg.security`` describes; raises ConfigError."""
    if "security" not in cfg:
        cfg = OmegaConf.create({"security": _BEFORE_KEYS, "allow_targets": cfg.allow_targets})
    source: KeySource = configured(cfg, "security")
    return source


def key_made_notice(place: str) -> str:
    """What to tell the user when a key was made in ``place``."""
    return f"made a key in {place}: keep a copy of it, no kernel and no checkpoint can be read without it"


def build_envelope(cfg: DictConfig, on_made: Callable[[str], None] = lambda _: None) -> Envelope:
    """What seals and opens with the keys of ``cfg.security``; see :func:`build_keys`."""
    return Envelope(build_keys(cfg, on_made))


def build_keys(cfg: DictConfig, on_made: Callable[[str], None] = lambda _: None) -> StoredKeys:
    """The keys of ``cfg.security``, which are read when the first is needed.

    ``on_made`` is told the place of a key that was made, for whoever is to keep a copy of it.
    """
    return StoredKeys(build_key_source(cfg), on_made)
