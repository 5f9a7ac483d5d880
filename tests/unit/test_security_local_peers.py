"""Whose process is at the other end of a connection to this machine, as the system knows it."""

from __future__ import annotations

import os
import socket

import pytest

from esper.errors import SecurityError
from esper.security import local_peers
from esper.security.local_peers import OwnConnection


@pytest.mark.parametrize(
    ("listening", "asked"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1")]
)
def test_who_has_accepted_a_connection_is_found(listening: str, asked: str) -> None:
    family = socket.AF_INET6 if ":" in listening else socket.AF_INET
    with (
        socket.create_server((listening, 0), family=family, dualstack_ipv6=listening == "::") as server,
        socket.create_connection((asked, server.getsockname()[1])) as client,
        server.accept()[0],
    ):
        assert local_peers._uid_of_peer(client) == os.getuid()


def test_of_a_connection_that_nobody_accepts_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_peers, "_ACCEPT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        connection = OwnConnection("127.0.0.1", server.getsockname()[1])
        with pytest.raises(SecurityError, match="somebody unknown listens"):
            connection.request("GET", "/", headers={"Authorization": "Bearer secret"})
        with server.accept()[0] as accepted:
            assert accepted.recv(1) == b"", "it is closed, and nothing was sent"
