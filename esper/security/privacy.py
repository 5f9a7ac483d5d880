"""What of a run's events may leave its machine: fields by allow-list, texts without paths and names.

For sinks and servers: send ``leaving(event, fields)`` instead of the fields, nothing where it is None. Paths,
host and user names never leave; who somebody is leaves as ``esper.security.audit.Signer.pseudonym`` alone.
Functions over plain data: floors that may not import this one are given them by assembly.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import fields as fields_of
from dataclasses import is_dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final

from esper.security.redaction import redact, redacted

EVENTS: Final[Mapping[str, frozenset[str]]] = {
    event: frozenset(names.split())
    for event, names in {
        "preparing": "experiment task seed total_epochs",
        "run_started": "run_id experiment task seed resumed_from_epoch resumed_from_step damaged_checkpoints "
        "parameters flops_per_sample total_epochs layers",
        "epoch": "packet seconds samples_per_second training_flops",
        "decision": "epoch decision outcome",
        "seed": "epoch layer seed_idx kernel_id from_state to_state evidence",
        "trial": "report",
        "fault": "epoch layer seed_idx kernel_id kind message",
        "growth": "report",
        "lineage": "record",
        "invention": "record",
        "inventing_ended": "reason",
        "rollback": "cause target epoch from_step to_step kind detail to_epoch seconds seeds "
        "skipped decision",
        "control": "request action epoch step outcome reason",
        "cache": "tiers",
        "compile_queue": "waiting compiling workers oldest",
        "checkpoint": "epoch step path seconds paused",
        "step": "epoch step steps loss",
        "health": "epoch step layer schema version seeds record",
        "metrics": "epoch step values",
        "dropped": "kind count",
        "telemetry": "sinks",
        "message": "text",
        "run_finished": "summary",
        "run_interrupted": "epoch",
        "run_failed": "error",
    }.items()
}
"""Event to the fields of it that may leave; what is not here stays."""

PATH: Final = "[path]"
_ABSOLUTE: Final = re.compile(r"(?<![\w.:/\]])(?:~|[A-Za-z]:)?(?:/[^\s/'\"<>:,;()\[\]]+)+/?|(?<![\w./])~/\S*")
# Of what has no slash at its begin: two folders or more, one behind dots, or a file by its ending. A name has
# 255 characters at most; without that bound a text could take the square of its length.
_RELATIVE: Final = re.compile(
    r"(?<![\w./-])(?:\.{1,2}/(?:[\w.@+=-]+/)*[\w.@+=-]+|(?:[\w.@+=-]{1,255}/){2,}[\w.@+=-]*"
    r"|(?:[\w.@+=-]{1,255}/)+[\w@+=-]+\.[A-Za-z]\w{0,11})"
)
_BELOW: Final = re.compile(rf"{re.escape(PATH)}(?:/[^\s'\"<>,;]+)+")
_URL: Final = re.compile(r"\b[a-z][a-z0-9+.-]{0,30}://[^\s'\"<>]+")
_SHORT: Final = 64
_MOST_KNOWN: Final = 4096
_LEAST_NAME: Final = 3
_COMMON_NAMES: Final = frozenset({"root", "user", "localhost", "test", "esper"})


def leaving(event: str, fields: Mapping[str, Any], text: str | None = None) -> Mapping[str, Any] | None:
    """The part of an event that may leave, as plain data; None where all of it stays.

    With ``text``, which is ``fields`` in JSON, it is ``fields`` itself where all of it may leave as it is.
    """
    allowed = EVENTS.get(event)
    if allowed is None:
        return None
    if text is not None and fields.keys() <= allowed and _is_clean(text):
        return fields
    return {name: _clean(value) for name, value in fields.items() if name in allowed}


def _is_clean(text: str) -> bool:
    """Whether no text in ``text``, which is JSON, would be changed; False where that is not easily told.

    An event is numbers under names that are known, most often: a tenth of the time that ``_clean`` takes.
    """
    if "\\" in text or "NaN" in text or "Infinity" in text:
        return False
    known = _known(redact.registered, len(_places))
    texts = text.split('"')[1::2]  # nothing is escaped, so every second quotation mark ends one
    return known.clean.issuperset(texts) or all(known[each] == each for each in texts)


TEXTS: Final = frozenset({"error", "message", "reason", "detail", "failure", "damaged_checkpoints"})
"""Fields of events that hold what somebody or something said, which may name a place."""

_places: list[str] = []


def register_place(*paths: Path | str) -> None:
    """Folders whose paths never leave, whatever characters they have; others are known by their slashes."""
    for path in paths:
        for text in (str(path), str(Path(path).expanduser().absolute())):
            if os.sep in text.rstrip(os.sep):
                _places.extend(form for form in (text, json.dumps(text)[1:-1]) if form not in _places)
    _places.sort(key=len, reverse=True)  # a folder in another before that


def register_own_places(runs: Path | str) -> None:
    """Where this process works: ``runs``, its folder, the user's and that of Esper."""
    register_place(runs, Path.cwd(), Path.home(), os.environ.get("ESPER_HOME", ""))


def kept(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """``fields`` of an event for the run's own journal: all, but what is said without places and secrets."""
    return _said(fields)


def shown(fields: Mapping[str, Any]) -> dict[str, Any]:
    """``fields`` of an event for who watches on this machine: what is said has its places, and no secrets."""
    return {
        name: redacted(value) if name in TEXTS or name == "text" else value for name, value in fields.items()
    }


def hidden(text: str) -> str:
    """``text``, such as the body of an answer, without registered places and secrets; nothing else goes."""
    for place in _places:
        if place in text:
            text = text.replace(place, PATH)
    return redact.known(text)


def without_places(text: str) -> str:
    """``text`` without secrets, paths, URLs, and the names of this user and host."""
    text = redact(hidden(text))
    if "/" in text:  # as all of these have
        text = _URL.sub("[url]", text)
        text = _RELATIVE.sub(PATH, _ABSOLUTE.sub(PATH, _BELOW.sub(PATH, text)))
    names = _own_names()
    return names.sub("[name]", text) if names else text


def _said(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """``record`` with what was said in it, or in records in it (of each sink), cleaned."""
    return {
        name: _clean(value) if name in TEXTS else _said(value) if isinstance(value, Mapping) else value
        for name, value in record.items()
    }


class _Known(dict[str, str]):
    """Texts to what of them may leave, while no more secrets and places are known; short ones are kept."""

    def __init__(self) -> None:
        self.clean: set[str] = set()
        """Those that leave as they are."""

    def __missing__(self, text: str) -> str:
        cleaned = without_places(text)
        if len(text) <= _SHORT:
            if len(self) >= _MOST_KNOWN:
                self.clear()
                self.clean.clear()
            self[text] = cleaned
            if cleaned == text:
                self.clean.add(text)
        return cleaned


@lru_cache(maxsize=1)
def _known(_secrets: int, _places: int) -> _Known:
    return _Known()


def _clean(value: Any, known: _Known | None = None) -> Any:
    if known is None:
        known = _known(redact.registered, len(_places))
    kind = type(value)  # of most values it is asked first: an event has a hundred, at each epoch
    if kind in _NO_TEXT:
        return value
    if isinstance(value, str):
        return known[value]
    if kind is dict or isinstance(value, Mapping):
        return {
            known[key] if isinstance(key, str) else key: _clean(item, known) for key, item in value.items()
        }
    if isinstance(value, Path):
        return PATH
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _clean(getattr(value, field.name), known) for field in fields_of(value)}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_clean(item, known) for item in value]
    return value


_NO_TEXT: Final = frozenset({float, int, bool, type(None)})


@cache
def _own_names() -> re.Pattern[str] | None:
    found = {socket.gethostname(), socket.getfqdn() if "." in socket.gethostname() else ""}
    with contextlib.suppress(KeyError, OSError):  # a user without a name has none to be hidden
        found.add(getpass.getuser())
    names = {name for name in found if len(name) >= _LEAST_NAME and name.lower() not in _COMMON_NAMES}
    joined = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.compile(rf"(?<![\w-])(?:{joined})(?![\w-])") if joined else None
