"""Which bytes over a connection are answered as those before them were, and which are not."""

from __future__ import annotations

import pytest

from esper.nissa.http.repeats import Repeats

GET = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n"


class Connection:
    """A server that answers each request with a head and a body, until ``now`` is 10."""

    def __init__(self) -> None:
        self.now = 0.0
        self.repeats = Repeats(clock=lambda: self.now)

    def answer(self, *packets: bytes, until: float | None = 10.0) -> None:
        for packet in packets:
            assert self.repeats.answer(packet, taken=True) is None
        if until is not None:
            self.repeats.keep(until)
        self.repeats.sent(b"head")
        self.repeats.sent(b"body")
        self.repeats.answered()

    def repeated(self, packet: bytes = GET, *, taken: bool = True) -> bool:
        found = self.repeats.answer(packet, taken=taken)
        assert found in (None, [b"head", b"body"])
        return found is not None


def test_the_same_bytes_are_answered_alike_until_that_holds_no_more() -> None:
    there = Connection()
    there.answer(GET)
    assert [there.repeated() for _ in range(3)] == [True] * 3
    there.now = 10.0
    assert not there.repeated()
    there.now = 0.0
    assert not there.repeated(), "one that the server has at hand is for the server"


def test_an_answer_that_nobody_says_holds_is_not_repeated() -> None:
    there = Connection()
    there.answer(GET, until=None)
    assert not there.repeated()


@pytest.mark.parametrize(
    "other",
    [GET.replace(b"*/*", b"*/a"), GET.replace(b"GET", b"HEAD"), GET[:-1], GET * 2, GET + b"\r\n", b"G"],
)
def test_other_bytes_are_not_and_end_it(other: bytes) -> None:
    there = Connection()
    there.answer(GET)
    assert not there.repeated(other)
    assert not there.repeated(GET)


def test_who_has_not_taken_the_last_answer_gets_none_from_here() -> None:
    there = Connection()
    there.answer(GET)
    assert not there.repeated(taken=False)
    assert not there.repeated(), "this would overtake the one before it"


@pytest.mark.parametrize(
    "packets",
    [
        [GET[:9], GET[9:]],
        [GET, GET],
        [GET * 2],
        [GET[:-2] + b"\n" + GET],
        [GET + b"G"],
        [GET[:-2] + b"Content-Length: 2\r\n\r\nab"],
        [b"POST" + GET[3:]],
        [GET.replace(b"1.1", b"1.0")],
        [GET.replace(b"\r\n", b"\n")],
        [b"GET /metrics HTTP/1.1\n\n" + GET],
        [b"PRI * HTTP/2.0\r\n\r\n"],
    ],
)
def test_only_one_request_that_came_by_itself_is_known_and_none_after_another(packets: list[bytes]) -> None:
    there = Connection()
    there.answer(*packets)
    assert not there.repeated(packets[-1])
    there.repeats.answered()
    there.answer(GET)
    assert not there.repeated()
