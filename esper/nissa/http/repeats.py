"""Answers a client that asks the same again within a moment as it was answered, without asking anybody.

The application says until when its answer holds. Whoever lets clients in keeps it from doing so where an
answer depends on more than the bytes of the request: on a token, a certificate, or a rate.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from typing import Final, cast

_ONE_REQUEST: Final = re.compile(rb"(?:GET|HEAD) [!-~]+ HTTP/1\.1\r\n(?:[!-9;-~]+:[\t -~]*\r\n)*\r\n")
"""The head of one request whose body, if it has one, has not come with it."""


class Repeats:
    """The last answer over one connection, and the packet that was its whole request.

    What came in several packets, or with other requests, is not repeated, nor anything after it.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._all_answered = True
        self._packet: bytes | None = None
        self._answer: list[bytes] = []
        self._until = 0.0

    def answer(self, packet: bytes, *, taken: bool) -> list[bytes] | None:
        """What to send for ``packet``, which has just come; None: it is for the server to answer.

        ``taken``: the client has taken what it was sent before.
        """
        if self._all_answered and packet == self._packet and taken and self._clock() < self._until:
            return self._answer
        self._packet = packet if self._all_answered else None
        self._all_answered, self._until, self._answer = False, 0.0, []
        return None

    def keep(self, until: float) -> None:
        """The answer that is about to be sent holds until then (``time.monotonic``).

        That is soon: the server does not know of what is repeated, and its idle time runs on.
        """
        self._until = until

    def sent(self, data: bytes) -> None:
        """The server sends these bytes."""
        if self._until:
            self._answer.append(data)

    def answered(self) -> None:
        """The server has sent an answer whole, and waits for another request."""
        self._all_answered = self._packet is not None and _ONE_REQUEST.fullmatch(self._packet) is not None


class RepeatingProtocol(asyncio.StreamReaderProtocol):
    """Streams for ``serve``, which is given the Repeats of its connection besides."""

    def __init__(
        self,
        serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter, Repeats], Awaitable[None]],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._repeats = repeats = Repeats()
        reader = asyncio.StreamReader(loop=loop)
        super().__init__(reader, lambda reader, writer: serve(reader, writer, repeats), loop=loop)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As of any protocol."""
        self._to_client = cast(asyncio.Transport, transport)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """As of any protocol."""
        answer = self._repeats.answer(data, taken=not self._to_client.get_write_buffer_size())
        if answer is None:
            super().data_received(data)
        else:
            self._to_client.writelines(answer)
