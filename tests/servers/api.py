"""Servers of HTTP in a thread of this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from starlette.applications import Starlette
from waiting import LONG

from esper.nissa.http.server import MetricsServer


def served_in_a_thread(app: Starlette) -> AbstractContextManager[MetricsServer]:
    """A server of ``app``, made by ``create_app``, on a free port of its own, as long as this lasts."""
    return running(MetricsServer(app, port=0, on_stop=app.state.hub.stop))


@contextmanager
def running(server: MetricsServer) -> Iterator[MetricsServer]:
    """``server``, which runs as long as this lasts."""
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(LONG)
        assert not thread.is_alive()
