"""Tokens that must not be accepted: known attacks on JWTs, made by hand as an attacker would."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from esper.security.token_keys import SigningKey, TokenAuthority
from esper.security.tokens import TokenRules, issue

RULES = TokenRules()
ORDER = 2**252 + 27742317777372353535851937790883648493
"""Of the group of Ed25519: a signature with this much added to its second half is the same one again."""


def part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def as_json(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


@dataclass
class Forge:
    """An authority, its key (which no attacker has), and a token of a viewer."""

    authority: TokenAuthority
    key: SigningKey
    good: str

    @classmethod
    def at(cls, folder: Path) -> Forge:
        authority = TokenAuthority(folder / "token_keys.json", folder / "tokens.json")
        good, _ = issue(authority, RULES, name="anna", role="viewer")
        key, _ = authority.signing_key()
        return cls(authority, key, good)

    def header(self, **changes: Any) -> dict[str, Any]:
        return self._changed({"alg": "EdDSA", "kid": self.key.id, "typ": "esper+jwt"}, changes)

    def claims(self, **changes: Any) -> dict[str, Any]:
        now = int(time.time())
        claims = {"iss": "esper", "aud": "esper-api", "sub": "anna", "role": "admin", "kind": "service"}
        times = {"iat": now, "nbf": now, "exp": now + 600, "jti": "0" * 32}
        return self._changed({**claims, **times}, changes)

    def signed(
        self, header: Any = None, claims: Any = None, sign: Callable[[bytes], bytes] | None = None
    ) -> str:
        """A token signed with the trusted key, unless ``sign`` is given; bytes stand as they are."""
        head = part(as_json(self.header() if header is None else header))
        text = f"{head}.{part(as_json(self.claims() if claims is None else claims))}"
        return f"{text}.{part((sign or self.key.private.sign)(text.encode()))}"

    @staticmethod
    def _changed(fields: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in {**fields, **changes}.items() if value is not ...}


def attacks(forge: Forge) -> dict[str, str]:
    """Tokens by what is tried."""
    return {
        **_algorithms(forge),
        **_keys(forge),
        **_headers(forge),
        **_times(forge),
        **_claims(forge),
        **_encodings(forge),
        **_signatures(forge),
    }


def _algorithms(forge: Forge) -> dict[str, str]:
    public = forge.key.private.public_key()
    secrets = {
        "raw": public.public_bytes_raw(),
        "pem": public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "base64": base64.b64encode(public.public_bytes_raw()),
    }
    none = {
        f"alg {alg}": forge.signed(forge.header(alg=alg), sign=lambda _: b"")
        for alg in ("none", "None", "NONE", "nOnE", "")
    }
    mac = {
        f"HS256 with the public key as {form}": forge.signed(
            forge.header(alg="HS256"), sign=lambda text, secret=secret: hmac.digest(secret, text, sha256)
        )
        for form, secret in secrets.items()
    }
    other = {
        f"alg {alg} over a good signature": forge.signed(forge.header(alg=alg))
        for alg in ("HS256", "ES256", "Ed448", "eddsa", "RS256", "none", ["EdDSA"], None)
    }
    return {**none, **mac, **other, "no alg": forge.signed(forge.header(alg=...))}


def _keys(forge: Forge) -> dict[str, str]:
    stranger = ed25519.Ed25519PrivateKey.generate()
    curve = ec.generate_private_key(ec.SECP256R1())
    kids: dict[str, Any] = {
        "kid unknown": "0" * 16,
        "kid that is a path": "../../../../dev/null",
        "kid with SQL": "x' UNION SELECT 'AAAA",
        "kid with a command": "key; cat /etc/passwd",
        "kid empty": "",
        "kid with a null byte": forge.key.id + "\0",
        "kid with a line": forge.key.id + "\n",
        "kid in capitals": forge.key.id.upper() if forge.key.id.upper() != forge.key.id else "A" * 16,
        "kid a list": [forge.key.id],
        "kid a number": int(forge.key.id, 16),
        "kid null": None,
        "no kid": ...,
    }
    small = bytes(32)
    return {
        **{name: forge.signed(forge.header(kid=kid)) for name, kid in kids.items()},
        "another key of the curve": forge.signed(sign=stranger.sign),
        "a key of Ed448": forge.signed(sign=ed448.Ed448PrivateKey.generate().sign),
        "a key of P-256": forge.signed(
            forge.header(alg="ES256"), sign=lambda text: curve.sign(text, ec.ECDSA(SHA256()))
        ),
        "a point of small order": forge.signed(sign=lambda _: b"\x01" + small[1:] + small),
    }


def _headers(forge: Forge) -> dict[str, str]:
    stranger = ed25519.Ed25519PrivateKey.generate()
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": part(stranger.public_key().public_bytes_raw())}
    more: dict[str, dict[str, Any]] = {
        "jwk": {"jwk": jwk},
        "jku": {"jku": "https://attacker.example/keys"},
        "x5u": {"x5u": "https://attacker.example/chain"},
        "x5c": {"x5c": ["AAAA"]},
        "crit": {"crit": ["exp"], "exp": 1},
        "b64 false": {"b64": False, "crit": ["b64"]},
        "cty JWT": {"cty": "JWT"},
        "zip": {"zip": "DEF"},
    }
    types: tuple[Any, ...] = ("JWT", "at+jwt", "ESPER+JWT", "", None, ...)
    kid = forge.key.id
    twice = f'{{"alg":"none","alg":"EdDSA","kid":"{kid}","typ":"esper+jwt"}}'
    return {
        **{f"header {name}": forge.signed(forge.header(**fields)) for name, fields in more.items()},
        **{
            f"header {name}, signed with its key": forge.signed(forge.header(**fields), sign=stranger.sign)
            for name, fields in more.items()
        },
        **{f"typ {typ!r}": forge.signed(forge.header(typ=typ)) for typ in types},
        "alg twice in the header": forge.signed(twice.encode()),
        "a header that is a list": forge.signed([forge.header()]),
        "a header that is no JSON": forge.signed(b"alg=EdDSA"),
        "a header in UTF-16": forge.signed(json.dumps(forge.header()).encode("utf-16")),
        "a header of great depth": forge.signed(b"[" * 3000),
        "a header with a null byte behind": forge.signed(as_json(forge.header()) + b"\0"),
    }


def _times(forge: Forge) -> dict[str, str]:
    now = int(time.time())
    changes: dict[str, dict[str, Any]] = {
        "expired": {"iat": now - 600, "nbf": now - 600, "exp": now - 31},
        "expired long ago": {"iat": 1000, "nbf": 1000, "exp": 1600},
        "not valid yet": {"iat": now + 200, "nbf": now + 200, "exp": now + 600},
        "exp too far": {"iat": now, "nbf": now, "exp": now + 15 * 60 + 1},
        "exp in the year 2100": {"exp": 4102444800},
        "exp before iat": {"exp": now - 1},
        "nbf before iat": {"nbf": now - 10},
        "iat in 1970, as if it were a short one": {"iat": 0, "nbf": 0, "exp": now + 600},
        "exp a string": {"exp": str(now + 600)},
        "exp a fraction": {"exp": now + 600.5},
        "exp true": {"exp": True},
        "exp null": {"exp": None},
        "exp negative": {"exp": -1},
        "a person's token where people get no more": {"kind": "person", "exp": now + 3600},
    }
    claims = {name: forge.signed(claims=forge.claims(**fields)) for name, fields in changes.items()}
    text = json.dumps(forge.claims())
    for number in ("Infinity", "NaN", "1e400", "9" * 5000):
        claims[f"exp {number[:8]}"] = forge.signed(
            claims=text.replace(f'"exp": {forge.claims()["exp"]}', f'"exp": {number}').encode()
        )
    return claims


def _claims(forge: Forge) -> dict[str, str]:
    changes: dict[str, Any] = {
        f"no {name}": {name: ...}
        for name in ("iss", "aud", "sub", "role", "kind", "iat", "nbf", "exp", "jti")
    }
    wrong: dict[str, tuple[Any, ...]] = {
        "iss": ("esper2", "ESPER", "", ["esper"], None),
        "aud": ("other", ["esper-api"], ["other", "esper-api"], "", None, "esper-api "),
        "sub": ("", None, ["anna"], "anna\n", "../anna", "a" * 65, "\u0430nna", {"name": "anna"}, 0),
        "role": (
            "root",
            "Admin",
            "ADMIN",
            "admin ",
            " admin",
            ["admin"],
            {"admin": True},
            "",
            None,
            True,
            "viewer,admin",
        ),
        "kind": ("robot", None, "SERVICE"),
        "jti": ("", None, "0" * 31, "G" * 32, 7),
    }
    for name, values in wrong.items():
        changes |= {f"{name} {value!r}": {name: value} for value in values}
    text = json.dumps(forge.claims(role="viewer"))
    return {
        **{name: forge.signed(claims=forge.claims(**fields)) for name, fields in changes.items()},
        "one claim more": forge.signed(claims=forge.claims(scope="admin")),
        "role twice": forge.signed(claims=text.replace("{", '{"role": "admin", ', 1).encode()),
        "role twice, the other last": forge.signed(claims=(text[:-1] + ', "role": "admin"}').encode()),
        "role twice, one escaped": forge.signed(claims=(text[:-1] + ', "r\\u006fle": "admin"}').encode()),
        "claims that are a list": forge.signed(claims=[forge.claims()]),
        "claims of great depth": forge.signed(claims=b"[" * 5000),
        "no claims": forge.signed(claims={}),
    }


def _encodings(forge: Forge) -> dict[str, str]:
    head, claims, signature = forge.good.split(".")
    return {
        "too long": forge.signed(claims=as_json(forge.claims()) + b" " * 6000),
        "a space before": " " + forge.good,
        "a space behind": forge.good + " ",
        "a line behind": forge.good + "\n",
        "a null byte behind": forge.good + "\0",
        "a full-width letter": forge.good.replace("e", "\uff45", 1),
        "padding": f"{head}=.{claims}.{signature}",
        "the other base64": f"{head}.{claims}.{signature[:-2]}+/",
        "four parts": forge.good + ".AAAA",
        "five parts, as encrypted ones have": ".".join((head, "", claims, signature, "AAAA")),
        "two parts": f"{head}.{claims}",
        "a token in a token": forge.signed(forge.header(cty="JWT"), claims=forge.good.encode()),
        "an encrypted header": forge.signed({"alg": "dir", "enc": "A256GCM", "kid": forge.key.id}),
        "JSON instead of the compact form": json.dumps(
            {"protected": head, "payload": claims, "signature": signature}
        ),
        "nothing": "",
        "points alone": "..",
    }


def _signatures(forge: Forge) -> dict[str, str]:
    head, claims, signature = forge.good.split(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    again = int.from_bytes(raw[32:], "little") + ORDER
    other = forge.signed().split(".")
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_".index(signature[-1])
    spelled = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[last + 1]
    return {
        "no signature": f"{head}.{claims}.",
        "a signature cut short": forge.good[:-4],
        "a signature of zeros": f"{head}.{claims}.{part(bytes(64))}",
        "the signature of other claims": f"{head}.{claims}.{other[2]}",
        "the claims of another token": f"{head}.{other[1]}.{signature}",
        "the signature in its other form": f"{head}.{claims}.{part(raw[:32] + again.to_bytes(32, 'little'))}",
        "the signature with its spare bits set": f"{head}.{claims}.{signature[:-1]}{spelled}",
        "the signature twice": f"{head}.{claims}.{part(raw + raw)}",
        "the halves of the signature exchanged": f"{head}.{claims}.{part(raw[32:] + raw[:32])}",
    }
