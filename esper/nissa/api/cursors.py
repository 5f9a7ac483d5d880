"""Cursors: where a page ended, as a word that means nothing to whoever sends it back."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

MAX_LENGTH = 500


class BadCursor(ValueError):
    """What was sent as a cursor is none of this list."""


def write_cursor(*place: str | int | float) -> str:
    """The cursor of ``place``, the key of the last item of a page."""
    return base64.urlsafe_b64encode(json.dumps(place, separators=(",", ":")).encode()).decode().rstrip("=")


def read_cursor(text: str, *kinds: type) -> tuple[Any, ...]:
    """The place that ``text`` was written of, one value of each of ``kinds``; raises BadCursor."""
    try:
        if len(text) > MAX_LENGTH:
            raise ValueError("too long")
        place = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
        if not isinstance(place, list) or [type(value) for value in place] != list(kinds):
            raise ValueError("of something else")
    except (binascii.Error, ValueError, RecursionError) as error:
        raise BadCursor("this cursor is of another list") from error
    return tuple(place)
