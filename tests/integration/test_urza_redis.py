"""What the Redis tier refuses, what it keeps to itself, and what it holds for how long."""

from __future__ import annotations

import hashlib
import time
from contextlib import closing
from pathlib import Path

import pytest
from servers.redis import RedisServer, started
from servers.tls import make_certificates
from waiting import LONG, until

from esper.errors import ConfigError, TierUnavailable
from esper.urza.redis import RedisTier
from esper.urza.tiers import MISSING


def refusal(url: str) -> str:
    """What is said of a server that is there and does not let us in."""
    with closing(RedisTier(url, seconds=LONG)) as tier, pytest.raises(TierUnavailable) as caught:
        tier.ping()
    return str(caught.value)


# What is refused, and what is not said


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://localhost",
        "redis://localhost:port/0",
        "redis://localhost/0?socket_timeout=10",
        "rediss://host/0?ssl_cert_reqs=none",
        "rediss://host/0?ssl_check_hostname=false",
        "rediss://host/0?ssl_ca_certs=/nowhere/authority.pem",
    ],
)
def test_a_url_that_is_none_or_asks_for_what_it_may_not_is_a_mistake_in_the_configuration(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RedisTier(url)
    assert caught.value.hint


@pytest.mark.parametrize(
    "url", ["redis://:word@cache.example:6379/0", "redis://192.0.2.7", "redis://[2001:db8::1]/0"]
)
def test_another_machine_is_reached_over_tls_only(url: str) -> None:
    with pytest.raises(ConfigError, match=r"on another machine.* rediss://") as caught:
        RedisTier(url)
    assert "word" not in str(caught.value)
    for local in (
        "redis://127.0.0.1",
        "redis://[::1]:7/0",
        "redis://localhost",
        url.replace("redis", "rediss"),
    ):
        RedisTier(local).close()


@pytest.mark.parametrize("password", ["correct horse", "p@ss:w/rd%"])
def test_the_password_opens_and_is_never_shown(password: str) -> None:
    for server in started(RedisServer(password=password)):
        with closing(RedisTier(server.url, seconds=LONG)) as tier:
            tier.put("a", b"1")
            assert tier.get("a") == b"1"
            assert password not in repr(tier)
    secret = "a-password-that-is-nowhere-else"
    with pytest.raises(ConfigError) as caught:
        RedisTier(f"redis://:{secret}@localhost:port/0")
    assert secret not in str(caught.value)
    # A server without AUTH repeats what it was sent.
    renamed = RedisServer("--rename-command", "AUTH", "")
    for server in started(renamed):
        url = server.url.replace("redis://", f"redis://:{secret}@")
        with closing(RedisTier(url)) as tier:
            assert secret not in repr(tier)
        message = refusal(url)
        assert "unknown command" in message
        assert secret not in message


def test_a_wrong_password_is_said_to_be_one() -> None:
    for server in started(RedisServer(password="right")):
        assert "invalid username-password pair" in refusal(server.url.replace("right", "wrong"))


def test_a_certificate_of_a_stranger_is_refused(redis_tls_server: RedisServer, tmp_path: Path) -> None:
    stranger = make_certificates(tmp_path)
    url = f"rediss://127.0.0.1:{redis_tls_server.port}/0"
    for untrusted in (url, f"{url}?ssl_ca_certs={stranger.authority}"):
        message = refusal(untrusted)
        assert "CERTIFICATE_VERIFY_FAILED" in message


def test_a_certificate_for_another_host_is_refused() -> None:
    server = RedisServer(tls=True)
    server.certificates = make_certificates(server.folder, host="127.0.0.2")
    for running in started(server, wait=False):
        until(lambda url=running.url: "refused" not in refusal(url))  # it listens
        assert "certificate is not valid for '127.0.0.1'" in refusal(running.url)


# What it holds


def test_entries_go_after_about_their_time_and_not_all_at_once(redis_server: RedisServer) -> None:
    with closing(RedisTier(redis_server.url, seconds=LONG, ttl=1000)) as tier:
        keys = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(100)]
        tier.put_many(dict.fromkeys(keys, b"1"))
        with redis_server.client() as client:
            left = [client.pttl(f"esper:{key}") / 1000 for key in keys]
    assert 890 < min(left) < 950
    assert 1050 < max(left) <= 1100
    with closing(RedisTier(redis_server.url, seconds=LONG, ttl=0.05)) as tier:
        tier.put("a", b"1")
        time.sleep(0.2)
        assert tier.get("a") is MISSING


def test_what_is_too_large_is_not_put_and_does_not_leave_an_older_value(redis_server: RedisServer) -> None:
    with closing(RedisTier(redis_server.url, seconds=LONG, max_value_bytes=10)) as tier:
        tier.put_many({"a": b"x" * 10, "b": b"1"})
        tier.put_many({"a": b"x" * 11, "b": b"2", "c": b"x" * 11})
        assert tier.get_many(["a", "b", "c"]) == {"b": b"2"}


def test_libraries_with_other_prefixes_do_not_see_each_other(redis_server: RedisServer) -> None:
    with (
        closing(RedisTier(redis_server.url, seconds=LONG, prefix="one:")) as one,
        closing(RedisTier(redis_server.url, seconds=LONG, prefix="two:")) as two,
    ):
        one.put("a", b"1")
        assert two.get("a") is MISSING
        two.delete("a")
        assert one.get("a") == b"1"
