"""Whether a server is on this machine: anywhere else it is asked for over TLS only."""

from __future__ import annotations

import ipaddress


def is_local(host: str) -> bool:
    """Whether ``host`` is loopback, a unix socket's path, or nothing, which stands for either."""
    if host in ("", "localhost") or host.startswith(("/", "@")):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
