"""One alert for each kernel that no configuration gives: a line in the log, and a webhook if one is set."""

from __future__ import annotations

import json
import logging
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import asdict
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from esper.errors import ConfigError
from esper.messages import CompilationRecord
from esper.security.privacy import without_places

SECONDS = 2.0
"""How long a webhook may take, from the connection to the last byte that it answers."""

log = logging.getLogger(__name__)


class FailureAlert:
    """Tells of a kernel that could not be compiled. May be shared by threads; never raises when told.

    ``url`` gets a POST of JSON: ``event``, ``compilation_failed``, and the last attempt's record. It should
    answer with a 2xx; if not, ``on_undelivered`` gets a line for the user.
    """

    def __init__(self, url: str | None = None, on_undelivered: Callable[[str], None] = log.warning) -> None:
        if url is not None and urlsplit(url).scheme not in ("http", "https"):
            raise ConfigError("tezzeret.alert_url is no http:// or https:// address")
        self._url = url
        self._on_undelivered = on_undelivered

    def __call__(self, record: CompilationRecord) -> None:
        """Tell of the kernel whose last attempt is ``record``."""
        log.error(
            "%s for %s cannot be compiled: %s: %s",
            record.blueprint_name,
            record.slot,
            record.stage,
            record.reason,
        )
        if self._url is None:
            return
        reason = None if record.reason is None else without_places(record.reason)
        body = json.dumps({"event": "compilation_failed", **asdict(record), "reason": reason}).encode()
        failure: list[str] = ["it takes longer than 2 s"]
        # In a thread: a time-out of a socket is for each read, and a slow server sends a byte at a time.
        sender = threading.Thread(target=_post, args=(self._url, body, failure), daemon=True)
        sender.start()
        sender.join(SECONDS)
        if failure:
            host = urlsplit(self._url).hostname  # the rest of the address may hold a secret
            about = f"the alert about {record.blueprint_name}"
            self._on_undelivered(f"{about} did not reach {host}: {failure[0]}")


def _post(url: str, body: bytes, failure: list[str]) -> None:
    """Post ``body``, and empty ``failure`` if that went well, else put the reason there."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
    try:
        with _opener.open(request, timeout=SECONDS):
            failure.clear()
    except (OSError, HTTPException, ValueError) as error:
        failure[:] = [str(getattr(error, "reason", error)) or type(error).__name__]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow none: the address that was set is the one that is meant."""


_opener = urllib.request.build_opener(_NoRedirect)
