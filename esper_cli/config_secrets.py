"""No secret in a configuration: it is printed, kept in each run's folder, and stands in the process list."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from omegaconf import DictConfig, OmegaConf

from esper.errors import ConfigError
from esper.security.redaction import SECRET_NAME, holds_secret, redact

_ELSEWHERE = ("env:", "file:", "${oc.env:")


def refuse_in_overrides(overrides: Sequence[str]) -> None:
    """Raise ConfigError, which shows no value, where an override is or holds a secret."""
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        _refuse(key, value.strip("'\""))


def refuse_in(cfg: DictConfig) -> None:
    """The same for a composed configuration, whichever file a value is from; nothing is interpolated."""
    for key, value in _texts(OmegaConf.to_container(cfg, resolve=False), ""):
        _refuse(key, value)


@contextmanager
def redacted_output() -> Iterator[None]:
    """What Hydra prints of a configuration, before anybody can look at it, without its secrets."""
    held = io.StringIO()
    try:
        with redirect_stdout(held):
            yield
    finally:
        sys.stdout.write(redact(held.getvalue()))


def _refuse(key: str, value: str) -> None:
    named = SECRET_NAME.search(key) is not None and value not in ("", "null", "???", "true", "false")
    if holds_secret(value) or (named and not value.startswith(_ELSEWHERE)):
        raise ConfigError(
            f"{key} holds a password, a token or a key, which no configuration may",
            hint="keep it in an environment variable and write env:NAME, or in a file and write file:PATH",
        )


def _texts(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """The path and text of every value that is text."""
    if isinstance(node, dict):
        for name, child in node.items():
            yield from _texts(child, f"{path}.{name}" if path else str(name))
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from _texts(child, f"{path}[{index}]")
    elif isinstance(node, str):
        yield path, node
