"""Tokens: who may ask what of the HTTP API, as signed JWTs, and nothing that RFC 8725 warns of.

One algorithm (EdDSA over Ed25519), one type, one exact set of header fields and of claims. The key is looked
up by its id among those that are trusted, and by nothing else that a token says: docs/decisions/0119.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import time
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, Literal, cast

import jwt

from esper.errors import ConfigError, TokenRefused
from esper.security.token_keys import SigningKey, TokenAuthority
from esper.security.token_trust import Trusted

Role = Literal["viewer", "operator", "admin"]
ROLES: Final = ("viewer", "operator", "admin")
"""What a token can allow, in rising order."""

ALGORITHM: Final = "EdDSA"
TYPE: Final = "esper+jwt"
MOST_CHARACTERS: Final = 8 * 1024
SKEW_SECONDS: Final = 30
"""How far the clocks of who issues and who verifies may differ."""

MOST_SERVICE_MINUTES: Final = 15
MOST_PERSON_MINUTES: Final = 12 * 60

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_ID: Final = re.compile(r"[0-9a-f]{32}")
_KEY_ID: Final = re.compile(r"[0-9a-f]{16}")
_PARTS: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]{86})")
_HEADER: Final = {"alg", "kid", "typ"}
_CLAIMS: Final = {"iss", "aud", "sub", "role", "kind", "iat", "nbf", "exp", "jti"}


@dataclass(frozen=True)
class TokenRules:
    """What tokens say of where they are from and for, and how long one lasts at most.

    ``person_minutes`` is for tokens of people; None allows them no more than a service. Raises ConfigError.
    """

    issuer: str = "esper"
    audience: str = "esper-api"
    service_minutes: int = MOST_SERVICE_MINUTES
    person_minutes: int | None = None

    def __post_init__(self) -> None:
        for name, minutes, most in (
            ("service_minutes", self.service_minutes, MOST_SERVICE_MINUTES),
            (
                "person_minutes",
                1 if self.person_minutes is None else self.person_minutes,
                MOST_PERSON_MINUTES,
            ),
        ):
            if type(minutes) is not int or not 1 <= minutes <= most:
                raise ConfigError(
                    f"nissa.tokens.{name} is {minutes}", hint=f"a whole number of minutes from 1 to {most}"
                )

    def minutes(self, *, person: bool) -> int:
        """How long a token lasts at most."""
        return (self.person_minutes if person else None) or self.service_minutes


@dataclass(frozen=True)
class TokenHolder:
    """Whom a token is for, what it allows, and its id; times in seconds since 1970."""

    name: str
    role: Role
    id: str
    issued: int
    expires: int


def issue(
    authority: TokenAuthority,
    rules: TokenRules,
    *,
    name: str,
    role: str,
    minutes: int | None = None,
    person: bool = False,
) -> tuple[str, TokenHolder]:
    """A new token, and what it says; ``minutes`` is at most, and unless given, what ``rules`` allow.

    The first token makes the key that signs. Raises ConfigError, SecurityError or StorageError.
    """
    most = rules.minutes(person=person)
    minutes = most if minutes is None else minutes
    if not 1 <= minutes <= most:
        more = "" if person else "; for a person, --person and nissa.tokens.person_minutes=N"
        raise ConfigError(f"a token cannot last {minutes} minutes", hint=f"from 1 to {most}{more}")
    if role not in ROLES:
        raise ConfigError(f"there is no role {role!r}", hint=f"one of: {', '.join(ROLES)}")
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name[:70]!r} cannot be the name in a token",
            hint="at most 64 letters, digits and . _ @ -, the first a letter or digit",
        )
    key, trusted = authority.signing_key()
    issued = max(int(time.time()), trusted.valid_from(name))
    holder = TokenHolder(name, cast(Role, role), secrets.token_hex(16), issued, issued + 60 * minutes)
    return _signed(key, rules, holder, "person" if person else "service"), holder


def verify(token: str, trusted: Trusted, rules: TokenRules) -> TokenHolder:
    """Whom ``token`` is for; TokenRefused unless everything about it is as it has to be."""
    parts = _PARTS.fullmatch(token) if len(token) <= MOST_CHARACTERS else None
    if parts is None:
        raise TokenRefused("not a token of this kind")
    header, claims, _ = (_decoded(part) for part in parts.groups())
    key = trusted.keys.get(_key_id(_object(header, _HEADER)))
    if key is None:
        raise TokenRefused("not signed with a trusted key")
    # Before the library reads them: it is lenient about names that stand twice, numbers and depth.
    holder = _holder(_object(claims, _CLAIMS), rules)
    try:
        jwt.decode(
            token,
            key=key,
            algorithms=[ALGORITHM],
            issuer=rules.issuer,
            audience=rules.audience,
            leeway=SKEW_SECONDS,
            options={"require": sorted(_CLAIMS), "strict_aud": True},
        )
    except jwt.ExpiredSignatureError:
        raise TokenRefused("expired", expired=True) from None
    except jwt.PyJWTError as error:
        raise TokenRefused(_reason(error)) from None  # the errors hold parts of the token
    if trusted.is_revoked(holder.id, holder.name, holder.issued):
        raise TokenRefused("revoked")
    return holder


class TokenVerifier:
    """Verifies tokens against what is trusted now, and knows for a while those that it has seen.

    Threads may share one.
    """

    _MOST_KNOWN: Final = 1024

    def __init__(self, rules: TokenRules) -> None:
        self._rules = rules
        self._known: tuple[Trusted | None, dict[bytes, TokenHolder]] = (None, {})

    def verify(self, token: str, trusted: Trusted) -> TokenHolder:
        """As :func:`verify`; a signature is checked once for as long as the same is trusted."""
        since, known = self._known
        if since is not trusted or len(known) >= self._MOST_KNOWN:
            known = {}
            self._known = trusted, known
        digest = sha256(token.encode("utf-8", "surrogatepass")).digest()
        holder = known.get(digest)
        if holder is None:
            holder = known[digest] = verify(token, trusted, self._rules)
        if holder.expires + SKEW_SECONDS <= time.time():
            raise TokenRefused("expired", expired=True)
        return holder


def checked_id(text: str) -> str:
    """``text`` if it can be the id of a token, or ConfigError."""
    if not _ID.fullmatch(text):
        raise ConfigError(
            "that is not the id of a token", hint="32 digits and letters a to f, as esper token issue says it"
        )
    return text


def _signed(key: SigningKey, rules: TokenRules, holder: TokenHolder, kind: str) -> str:
    claims = {
        "iss": rules.issuer,
        "aud": rules.audience,
        "sub": holder.name,
        "role": holder.role,
        "kind": kind,
        "iat": holder.issued,
        "nbf": holder.issued,
        "exp": holder.expires,
        "jti": holder.id,
    }
    return jwt.encode(claims, key.private, algorithm=ALGORITHM, headers={"typ": TYPE, "kid": key.id})


def _decoded(part: str) -> bytes:
    """The bytes of ``part``, of which there is one spelling only."""
    try:
        data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError:
        raise TokenRefused("not a token of this kind") from None
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != part:
        raise TokenRefused("not a token of this kind")
    return data


def _object(data: bytes, names: set[str]) -> dict[str, Any]:
    """The JSON object in ``data`` if its names are ``names``, each once."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(pairs) != len(names):
            raise ValueError
        return dict(pairs)

    try:
        value = json.loads(data.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or value.keys() != names:
        raise TokenRefused("not a token of this kind")
    return value


def _key_id(header: dict[str, Any]) -> str:
    kid = header["kid"]
    if header["alg"] != ALGORITHM or header["typ"] != TYPE or not _matches(_KEY_ID, kid):
        raise TokenRefused("not a token of this kind")
    return cast(str, kid)


def _holder(claims: dict[str, Any], rules: TokenRules) -> TokenHolder:
    issued, begins, expires = (claims[name] for name in ("iat", "nbf", "exp"))
    if not all(type(moment) is int for moment in (issued, begins, expires)):
        raise TokenRefused("a time that is no whole number")
    if claims["kind"] not in ("service", "person") or claims["role"] not in ROLES:
        raise TokenRefused("a role or kind that there is not")
    if not _matches(_NAME, claims["sub"]) or not _matches(_ID, claims["jti"]):
        raise TokenRefused("a name or id that there cannot be")
    most = 60 * rules.minutes(person=claims["kind"] == "person")
    if begins != issued or not 0 < expires - issued <= most:
        raise TokenRefused("it lasts too long")
    return TokenHolder(claims["sub"], claims["role"], claims["jti"], issued, expires)


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _reason(error: jwt.PyJWTError) -> str:
    reasons: dict[type[jwt.PyJWTError], str] = {
        jwt.ImmatureSignatureError: "not valid yet",
        jwt.InvalidAudienceError: "for somebody else",
        jwt.InvalidIssuerError: "from somebody else",
    }
    return reasons.get(type(error), "not signed with a trusted key")
