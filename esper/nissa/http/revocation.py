"""Certificates of clients that were revoked, in lists as authorities publish them (RFC 5280)."""

from __future__ import annotations

import re
import ssl
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

_LIST: Final = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)


class Revoked:
    """Some lists: what is in them, and when the first of them ends."""

    def __init__(self, lists: Sequence[x509.CertificateRevocationList]) -> None:
        self._numbers = {(each.issuer, entry.serial_number) for each in lists for entry in each}
        self.end = min((end for each in lists if (end := each.next_update_utc)), default=None)

    def allow(self, certificate: x509.Certificate) -> bool:
        """Whether the certificate is in none of them, and none has ended."""
        ended = self.end is not None and self.end < datetime.now(UTC)
        return not ended and (certificate.issuer, certificate.serial_number) not in self._numbers


def refuse_revoked(context: ssl.SSLContext, lists: Path, authority: Path) -> Revoked:
    """Have ``context`` refuse what is in the PEM file ``lists``, and say what that is.

    Who is signed by an authority without a list, or whose list has ended, is refused as well. Raises OSError,
    or ValueError for lists that are none, are of no authority in ``authority``, or are not valid today.
    """
    found = [x509.load_pem_x509_crl(text) for text in _LIST.findall(lists.read_bytes())]
    if not found:
        raise ValueError("there is none in it")
    authorities = x509.load_pem_x509_certificates(authority.read_bytes())
    for each in found:
        _check(each, authorities)
    # The lists alone: who serves such a file to be fetched is trusted with no certificate beside them.
    with tempfile.NamedTemporaryFile(prefix="esper-", suffix=".pem") as file:
        file.write(b"".join(each.public_bytes(Encoding.PEM) for each in found))
        file.flush()
        context.load_verify_locations(file.name)
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return Revoked(found)


def _check(revoked: x509.CertificateRevocationList, authorities: list[x509.Certificate]) -> None:
    named = revoked.issuer.rfc4514_string()
    keys = [each.public_key() for each in authorities if each.subject == revoked.issuer]
    try:
        good = any(revoked.is_signature_valid(key) for key in keys)  # type: ignore[arg-type]
    except (TypeError, UnsupportedAlgorithm) as error:  # of a kind that signs nothing
        raise ValueError(f"the list of {named!r} cannot be checked: {error}") from error
    if not good:
        raise ValueError(f"the list of {named!r} is signed by no authority of clients")
    check_dates(revoked.last_update_utc, revoked.next_update_utc)


def check_dates(begin: datetime, end: datetime | None) -> None:
    """ValueError for what is not valid now."""
    end = end or datetime.max.replace(tzinfo=UTC)
    if not begin <= datetime.now(UTC) <= end:
        raise ValueError(f"it is valid from {begin:%Y-%m-%d} to {end:%Y-%m-%d}")
