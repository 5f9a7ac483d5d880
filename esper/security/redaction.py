"""Secrets out of text: known ones by value, others by their shape.

Applied where text leaves: to each line of a log with its traceback, to errors that are printed, to reasons
that are stored. What this process knows to be a secret is registered, as is what its environment says is one
(:func:`register_environment`).
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote, quote_plus, unquote, urlsplit

MASK: Final = "[redacted]"

LEAST: Final = 6
"""Characters that a value has before it is replaced by itself: shorter ones stand in every text."""

_NAMES: Final = (
    r"pass(?:word|wd|phrase)?|pwd|secret|token|api[_-]?key|private[_-]?key|access[_-]?key|credentials?"
)

SECRET_NAME: Final = re.compile(rf"(?:^|[._-])(?:{_NAMES})$", re.IGNORECASE)
"""A key or variable of such a name holds a secret."""

_SECRET_VARIABLE: Final = re.compile(
    rf"(?:^|_)(?:{_NAMES}|PGPASSWORD|ESPER_KEYS)(?:_|$)|PASSWORD$|^ESPER_KEYS$", re.IGNORECASE
)

# None of these may take longer than a text is long: others write some of what is logged.
_BEHIND_SCHEME: Final = re.compile(r"(?<=://)[^\s'\"<>]+")
_USERINFO: Final = re.compile(r"(?:^|(?<=://))[^/?#@]*?:")
_PASSWORD: Final = re.compile(r"(?<=://)[^\s/?#'\"<>]*:[^\s/?#'\"<>]+@")
_JWT: Final = re.compile(
    r"(?<![A-Za-z0-9_-])(?=[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{2})([A-Za-z0-9_-]*?)"
    r"\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{2,}(?:\.[A-Za-z0-9_-]*)?"
)
_PEM: Final = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
_BEARER: Final = re.compile(r"(?i)\b(bearer|basic)\s+[^\s\"',;]{6,}")
_VALUE: Final = r"""(?:"[^"\n]*"|'[^'\n]*'|[^\s,;&"'()\[\]{}]+)"""
# After a colon and a blank only where it is data, not a sentence: behind a quote, or at the start of a line.
_NAMED: Final = re.compile(
    rf"(?im)((?:\b|_)(?:{_NAMES})(?:\s*=\s*|:(?=\S)|[\"']\s*:\s*)|^[^\S\n]*[\w.]*(?:{_NAMES}):\s+){_VALUE}"
)
_HINTS: Final = re.compile(rf"(?i)://|eyJ|PRIVATE KEY|bearer|basic|{_NAMES}")


class Redactor:
    """Replaces what it was told, and what looks like a secret, by ``[redacted]``. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: frozenset[str] = frozenset()
        self._known: re.Pattern[str] | None = None

    def register(self, *values: str) -> None:
        """Never show any of ``values`` again, as it is, quoted for a URL or escaped in JSON."""
        new = {form for value in values if len(value) >= LEAST for form in _forms(value)}
        with self._lock:
            if new <= self._values:
                return
            self._values |= new
            longest_first = sorted(self._values, key=len, reverse=True)
            self._known = re.compile("|".join(map(re.escape, longest_first)))

    @property
    def registered(self) -> int:
        """How many values were registered, in any form; it only grows."""
        return len(self._values)

    def known(self, text: str) -> str:
        """``text`` without what was registered; shapes are not looked for."""
        return text if self._known is None else self._known.sub(MASK, text)

    def __call__(self, text: str) -> str:
        """``text`` without secrets."""
        text = self.known(text)
        if _HINTS.search(text) is None:
            return text
        text = _PEM.sub(MASK, text)
        if "eyJ" in text:
            text = _JWT.sub(rf"\1{MASK}", text)
        text = _BEHIND_SCHEME.sub(_without_userinfo, text)
        text = _BEARER.sub(rf"\1 {MASK}", text)
        return _NAMED.sub(_masked_value, text)


redact: Final = Redactor()
"""The redactor of this process."""


def holds_secret(text: str) -> bool:
    """Whether ``text``, as a value by itself, is or holds a secret by its shape."""
    return any(pattern.search(text) for pattern in (_PASSWORD, _JWT, _PEM))


def redacted(data: Any) -> Any:
    """Plain data with its texts redacted; below a name of a secret nothing stands."""
    if isinstance(data, str):
        return redact(data)
    if isinstance(data, Mapping):
        return {
            key: MASK
            if value and SECRET_NAME.search(str(key)) and not isinstance(value, bool)
            else redacted(value)
            for key, value in data.items()
        }
    if isinstance(data, (list, tuple)):
        return [redacted(item) for item in data]
    return data


def register_environment(environment: Mapping[str, str]) -> None:
    """Register what the environment's names or the shape of its values say is secret."""
    redact.register(*secrets_of_environment(environment))


def secrets_of_environment(environment: Mapping[str, str]) -> Iterable[str]:
    """The secrets among the values of ``environment``: whole values by their names, passwords in URLs."""
    for name, value in environment.items():
        if name != "PWD" and _SECRET_VARIABLE.search(name):  # a shell's PWD is the folder that one is in
            yield value
            yield from (part.strip() for part in value.split(","))
        yield from secrets_of_url(value)


def secrets_of_url(url: str) -> Iterable[str]:
    """The password in a URL, if it is one and has one."""
    if "://" not in url:
        return
    try:
        password = urlsplit(url).password
    except ValueError:
        return
    if password:
        yield password
        yield unquote(password)


def _without_userinfo(match: re.Match[str]) -> str:
    """What stands behind the scheme of a URL, to the next blank: a password may have any character in it."""
    text = match.group()
    end = text.rfind("@")
    begin = _USERINFO.search(text, 0, end) if end > 0 else None
    return text if begin is None else f"{text[: begin.start()]}{MASK}{text[end:]}"


def _masked_value(match: re.Match[str]) -> str:
    quoted = match.group()[-1:] if match.group()[-1:] in "\"'" else ""
    return f"{match[1]}{quoted}{MASK}{quoted}"


def _forms(value: str) -> Iterable[str]:
    return {value, quote(value, safe=""), quote_plus(value), json.dumps(value)[1:-1], repr(value)[1:-1]}
