"""Real servers for tests, started on free ports, as root or not; each module is a pytest plugin."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import pytest

DYING_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")
"""Before a server's command: it ends with the tests, however they end.

By a program, for what Python runs between fork and exec may crash where other threads run.
"""


class CannotStart(Exception):
    """A server is not installed, or does not come up; the text says what it said."""


class Server(Protocol):
    """What is started for a test and ended after it."""

    def close(self) -> None: ...


S = TypeVar("S", bound=Server)


def started(server: S, start: Callable[[], object]) -> Iterator[S]:
    """``server`` while a test has it; where it cannot start, a failure if servers are required, or a skip."""
    try:
        try:
            start()
        except CannotStart as error:
            if os.environ.get("ESPER_REQUIRE_SERVERS") == "1" or os.environ.get("CI"):
                pytest.fail(str(error))
            pytest.skip(str(error))  # on a machine of one's own, without that server
        yield server
    finally:
        server.close()
