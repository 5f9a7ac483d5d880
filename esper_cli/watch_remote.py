"""A run's events from ``esper serve-metrics``, by its API, for ``esper watch --url``."""

from __future__ import annotations

import ipaddress
import json
import queue
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from http.client import HTTPException, HTTPResponse
from itertools import chain, islice
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit

from esper.errors import ConfigError, EsperError, RunError, SecurityError
from esper.nissa.journal import Event
from esper.security.local_peers import OwnConnection
from esper_cli.watch_source import MOST_AT_ONCE, News

ANSWER_SECONDS = 10.0
"""How long an answer may take to begin."""

SILENCE_SECONDS = 30.0
"""The server says something every 10 s. If it was silent for so long, the connection is made anew."""

LOST_SECONDS = 30.0
"""How long a server that was there may be gone."""

RETRY_SECONDS = 1.0
"""How long to wait before a lost connection is made anew."""

MIDST_SECONDS = 5.0
"""How long the server may take for the next of many events that it has."""

QUIET_SECONDS = 0.3
"""What was written together comes within that time."""

STATUS_SECONDS = 2.0
"""How often the server is asked whether a silent run goes on."""

MAX_BYTES = 16 * 2**20
"""Of one line or answer; an event is a few kilobytes."""


class ServerSource:
    """The run ``name`` of the server at ``url``; ``token`` is that of ``esper token issue``, if any.

    Raises ConfigError for a URL that is none or would show the token to others, RunError when there is no
    such server or run, and SecurityError when it does not let us in.
    """

    def __init__(self, url: str, name: str, token: str | None) -> None:
        self._server = _Server(url, token)
        details = self._server.get(f"/api/v1/runs/{quote(name, safe='')}")
        if not isinstance(details.get("run_id"), str):
            raise self._server.unreachable("its answer is not one of Esper's")
        self._run_id: str = details["run_id"]
        self.folder = Path(self._run_id)
        latest = details.get("latest") or {}
        self._known: str | None = latest.get("at")
        self._events: queue.Queue[Event | EsperError] = queue.Queue(MOST_AT_ONCE)
        self._alive = _goes_on(details)
        self._asked = time.monotonic()
        self._before: Iterator[Event] | None = chain(self._until_known(), self._within(QUIET_SECONDS))
        threading.Thread(target=self._follow, daemon=True).start()

    def read(self) -> News:
        """What came since; first all that was written before."""
        if self._before is not None:
            events = list(islice(self._before, MOST_AT_ONCE))
            if len(events) < MOST_AT_ONCE:
                self._before = None
            return News(events, self._alive, more=self._before is not None)
        events = list(self._within(0.0))
        if not events and time.monotonic() - self._asked >= STATUS_SECONDS:
            self._ask()
            # What it wrote before it ended may have come since.
            events = [] if self._alive else list(self._within(QUIET_SECONDS))
        return News(events, self._alive)

    def _ask(self) -> None:
        """Whether the run goes on; a server that is gone for a while is the other thread's concern."""
        with suppress(_Unreachable):
            self._alive = _goes_on(self._server.get(f"/api/v1/runs/{quote(self._run_id, safe='')}"))
        self._asked = time.monotonic()

    def _until_known(self) -> Iterator[Event]:
        """Events up to the latest epoch that the server knew of when it was asked first."""
        wait = ANSWER_SECONDS
        while self._known is not None and (event := self._next(wait)) is not None:
            yield event
            if event["event"] == "epoch" and _same_time(event.get("at"), self._known):
                return
            wait = MIDST_SECONDS

    def _within(self, seconds: float) -> Iterator[Event]:
        """Events of the next ``seconds``, and those that wait, as many as are shown at once."""
        until = time.monotonic() + seconds
        for _ in range(MOST_AT_ONCE):
            event = self._next(max(0.0, until - time.monotonic()))
            if event is None:
                return
            yield event

    def _next(self, seconds: float) -> Event | None:
        try:
            event = self._events.get(block=seconds > 0, timeout=seconds or None)
        except queue.Empty:
            return None
        if isinstance(event, EsperError):
            raise event
        return event

    def _follow(self) -> None:
        """Put every event of the run into the queue, and the error that ends it; runs in a thread."""
        seen, lost = "start", None
        while True:
            failure: EsperError | None = None
            try:
                with self._server.open(f"/api/v1/events?run={quote(self._run_id)}", seen) as stream:
                    lost = None
                    for place, data in server_sent_events(stream):
                        if (event := _parse(data)) is not None:
                            self._events.put(event)
                        seen = place or seen
            except EsperError as error:
                failure = error
            except (OSError, HTTPException) as error:
                failure = self._server.unreachable(error)
            now = time.monotonic()
            lost = lost or now
            if failure is not None and (not isinstance(failure, _Unreachable) or now - lost > LOST_SECONDS):
                return self._events.put(failure)
            time.sleep(RETRY_SECONDS)


class _Unreachable(RunError):
    """No answer, for now."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow none: the token is for the server that was named."""


class _ToOwnServer(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> HTTPResponse:
        """Without TLS, that of another user who took the port is not to get the token."""
        return self.do_open(OwnConnection, request)


class _Server:
    """One server, asked without proxies."""

    def __init__(self, url: str, token: str | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ConfigError(f"{url!r} is not the address of a server", hint="such as http://127.0.0.1:9464")
        if token and parts.scheme == "http" and not _is_loopback(parts.hostname):
            raise ConfigError(
                f"to {parts.hostname} the token would go unencrypted", hint="use https, or unset ESPER_TOKEN"
            )
        self._url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        plain = _ToOwnServer if token else urllib.request.HTTPHandler
        self._opener = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}), plain)

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object that the server answers."""
        with self.open(path) as answer:
            try:
                found = json.loads(answer.read(MAX_BYTES))
            except (OSError, HTTPException, ValueError) as error:
                raise self.unreachable(error) from error
        if not isinstance(found, dict):
            raise self.unreachable("its answer is not one of Esper's")
        return found

    def open(self, path: str, last_event: str | None = None) -> HTTPResponse:
        """The answer, which begins within ``ANSWER_SECONDS`` and is silent no longer than it may be."""
        follow = {"Last-Event-ID": last_event, "Accept": "text/event-stream"} if last_event else {}
        request = urllib.request.Request(self._url + path, headers={**self._headers, **follow})
        try:
            seconds = SILENCE_SECONDS if last_event else ANSWER_SECONDS
            answer: HTTPResponse = self._opener.open(request, timeout=seconds)
            return answer
        except HTTPError as error:
            with error:
                raise self._refusal(error.code, error.read(MAX_BYTES)) from None
        except (OSError, HTTPException) as error:
            raise self.unreachable(getattr(error, "reason", error)) from None

    def unreachable(self, reason: object) -> RunError:
        """That there is no answer, and why."""
        hint = "is esper serve-metrics running there?"
        if isinstance(reason, ssl.SSLCertVerificationError):
            hint = "name the file of who signed its certificate: SSL_CERT_FILE=FILE"
        return _Unreachable(f"no answer from {self._url}: {reason}", hint=hint)

    def _refusal(self, status: int, body: bytes) -> EsperError:
        try:
            problem = json.loads(body)
            detail, hint = str(problem["detail"]), problem.get("hint")
        except (ValueError, KeyError, TypeError):
            detail, hint = f"it answers {status}", None
        if status in (401, 403):
            return SecurityError(f"{self._url} does not let us in: {detail}", hint=hint or "set ESPER_TOKEN")
        if status >= 500:
            return self.unreachable(detail)
        return RunError(f"{self._url}: {detail}", hint=hint)


def server_sent_events(stream: HTTPResponse) -> Iterator[tuple[str, str]]:
    """The id and data of each event in ``stream`` until it ends; RunError for a line without an end."""
    fields: dict[str, str] = {}
    while line := stream.readline(MAX_BYTES):
        if not line.endswith(b"\n") and len(line) >= MAX_BYTES:
            raise RunError(f"an event of more than {MAX_BYTES} bytes", hint="look at the run where it lies")
        name, _, value = line.decode(errors="replace").rstrip("\r\n").partition(": ")
        if name:
            fields[name] = value
        elif "data" in fields:
            yield fields.get("id", ""), fields["data"]
            fields = {}


def _parse(data: str) -> Event | None:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _goes_on(details: dict[str, Any]) -> bool:
    return details.get("status") in ("running", "paused")


def _same_time(text: Any, other: str) -> bool:
    try:
        return datetime.fromisoformat(text) == datetime.fromisoformat(other)
    except (TypeError, ValueError):
        return False


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
