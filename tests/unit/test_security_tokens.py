"""Tokens: what is issued is accepted, and nothing else."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from token_attacks import RULES, Forge, attacks, part

from esper.errors import ConfigError, SecurityError, TokenRefused
from esper.security.keys import new_key
from esper.security.token_keys import LONGEST_SECONDS, TokenAuthority
from esper.security.token_trust import LOOK_SECONDS, MOST_REVOKED, Trusted, TrustedFile, read_trusted
from esper.security.tokens import TokenRules, TokenVerifier, issue, verify


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    return Forge.at(tmp_path)


def trusted_in(folder: Path) -> Trusted:
    trusted = read_trusted(folder / "tokens.json")
    assert trusted is not None
    return trusted


def accepted(token: str, trusted: Trusted) -> bool:
    try:
        verify(token, trusted, RULES)
    except TokenRefused as refused:
        return token != "" and token in f"{refused!r} {refused.hint} {refused.__cause__!r}"
    return True


# What is accepted


@pytest.mark.parametrize("role", ["viewer", "operator", "admin"])
def test_what_is_issued_is_accepted(tmp_path: Path, role: str) -> None:
    authority = TokenAuthority(tmp_path / "keys.json", tmp_path / "tokens.json")
    token, holder = issue(authority, RULES, name="anna@example.org", role=role, minutes=5)
    assert verify(token, trusted_in(tmp_path), RULES) == holder
    assert (holder.name, holder.role, holder.expires - holder.issued) == ("anna@example.org", role, 300)
    assert (tmp_path / "keys.json").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "keys.json").read_text().split('"key": "')[1][:43] not in repr(authority.signing_key())


def test_clocks_may_differ_by_half_a_minute(forge: Forge, tmp_path: Path) -> None:
    now = int(time.time())
    for times in (
        {"iat": now + 25, "nbf": now + 25, "exp": now + 600},
        {"iat": now - 600, "nbf": now - 600, "exp": now - 10},
    ):
        old = Trusted(trusted_in(tmp_path).keys, since=0)
        assert accepted(forge.signed(claims=forge.claims(**times)), old)


def test_people_get_longer_tokens_only_where_the_configuration_says_so(tmp_path: Path) -> None:
    authority = TokenAuthority(tmp_path / "keys.json", tmp_path / "tokens.json")
    longer = TokenRules(person_minutes=60)
    token, _ = issue(authority, longer, name="anna", role="viewer", person=True)
    assert verify(token, trusted_in(tmp_path), longer).name == "anna"
    with pytest.raises(TokenRefused, match="lasts too long"):
        verify(token, trusted_in(tmp_path), RULES)
    with pytest.raises(ConfigError, match="cannot last 60 minutes"):
        issue(authority, longer, name="robot", role="viewer", minutes=60)


@pytest.mark.parametrize(
    "fields",
    [{"service_minutes": 16}, {"service_minutes": 0}, {"person_minutes": 721}, {"person_minutes": "60"}],
)
def test_no_configuration_makes_tokens_that_last(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"nissa.tokens.{next(iter(fields))}"):
        TokenRules(**fields)


@pytest.mark.parametrize(
    "fields",
    [{"name": ""}, {"name": "a b"}, {"name": "a" * 65}, {"role": "root"}, {"minutes": 16}, {"minutes": 0}],
)
def test_what_would_be_refused_is_not_issued(tmp_path: Path, fields: dict[str, Any]) -> None:
    authority = TokenAuthority(tmp_path / "keys.json", tmp_path / "tokens.json")
    with pytest.raises(ConfigError):
        issue(authority, RULES, **{"name": "anna", "role": "viewer", **fields})


# What is not


def test_known_attacks_are_refused(forge: Forge, tmp_path: Path) -> None:
    trusted = trusted_in(tmp_path)
    assert accepted(forge.good, trusted)
    assert accepted(forge.signed(), trusted)  # the forge makes good tokens, where it is told nothing else
    tried = attacks(forge)
    assert len(tried) > 150
    assert [name for name, token in tried.items() if accepted(token, trusted)] == []


def test_mutated_tokens_are_refused(forge: Forge, tmp_path: Path) -> None:
    trusted, draw = trusted_in(tmp_path), random.Random(7)
    others = [forge.signed(claims=forge.claims(role=role)) for role in ("viewer", "operator", "admin")]
    genuine = {forge.good, *others}
    made = 0
    while made < 20_000:
        token = mutated(draw.choice([forge.good, *others]), others, draw)
        if token not in genuine:
            made += 1
            assert not accepted(token, trusted), token


def mutated(token: str, others: list[str], draw: random.Random) -> str:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    at = draw.randrange(len(token))
    match draw.randrange(6):
        case 0:  # a letter for another
            return token[:at] + draw.choice(letters) + token[at + 1 :]
        case 1:  # a bit of what a letter stands for
            place = letters.find(token[at])
            return (
                token
                if place < 0
                else token[:at] + letters[place ^ (1 << draw.randrange(6))] + token[at + 1 :]
            )
        case 2:  # a piece away
            return token[:at] + token[at + draw.randrange(1, 5) :]
        case 3:  # a piece more
            return (
                token[:at] + "".join(draw.choices(letters + ".=+/ \n\0", k=draw.randrange(1, 5))) + token[at:]
            )
        case 4:  # parts of several tokens
            parts = [draw.choice([token, *others]).split(".")[index] for index in range(3)]
            return ".".join(parts)
        case _:  # two letters exchanged
            to = draw.randrange(len(token))
            first, second = sorted((at, to))
            swapped = token[second] + token[first + 1 : second] + token[first]
            return token if first == second else token[:first] + swapped + token[second + 1 :]


# Keys and what was revoked


def test_a_rotation_keeps_older_tokens_valid_until_their_key_is_retired(forge: Forge, tmp_path: Path) -> None:
    forge.authority.rotate(new_key())
    newer, _ = issue(forge.authority, RULES, name="anna", role="viewer")
    assert accepted(forge.good, trusted_in(tmp_path))
    with pytest.raises(SecurityError, match="is the one that signs"):
        forge.authority.retire(forge.authority.keys().primary.id)
    forge.authority.retire(forge.key.id)
    assert not accepted(forge.good, trusted_in(tmp_path))
    assert accepted(newer, trusted_in(tmp_path))


def test_a_key_that_was_retired_comes_back_with_no_token_that_is_issued_meanwhile(
    forge: Forge, tmp_path: Path
) -> None:
    """The worst moment: another process has read the keys from before, and publishes after."""
    forge.authority.rotate(new_key())
    slow = TokenAuthority(tmp_path / "token_keys.json", tmp_path / "tokens.json")
    load_or_make = slow._source.load_or_make

    def read_then_retired() -> Any:
        ring = load_or_make()
        forge.authority.retire(forge.key.id)
        return ring

    slow._source.load_or_make = read_then_retired  # type: ignore[method-assign]
    issue(slow, RULES, name="bob", role="viewer")
    assert not accepted(forge.good, trusted_in(tmp_path))


def test_many_at_once_lose_nothing(forge: Forge, tmp_path: Path) -> None:
    ids = [f"{number:032x}" for number in range(40)]

    def work(token_id: str) -> str:
        authority = TokenAuthority(tmp_path / "token_keys.json", tmp_path / "tokens.json")
        authority.revoke(token_id)
        return issue(authority, RULES, name="bob", role="viewer")[0]

    with ThreadPoolExecutor(8) as pool:
        tokens = list(pool.map(work, ids))
    trusted = trusted_in(tmp_path)
    assert set(trusted.ids) == set(ids)
    assert all(accepted(token, trusted) for token in tokens)


def test_one_token_or_all_of_a_name_can_be_revoked(forge: Forge, tmp_path: Path) -> None:
    tokens = {name: issue(forge.authority, RULES, name=name, role="viewer") for name in ("bob", "carl")}
    forge.authority.revoke(tokens["carl"][1].id)
    forge.authority.revoke_all("bob")
    trusted = trusted_in(tmp_path)
    assert [accepted(token, trusted) for token, _ in tokens.values()] == [False, False]
    assert accepted(forge.good, trusted)
    again, _ = issue(forge.authority, RULES, name="bob", role="viewer")  # within the same second
    assert accepted(again, trusted_in(tmp_path))


def test_where_what_was_revoked_is_lost_older_tokens_are_refused(forge: Forge, tmp_path: Path) -> None:
    (tmp_path / "tokens.json").unlink()
    older = forge.signed(claims=forge.claims(iat=int(time.time()) - 5, nbf=int(time.time()) - 5))
    token, _ = issue(forge.authority, RULES, name="anna", role="viewer")
    assert accepted(token, trusted_in(tmp_path))
    assert not accepted(older, trusted_in(tmp_path))


def test_what_no_token_can_match_any_more_is_forgotten_and_the_rest_is_bounded(forge: Forge) -> None:
    now = int(time.time())
    trusted = Trusted({}, 0, {"a": now - LONGEST_SECONDS, "b": now}, {"c": now - 1, "d": now + 9})
    kept = trusted.without_expired(now, LONGEST_SECONDS)
    assert (kept.names, kept.ids) == ({"b": now}, {"d": now + 9})
    full = Trusted({}, 0, {}, {f"{number:032x}": now + 9 for number in range(MOST_REVOKED)})
    path = forge.authority._trusted
    path.write_text(full.to_text())
    assert path.stat().st_size < 2**20
    with pytest.raises(SecurityError, match="are revoked"):
        forge.authority.revoke("f" * 32)


def test_a_server_knows_within_a_second(forge: Forge, tmp_path: Path) -> None:
    read, verifier = TrustedFile(tmp_path / "tokens.json"), TokenVerifier(RULES)
    assert verifier.verify(forge.good, read()).name == "anna"
    forge.authority.revoke_all("anna")
    time.sleep(LOOK_SECONDS + 0.1)
    with pytest.raises(TokenRefused, match="revoked"):
        verifier.verify(forge.good, read())


def test_a_token_that_was_seen_still_expires(
    forge: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted, verifier = trusted_in(tmp_path), TokenVerifier(RULES)
    verifier.verify(forge.good, trusted)
    later = time.time() + 15 * 60 + 31
    monkeypatch.setattr("esper.security.tokens.time.time", lambda: later)
    with pytest.raises(TokenRefused, match="expired"):
        verifier.verify(forge.good, trusted)


def test_where_nothing_says_what_is_trusted_nothing_is(forge: Forge, tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    whole = path.read_text()
    path.chmod(0o666)
    with pytest.raises(SecurityError, match="others can change"):
        TrustedFile(path)()
    path.chmod(0o644)
    for damaged in ("", "[]", "{}", whole[:-9], whole.replace('"keys": {', '"keys": {"x": "AAAA",')):
        path.write_text(damaged)
        with pytest.raises(SecurityError, match="damaged"):
            TrustedFile(path)()
    path.unlink()
    with pytest.raises(SecurityError, match="esper token issue"):
        TrustedFile(path)()


def test_no_part_of_a_token_is_read_twice_in_two_ways(forge: Forge, tmp_path: Path) -> None:
    """What a lenient reader would take for the same token is another one."""
    head, claims, signature = forge.good.split(".")
    for spelled in (f"{head}.{claims}.{signature}=", f"{head}.{claims}.{signature}".swapcase(), part(b"{}")):
        assert not accepted(spelled, trusted_in(tmp_path))
