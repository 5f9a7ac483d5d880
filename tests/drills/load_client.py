"""Asks for /metrics so many times a second, on a schedule that does not wait for answers.

It stands for other machines, so it costs as little as may be: one thread, four system calls a request, the
lowest priority. Answers are looked for when the next request is due: their times are so much too long at
most. Prints a Load as JSON.

Run: python tests/drills/load_client.py PORT RATE SECONDS
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from dataclasses import asdict, dataclass

CONNECTIONS = 16
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


@dataclass(frozen=True)
class Load:
    """What requests came to, in seconds from when each was due; ``cpu`` is what the client used."""

    asked: int
    errors: int
    median: float
    p99: float
    longest: float
    cpu: float


class Client:
    """Connections, and what they have to say."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.poll = select.epoll()
        self.free: list[socket.socket] = []
        self.asked: dict[int, tuple[socket.socket, float]] = {}
        self.got: dict[int, bytes] = {}
        self.waits: list[float] = []
        self.errors: list[bytes] = []
        for _ in range(CONNECTIONS):
            self.connect()

    def connect(self) -> None:
        made = socket.create_connection(("127.0.0.1", self.port))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.poll.register(made, select.EPOLLIN)
        self.free.append(made)

    def ask(self, due: float) -> None:
        connection = self.free.pop()
        connection.send(REQUEST)
        self.asked[connection.fileno()] = connection, due

    def collect(self, seconds: float) -> None:
        """Take what has come, or comes within ``seconds``."""
        for number, _ in self.poll.poll(seconds):
            if number not in self.asked:
                self.closed(next(each for each in self.free if each.fileno() == number))
                continue
            connection, due = self.asked[number]
            try:
                piece = connection.recv(1 << 18)
            except ConnectionError:
                piece = b""
            data = self.got.pop(number, b"") + piece
            if piece and not _whole(data):
                self.got[number] = data
                continue
            del self.asked[number]
            self.free.append(connection)
            self.waits.append(time.monotonic() - due)
            if not piece or data[9:12] != b"200":
                self.errors.append(data[:60] or b"connection lost")
            if not piece or b"\r\nconnection: close\r\n" in data:
                self.closed(connection)

    def closed(self, connection: socket.socket) -> None:
        """Another in its place."""
        self.free.remove(connection)
        self.poll.unregister(connection)
        connection.close()
        self.connect()


def _whole(data: bytes) -> bool:
    head, at = data.find(b"\r\n\r\n"), data.find(b"\r\ncontent-length: ")
    return 0 < at < head and len(data) >= head + 4 + int(data[at + 18 : data.find(b"\r", at + 18)])


def ask_all(port: int, rate: float, seconds: float) -> Load:
    """Ask, and wait for all answers."""
    client, count, sent = Client(port), int(rate * seconds), 0
    begin, cpu = time.monotonic() + 0.05, time.process_time()
    due = begin
    while len(client.waits) < count:
        while sent < count and client.free and due <= time.monotonic():
            client.ask(due)
            sent += 1
            due = begin + sent / rate
        if sent < count and client.free:
            time.sleep(max(0.0, due - time.monotonic()))
            client.collect(0)
        else:
            client.collect(1)
    cpu = time.process_time() - cpu
    waits = sorted(client.waits)
    return Load(count, len(client.errors), waits[count // 2], waits[int(count * 0.99)], waits[-1], cpu)


if __name__ == "__main__":
    os.nice(19)
    port, rate, seconds = sys.argv[1:]
    print(json.dumps(asdict(ask_all(int(port), float(rate), float(seconds)))))
