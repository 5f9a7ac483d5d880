"""TLS for the HTTP API: what the server shows, and what it makes of the certificate of a client."""

from __future__ import annotations

import ipaddress
import logging
import ssl
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from starlette.types import ASGIApp, Receive, Scope, Send

from esper.errors import ConfigError, EsperError, ServerError
from esper.nissa.http.revocation import Revoked, check_dates, refuse_revoked

CERTIFICATE: Final = "esper.certificate"
"""Where the scope has the names in the certificate that the client has shown, if it has."""

HOLDS: Final = "esper.certificate_holds"
"""Where the scope has what says whether that certificate still counts: it may be revoked meanwhile."""

SELF_SIGNED_HOURS: Final = 24
LOOK_SECONDS: Final = 2.0
"""How often it is looked at most whether a file was replaced."""

_MINIMUM: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

log = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """What connections are begun with, when what it is made of ends, and whom it refuses."""

    context: ssl.SSLContext
    ends: Mapping[str, datetime]
    revoked: Revoked | None


def server_tls(
    certificate: Path,
    key: Path,
    *,
    minimum: str = "1.3",
    client_authority: Path | None = None,
    revoked: Path | None = None,
) -> RenewedTls:
    """TLS with the certificate and key in these PEM files, also when they are replaced.

    A client may show a certificate that one in ``client_authority`` has signed and that no list in
    ``revoked`` has, and no other. Raises ConfigError, or ServerError for files that cannot be used; once it
    serves, what cannot be used is logged.
    """
    files = tuple(filter(None, (certificate, key, client_authority, revoked)))
    tls = RenewedTls(ssl.PROTOCOL_TLS_SERVER)
    tls.begin(partial(_load, certificate, key, minimum, client_authority, revoked), files)
    return tls


class RenewedTls(ssl.SSLContext):
    """Begins each connection with a context of what the files hold; what was last good is kept.

    Not by ``sni_callback``, before which a session may be resumed: nobody whom another authority let in is
    to come in again by a session of that time.
    """

    def begin(self, load: Callable[[], Loaded], files: Sequence[Path]) -> None:
        """Serve by what ``load`` makes of ``files``; raises what it raises."""
        self._load = load
        self._files = files
        self._mutex = threading.Lock()
        self._seen = [_state(file) for file in files]
        self._looked = time.monotonic()
        self._failed: EsperError | None = None
        self._current = load()

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """As any context's: what asyncio begins a connection with."""
        return self._looked_at().context.wrap_bio(*args, **options)

    def holds(self, certificate: x509.Certificate) -> bool:
        """Whether lists of revoked certificates allow that of a connection that goes on."""
        revoked = self._looked_at().revoked
        return revoked is None or revoked.allow(certificate)

    def check(self) -> str:
        """What new connections are begun with; ServerError where files cannot be used, or have ended."""
        ends = self._looked_at().ends
        if self._failed is not None:
            raise ServerError(f"{self._failed.message}; new connections have what was there before")
        for what, end in ends.items():
            if end < datetime.now(UTC):
                raise ServerError(f"{what} ended on {_day(end)}", hint="put a newer one in its place")
        until = (f"{what} until {_day(end)}" for what, end in ends.items())
        return f"new connections are begun with what the files hold: {', '.join(until)}"

    def _looked_at(self) -> Loaded:
        with self._mutex:
            now = time.monotonic()
            if now - self._looked >= LOOK_SECONDS:
                self._looked = now
                self._look()
            return self._current

    def _look(self) -> None:
        seen = [_state(file) for file in self._files]
        if seen == self._seen and self._failed is None:
            return
        try:
            self._current, failed = self._load(), None
            log.info("new TLS files are used: %s", ", ".join(map(str, self._files)))
        except EsperError as error:  # which may pass, such as a date
            failed = error
            if seen != self._seen:
                log.error("%s; new connections have what was there before", error)
        self._seen, self._failed = seen, failed


def _state(file: Path) -> tuple[int, ...]:
    """What differs once a file was replaced."""
    try:
        now = file.stat()
    except OSError:
        return ()
    return now.st_ino, now.st_mtime_ns, now.st_size


def _load(
    certificate: Path, key: Path, minimum: str, client_authority: Path | None, revoked: Path | None
) -> Loaded:
    if minimum not in _MINIMUM:
        raise ConfigError(f"nissa.tls_minimum is {minimum!r}", hint='it is "1.3" or "1.2"')
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _MINIMUM[minimum]
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")  # of 1.2; those of 1.3 are all good
    context.set_alpn_protocols(["http/1.1"])
    found = None
    _check_key_file(key)
    try:
        context.load_cert_chain(certificate, key, password=lambda: b"")
        ends = {f"the TLS certificate {certificate}": _end_of(certificate)}
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ServerError(
            f"the TLS certificate {certificate} with the key {key} cannot be used: {_reason(error)}",
            hint="PEM files are wanted, the certificate with its chain, the key without a password",
        ) from None
    if client_authority is not None:
        try:
            context.load_verify_locations(client_authority)
        except OSError as error:
            raise ServerError(
                f"the authority of clients {client_authority} cannot be used: {_reason(error)}",
                hint="a PEM file is wanted, of the certificates that sign those of clients",
            ) from None
        context.verify_mode = ssl.CERT_OPTIONAL
    if client_authority is not None and revoked is not None:
        try:
            found = refuse_revoked(context, revoked, client_authority)
        except (OSError, ValueError) as error:
            raise ServerError(
                f"the list of revoked certificates {revoked} cannot be used: {_reason(error)}",
                hint="a PEM file is wanted, of the list that the authority of clients publishes",
            ) from None
        if found.end is not None:
            ends[f"the list of revoked certificates {revoked}"] = found.end
    return Loaded(context, ends, found)


def self_signed_tls(host: str, names: Sequence[str], *, minimum: str = "1.3") -> tuple[ssl.SSLContext, str]:
    """TLS with a key and certificate of this moment; and the certificate's SHA-256 fingerprint."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _self_signed(key, host, names)
    with tempfile.TemporaryDirectory(prefix="esper-") as folder:  # which its owner alone can enter
        files = Path(folder, "certificate.pem"), Path(folder, "key.pem")
        for path, data in zip(
            files,
            (
                certificate.public_bytes(Encoding.PEM),
                key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            ),
            strict=True,
        ):
            path.touch(mode=0o600)
            path.write_bytes(data)
        context = _load(*files, minimum, None, None).context
    return context, certificate.fingerprint(SHA256()).hex(":").upper()


def with_certificate(app: ASGIApp, connection: ssl.SSLObject | None, tls: ssl.SSLContext | None) -> ASGIApp:
    """``app``, which is told the names in the certificate of ``connection``, and whether it counts still."""
    shown = None if connection is None else connection.getpeercert(binary_form=True)
    if connection is None or shown is None:
        return app
    names = certificate_names(connection.getpeercert() or {})
    certificate = x509.load_der_x509_certificate(shown)

    def holds() -> bool:
        return not isinstance(tls, RenewedTls) or tls.holds(certificate)

    async def told(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, CERTIFICATE: names, HOLDS: holds}, receive, send)

    return told


def certificate_names(certificate: Mapping[str, Any]) -> tuple[str, ...]:
    """Its alternative names; where it has none, its common names (RFC 6125)."""
    alternative = tuple(name for kind, name in certificate.get("subjectAltName", ()) if kind != "DirName")
    if alternative:
        return alternative
    parts = (part for parts in certificate.get("subject", ()) for part in parts)
    return tuple(value for kind, value in parts if kind == "commonName")


def _check_key_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # said when it is read
    if mode & (stat.S_IRWXG | stat.S_IRWXO) & ~stat.S_IRGRP:
        raise ServerError(
            f"the TLS key {path} can be used by others (mode {stat.S_IMODE(mode):04o})",
            hint=f"if nobody has seen it: chmod 600 {path}",
        )


def _end_of(path: Path) -> datetime:
    """When the certificate ends; ValueError for one that is not valid now."""
    certificate = x509.load_pem_x509_certificates(path.read_bytes())[0]
    check_dates(certificate.not_valid_before_utc, certificate.not_valid_after_utc)
    return certificate.not_valid_after_utc


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _self_signed(key: ec.EllipticCurvePrivateKey, host: str, names: Sequence[str]) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Esper, for trying")])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=SELF_SIGNED_HOURS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([_general_name(name) for name in dict.fromkeys((host, *names))]),
            critical=False,
        )
        .sign(key, SHA256())
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
