"""Documents of older versions of the language, brought to today's before they are validated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

VERSION = 1
"""The version that is written, and that validation reads."""

Migration = Callable[[dict[str, Any]], dict[str, Any]]
MIGRATIONS: dict[int, Migration] = {}
"""For each older version, what makes a document of it one of the next.

A migration gets plain data that nothing has checked yet, may change it, and returns it. What it does not
understand it leaves for validation to name.
"""


class MigrationError(ValueError):
    """A document that its migration could not read; ``hint`` is the next step."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def migrate(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """``data`` as a document of today; itself where it is one already. Raises ``MigrationError``."""
    version = data.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version == VERSION:
        return data
    if version > VERSION:
        raise MigrationError(
            f"version {version} is newer than {VERSION}, the newest that is read here",
            f"update Esper, or write version: {VERSION}",
        )
    while version != VERSION:
        if version not in MIGRATIONS:
            raise MigrationError(f"version {version} is not read here", f"write version: {VERSION}")
        try:
            data = {**MIGRATIONS[version](_copy(data)), "version": version + 1}
        except (LookupError, TypeError, ValueError, AttributeError):
            raise MigrationError(
                f"this is no document of version {version}", f"write version: {VERSION}"
            ) from None
        version += 1
    return data


def _copy(value: Any) -> Any:
    """Plain data that shares no dict or list with ``value``; depth is bounded where files are read."""
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value
