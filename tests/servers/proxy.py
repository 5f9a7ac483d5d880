"""A TCP proxy that does to a server's replies what networks do: late, by drops, cut short, garbled."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

CHUNK = 65536


class Proxy:
    """Listens on a free port and passes bytes on to ``127.0.0.1:target``. Faults apply at once when set.

    ``delay`` seconds are waited before each piece of a reply is passed on. ``drip`` passes on one byte at a
    time, so many seconds apart. After ``cut_after`` bytes of replies, counted from when it was set, the
    connection is closed; after ``stall_after`` the rest is swallowed. ``garble`` changes each piece.
    """

    def __init__(self, target: int) -> None:
        self.delay = 0.0
        self.drip = 0.0
        self.garble: Callable[[bytes], bytes] | None = None
        self._cut: int | None = None
        self._stall: int | None = None
        self._target = target
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """The address for a client of Redis."""
        return f"redis://127.0.0.1:{self.port}/0"

    def cut_after(self, count: int) -> None:
        """Close the connection once ``count`` more bytes of replies were passed on."""
        self._cut = count

    def stall_after(self, count: int) -> None:
        """Swallow what comes after ``count`` more bytes of replies."""
        self._stall = count

    def heal(self) -> None:
        """Pass everything on as it comes, again."""
        self.delay = self.drip = 0.0
        self.garble = self._cut = self._stall = None

    def close(self) -> None:
        """Close the listener and every connection."""
        self._listener.close()
        for end in list(self._open):
            self._drop(end)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    client.close()
                    continue
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open |= {client, server}
                for work, source, sink in (
                    (self._requests, client, server),
                    (self._replies, server, client),
                ):
                    threading.Thread(target=self._pass, args=(work, source, sink), daemon=True).start()

    def _pass(
        self,
        send: Callable[[socket.socket, bytes], bool],
        source: socket.socket,
        sink: socket.socket,
    ) -> None:
        with contextlib.suppress(OSError):
            while (piece := source.recv(CHUNK)) and send(sink, piece):
                pass
        self._drop(source)
        self._drop(sink)

    def _requests(self, sink: socket.socket, piece: bytes) -> bool:
        sink.sendall(piece)
        return True

    def _replies(self, sink: socket.socket, piece: bytes) -> bool:
        time.sleep(self.delay)
        if self.garble is not None:
            piece = self.garble(piece)
        if self._stall is not None:
            piece, self._stall = piece[: self._stall], max(0, self._stall - len(piece))
        cut = self._cut is not None and len(piece) > self._cut
        if self._cut is not None:
            piece, self._cut = piece[: self._cut], max(0, self._cut - len(piece))
        if self.drip:
            for byte in piece:
                sink.sendall(bytes([byte]))
                time.sleep(self.drip)
        else:
            sink.sendall(piece)
        return not cut

    def _drop(self, end: socket.socket) -> None:
        self._open.discard(end)
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
