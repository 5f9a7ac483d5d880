"""Logs of a process, of Esper and of every library in it: one handler, and no secret in what it writes.

Secrets are taken out where a line is complete, with its arguments, its traceback and its extras: a filter
sees them apart, and what it does not know passes. docs/decisions/0125 has the figures.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final

from esper.errors import ConfigError
from esper.security.redaction import redact, redacted

FORMATS: Final = ("text", "json")
LEVELS: Final = ("debug", "info", "warning", "error")

_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record has; the rest was given as extra."""

_installed = False


_CONTROLS: Final = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"
}
"""What a terminal would act on, as it is written out."""


class TextFormatter(logging.Formatter):
    """Lines for people, without secrets; what is logged begins no line of its own, and moves no terminal."""

    def __init__(self) -> None:
        super().__init__("esper: %(levelname)s: %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """All but the traceback."""
        return super().formatMessage(record).replace("\n", "\n    ")

    def format(self, record: logging.LogRecord) -> str:
        """The whole text of a record, its traceback included."""
        extras = _extras(record)
        more = f" {json.dumps(extras)}" if extras else ""
        line, newline, rest = super().format(record).partition("\n")
        return redact(f"{line}{more}{newline}{rest}").translate(_CONTROLS)


class JsonFormatter(logging.Formatter):
    """An object a line, without secrets: at, level, logger, message, and what else there is."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON in ASCII."""
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        if record.exc_info and record.exc_info != (None, None, None):
            line["exception"] = redact(self.formatException(record.exc_info))
        elif record.exc_text:
            line["exception"] = redact(record.exc_text)
        if record.stack_info:
            line["stack"] = redact(self.formatStack(record.stack_info))
        return json.dumps(line | _extras(record))


def install(form: str = "text", level: str = "warning") -> None:
    """Have this process, a program of its own, write its logs so, and no secret in anything on stderr.

    Handlers that others put on the root logger are removed: two would write everything twice.
    """
    global _installed
    _installed = True
    logging.setLogRecordFactory(_record)
    logging.captureWarnings(True)
    sys.excepthook = _excepthook
    threading.excepthook = _thread_hook
    sys.unraisablehook = _unraisable_hook
    _configure(form if form in FORMATS else "text", level)


def choose(form: str, level: str) -> None:
    """What the configuration says of logs; ConfigError where that is nothing.

    Without effect in a process that is not Esper's own, as where Esper is imported.
    """
    if form not in FORMATS:
        raise ConfigError(f"log.format must be one of {', '.join(FORMATS)}, not {redact(form)!r}")
    if level not in LEVELS:
        raise ConfigError(f"log.level must be one of {', '.join(LEVELS)}, not {redact(level)!r}")
    if _installed:
        _configure(form, level)


def _configure(form: str, level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)


def _record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    """A record whose message and traceback are redacted already, for handlers that libraries bring along."""
    record = logging.LogRecord(*args, **kwargs)
    try:
        message = record.getMessage()
    except (TypeError, ValueError, KeyError):  # logging itself would print the arguments as they are
        message = f"{record.msg} {record.args}"
    record.msg, record.args = redact(message), ()
    if record.exc_info and record.exc_info != (None, None, None):
        record.exc_text = _formatted(*record.exc_info).rstrip("\n")
    return record


def _formatted(
    kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
) -> str:
    return redact("".join(traceback.format_exception(kind, error, trace)))


def tell_traceback(error: BaseException) -> None:
    """Print ``error`` on stderr as Python does, without secrets."""
    sys.stderr.write(_formatted(type(error), error, error.__traceback__))


def _excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(_formatted(kind, error, trace))


def _thread_hook(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:
        name = args.thread.name if args.thread is not None else "?"
        trace = _formatted(args.exc_type, args.exc_value, args.exc_traceback)
        sys.stderr.write(f"in thread {name}:\n{trace}")


def _unraisable_hook(args: Any) -> None:
    said = args.err_msg or "ignored"
    sys.stderr.write(redact(f"{said}: {type(args.object).__name__}\n"))
    sys.stderr.write(_formatted(args.exc_type, args.exc_value, args.exc_traceback))


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    given = {name: value for name, value in vars(record).items() if name not in _OWN}
    found: dict[str, Any] = redacted(_plain(given)) if given else {}
    return found


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    try:
        return str(value)
    except Exception:  # a log must not fail for what is logged
        return type(value).__name__
