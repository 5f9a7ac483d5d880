"""Plain HTTP on this machine for requests that carry a token: to one's own server, or root's, alone.

Where there is no TLS, nothing says who has taken a port of loopback: it may be any user of the machine. What
Linux knows of the connection does, and cannot be had by who comes first.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Final

from esper.errors import SecurityError

_TABLES: Final = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))
_ACCEPT_SECONDS: Final = 3.0
"""How long a server may take to accept a connection; before that it is nobody's."""


class OwnConnection(HTTPConnection):
    """Plain HTTP that sends nothing to what another user runs; SecurityError then."""

    def connect(self) -> None:
        """As of any connection."""
        super().connect()
        uid = _uid_of_peer(self.sock)
        if uid not in (os.geteuid(), 0):
            self.close()
            who = "somebody unknown" if uid is None else f"another user (uid {uid})"
            raise SecurityError(
                f"at {self.host} port {self.port} {who} listens, and is shown no token",
                hint="use TLS, or unset ESPER_TOKEN",
            )


def _uid_of_peer(sock: socket.socket) -> int | None:
    """Who accepted this connection of loopback; None if that cannot be told, as on other systems."""
    until = time.monotonic() + _ACCEPT_SECONDS
    wanted = [
        [_in_table(end, mapped=mapped) for end in (sock.getpeername(), sock.getsockname())]
        for mapped in (False, True)
    ]
    while time.monotonic() < until:
        for line in _connections():
            if line[1:3] in wanted and line[9] != "0":  # the inode: it has one once it was accepted
                return int(line[7])
        time.sleep(0.01)
    return None


def _connections() -> list[list[str]]:
    lines = [line for table in _TABLES if table.exists() for line in table.read_text().splitlines()[1:]]
    return [line.split() for line in lines]


def _in_table(end: tuple[object, ...], *, mapped: bool) -> str:
    """An address and port as Linux lists them: words of 32 bits in the byte order of the machine."""
    host, port = str(end[0]).partition("%")[0], end[1]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    data = socket.inet_pton(family, host)
    if mapped and family == socket.AF_INET:  # of a server that listens for both
        data = bytes(10) + b"\xff\xff" + data
    words = struct.unpack(f"={len(data) // 4}I", data)
    return f"{''.join(f'{word:08X}' for word in words)}:{port:04X}"
