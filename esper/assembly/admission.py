"""Who may come in at the HTTP server of a configuration. Importing this does not import PyTorch."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from omegaconf import DictConfig

from esper.assembly.tokens import build_token_rules, build_trusted
from esper.errors import ConfigError, SecurityError, ServerError
from esper.nissa.http.browser import LOOPBACK_NAMES
from esper.nissa.http.guard import Admission, Allowed, Caller
from esper.nissa.http.limits import ConnectionLimit, RateLimit
from esper.nissa.http.listener import is_loopback
from esper.nissa.http.tls import RenewedTls, self_signed_tls, server_tls
from esper.security.audit import acting
from esper.security.tokens import ROLES, TokenVerifier

ANONYMOUS = ("viewer", "none")


def build_admission(cfg: DictConfig, *, tls: bool) -> Admission:
    """Who is let in, and how.

    Raises ServerError where others than this machine could come in without TLS, or without a token or a
    certificate.
    """
    nissa, local = cfg.nissa, is_loopback(cfg.nissa.host)
    if nissa.anonymous not in ANONYMOUS:
        raise ConfigError(
            f"nissa.anonymous is {nissa.anonymous!r}", hint=f"it is one of: {', '.join(ANONYMOUS)}"
        )
    trusted, verifier = build_trusted(cfg), TokenVerifier(build_token_rules(cfg))
    certificates = _certificates(cfg)

    def verify(token: str) -> Caller:
        holder = verifier.verify(token, trusted())
        return Caller(holder.name, holder.role)

    if not local:
        _check_reachable(nissa.host, tls=tls, certificates=certificates, trusted=trusted)
    names = frozenset(str(name).lower() for name in nissa.hosts)
    return Admission(
        verify,
        anonymous=Caller("anonymous", "viewer") if local and nissa.anonymous == "viewer" else None,
        certificates=certificates,
        # A certificate says by itself what a server is called.
        hosts=names | LOOPBACK_NAMES | {_in_address(nissa.host)} if local else names or None,
        rate=RateLimit(
            _positive(nissa.limits.requests_per_second, "requests_per_second"),
            _positive(nissa.limits.burst, "burst"),
        ),
        acting=acting,
    )


def build_connection_limit(cfg: DictConfig) -> ConnectionLimit:
    """How many connections there may be; raises ConfigError."""
    limits = cfg.nissa.limits
    return ConnectionLimit(
        _positive(limits.connections, "connections"),
        _positive(limits.connections_per_address, "connections_per_address"),
    )


def build_tls(cfg: DictConfig, *, self_signed: bool, say: Callable[[str], None]) -> ssl.SSLContext | None:
    """What the server shows, if it is to; ``say`` is told the fingerprint of a certificate made now."""
    nissa = cfg.nissa
    files = [nissa.tls_certificate, nissa.tls_key]
    if self_signed:
        if any(files) or nissa.tls_client_ca or nissa.tls_client_crl:
            raise ConfigError("a certificate is configured", hint="leave --tls-self-signed away")
        tls, fingerprint = self_signed_tls(nissa.host, list(nissa.hosts), minimum=str(nissa.tls_minimum))
        say(f"a certificate of this moment, for trying; its SHA-256 fingerprint: {fingerprint}")
        return tls
    if not any((*files, nissa.tls_client_ca, nissa.tls_client_crl)):
        return None
    if not all(files):
        raise ConfigError("nissa.tls_certificate and nissa.tls_key belong together", hint="set both")
    if nissa.tls_client_crl and not nissa.tls_client_ca:
        raise ConfigError("nissa.tls_client_crl needs nissa.tls_client_ca", hint="name whose list it is")
    return server_tls(
        Path(files[0]),
        Path(files[1]),
        minimum=str(nissa.tls_minimum),
        client_authority=Path(nissa.tls_client_ca) if nissa.tls_client_ca else None,
        revoked=Path(nissa.tls_client_crl) if nissa.tls_client_crl else None,
    )


def check_tls(cfg: DictConfig) -> str:
    """When what the server shows and goes by ends; raises ConfigError, or ServerError where it has."""
    tls = build_tls(cfg, self_signed=False, say=lambda _: None)
    return tls.check() if isinstance(tls, RenewedTls) else "none"


def access_notice(admission: Admission) -> str:
    """What to tell the user about who is let in."""
    if admission.anonymous is not None:
        return "every user of this machine can read these pages (nissa.anonymous=none: only with a token)"
    other = ", or a client's certificate" if admission.certificates else ""
    return f"a token is needed{other}: esper token issue --role viewer --for NAME"


def _check_reachable(
    host: str, *, tls: bool, certificates: Mapping[str, Allowed], trusted: Callable[[], object]
) -> None:
    if not tls:
        raise ServerError(
            f"others can reach {host}: that needs TLS",
            hint="set nissa.tls_certificate and nissa.tls_key, or to try it: --tls-self-signed",
        )
    if certificates:
        return
    try:
        trusted()
    except SecurityError as error:
        raise ServerError(
            f"others can reach {host}: that needs tokens, and {error.message}", hint=error.hint
        ) from error


def _certificates(cfg: DictConfig) -> dict[str, Allowed]:
    clients: dict[str, Allowed] = {}
    for text in cfg.nissa.tls_clients:
        name, _, role = str(text).rpartition(":")
        if not name or role not in ROLES:
            raise ConfigError(
                f"nissa.tls_clients: {text!r} is not NAME:ROLE", hint=f"the roles are: {', '.join(ROLES)}"
            )
        clients[name] = cast(Allowed, role)
    if clients and not cfg.nissa.tls_client_ca:
        raise ConfigError("nissa.tls_clients needs nissa.tls_client_ca", hint="name who signs them")
    return clients


def _positive(value: int, name: str) -> int:
    if value < 1:
        raise ConfigError(f"nissa.limits.{name} is {value!r}", hint="a whole number from 1 on")
    return value


def _in_address(host: str) -> str:
    """``host`` as it stands in an address."""
    return f"[{host}]" if ":" in host else host.lower()
