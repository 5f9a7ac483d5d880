"""Whether the ``esper serve-metrics`` of a configuration runs, and whether its metrics can be read."""

from __future__ import annotations

import json
import os
import ssl
import time
from http.client import HTTPConnection, HTTPException, HTTPSConnection

from omegaconf import DictConfig
from prometheus_client.parser import text_string_to_metric_families

from esper.errors import ServerError
from esper.security.local_peers import OwnConnection

SECONDS = 3.0
"""How long it may take to answer."""

MAX_BYTES = 64 * 2**20
"""Of its metrics."""

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
"""Where a server is asked that listens on every address."""


def check_server(cfg: DictConfig) -> str:
    """What was found at its address, in words; that there is none is no error, for training needs none.

    Raises ServerError when something else is there, or it does not answer in time.
    """
    url = f"{'https' if cfg.nissa.tls_certificate else 'http'}://{cfg.nissa.host}:{cfg.nissa.port}"
    began = time.perf_counter()
    try:
        status, body = _get(cfg, "/health/live")
    except ConnectionRefusedError:
        return f"none at {url}; it is started by: esper serve-metrics"
    except (OSError, HTTPException) as error:
        raise ServerError(
            f"what listens at {url} does not answer as it should: {error or type(error).__name__}",
            hint="end it, or choose another port: nissa.port=PORT",
        ) from error
    answered = f"{url} answers in {1e3 * (time.perf_counter() - began):.0f} ms"
    if status != 200 or not _says_ok(body):
        raise ServerError(
            f"what listens at {url} is not esper serve-metrics", hint="choose another port: nissa.port=PORT"
        )
    return f"{answered}; {_metrics(cfg, url)}"


def _metrics(cfg: DictConfig, url: str) -> str:
    token = os.environ.get("ESPER_TOKEN")
    try:
        status, body = _get(cfg, "/metrics", {"Authorization": f"Bearer {token}"} if token else {})
        if status in (401, 403):
            return (
                "/metrics asks for a token (esper token issue), and that in ESPER_TOKEN is not one it takes"
            )
        families = {family.name: family for family in text_string_to_metric_families(body.decode())}
        runs = len(families["esper_run_info"].samples)
    except (OSError, HTTPException, ValueError, KeyError) as error:
        raise ServerError(
            f"the metrics of {url} cannot be read: {error or type(error).__name__}",
            hint="its log says why; start it again: esper serve-metrics",
        ) from error
    series = sum(len(family.samples) for family in families.values())
    return f"{len(families)} metrics in {series} series, of {runs} {'run' if runs == 1 else 'runs'}"


def _get(cfg: DictConfig, path: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """The status and body of one answer; raises OSError or HTTPException."""
    host, port = _ANY.get(cfg.nissa.host, cfg.nissa.host), int(cfg.nissa.port)
    connection: HTTPConnection
    if cfg.nissa.tls_certificate:
        connection = HTTPSConnection(
            host, port, timeout=SECONDS, context=_trusting(cfg.nissa.tls_certificate)
        )
    else:
        # Without TLS whoever came first may listen there; that is for tokens to be kept from.
        kind = OwnConnection if headers else HTTPConnection
        connection = kind(host, port, timeout=SECONDS)
    try:
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read(MAX_BYTES)
    finally:
        connection.close()


def _trusting(certificate: str) -> ssl.SSLContext:
    """Trusts the server's own certificate, whatever name it is asked by: it is about this machine."""
    context = ssl.create_default_context(cafile=certificate)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _says_ok(body: bytes) -> bool:
    try:
        return bool(json.loads(body)["status"] == "ok")
    except (ValueError, KeyError, TypeError):
        return False
