"""What one process changes, another hears of, whatever happens to the server in between."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise

import pytest
from servers.proxy import Proxy
from servers.redis import RedisServer
from waiting import LONG, until

from esper.errors import ConfigError
from esper.urza import invalidation
from esper.urza.invalidation import Invalidation

LISTENER = f"""
import sys
from esper.urza import invalidation
invalidation.SILENCE_SECONDS = {LONG}  # of a server that is only slow
messages = invalidation.Invalidation(sys.argv[1], seconds={LONG})
messages.listen(lambda kernel_id: print(kernel_id, flush=True))
sys.stdin.read()
messages.close()
print("closed", flush=True)
"""


class Listener:
    """Another process that writes down what it hears."""

    def __init__(self, url: str) -> None:
        self.heard: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-c", LISTENER, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def close(self) -> None:
        """End it, and see that it ended well and said nothing else."""
        assert self.process.stdin is not None
        assert self.process.stderr is not None
        self.process.stdin.close()
        try:
            assert self.process.wait(LONG) == 0
        finally:
            self.process.kill()
            self.reader.join(LONG)
            errors = self.process.stderr.read()
            self.process.stderr.close()
        assert errors == ""
        assert self.heard[-1] == "closed"

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.heard.append(line.strip())


@pytest.fixture
def listener(own_redis: RedisServer) -> Iterator[Listener]:
    with closing(Listener(own_redis.url)) as listener:
        until(lambda: listener.heard == ["None"])
        yield listener


@pytest.fixture
def messages(own_redis: RedisServer) -> Iterator[Invalidation]:
    with closing(Invalidation(own_redis.url, seconds=LONG)) as messages:
        yield messages


def test_another_process_hears_of_each_kernel(messages: Invalidation, listener: Listener) -> None:
    messages.publish("kernel_a")
    messages.publish("kernel_ü")
    until(lambda: listener.heard == ["None", "kernel_a", "kernel_ü"])
    assert messages.errors == 0


def test_libraries_with_other_prefixes_do_not_hear_each_other(
    own_redis: RedisServer, messages: Invalidation, listener: Listener
) -> None:
    with closing(Invalidation(own_redis.url, prefix="another:", seconds=LONG)) as another:
        another.publish("kernel_x")
    messages.publish("kernel_a")
    until(lambda: "kernel_a" in listener.heard)
    assert "kernel_x" not in listener.heard


def test_after_a_restart_everything_may_have_changed(
    own_redis: RedisServer, messages: Invalidation, listener: Listener
) -> None:
    own_redis.kill()
    messages.publish("kernel_lost")
    assert messages.errors == 1
    own_redis.start()
    until(lambda: listener.heard.count("None") >= 2)
    time.sleep(invalidation.RETRY_SECONDS)  # what could not be told is kept back this long
    messages.publish("kernel_b")  # comes as "everything", since a message before it was lost
    until(lambda: listener.heard.count("None") >= 3)
    messages.publish("kernel_c")
    until(lambda: listener.heard[-1] == "kernel_c")
    assert "kernel_lost" not in listener.heard


def test_a_listener_makes_up_for_what_it_could_not_tell(
    own_redis: RedisServer, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Invalidation(own_redis.url)) as messages:
        heard: list[str | None] = []
        messages.listen(heard.append)
        until(lambda: messages.listening)
        asked: list[float] = []
        ask = messages._server.ask
        monkeypatch.setattr(
            messages._server, "ask", lambda *words: (asked.append(time.monotonic()), ask(*words))
        )
        own_redis.pause()
        for _ in range(100):
            messages.publish("kernel_a")
        between = [later - earlier for earlier, later in pairwise(asked)]
        assert all(each >= invalidation.RETRY_SECONDS for each in between)  # it is left alone
        own_redis.resume()
        until(lambda: heard.count(None) >= 2)
        until(lambda: listener.heard.count("None") >= 2)


def test_closing_tells_what_is_still_to_be_told(own_redis: RedisServer, listener: Listener) -> None:
    messages = Invalidation(own_redis.url, seconds=LONG)
    own_redis.kill()
    messages.publish("kernel_a")
    own_redis.start()
    until(lambda: listener.heard.count("None") == 2)  # it is connected anew
    messages.close()
    until(lambda: listener.heard.count("None") == 3)


def test_a_connection_that_died_without_a_word_is_made_anew(own_redis: RedisServer) -> None:
    heard: list[str | None] = []
    with Proxy(own_redis.port) as proxy, closing(Invalidation(proxy.url)) as messages:

        def told() -> bool:
            messages.publish("kernel_a")  # which a busy machine may be too slow for
            return "kernel_a" in heard

        messages.listen(heard.append)
        until(lambda: messages.listening)
        proxy.stall_after(0)  # as when a router in between forgets the connection
        until(lambda: not messages.listening)
        before = heard.count(None)
        proxy.heal()
        until(lambda: heard.count(None) > before)
        until(told)


def test_it_can_be_closed_while_the_server_is_away_and_begins_when_it_comes(own_redis: RedisServer) -> None:
    heard: list[str | None] = []
    own_redis.kill()
    messages = Invalidation(own_redis.url, seconds=LONG)
    messages.listen(heard.append)
    until(lambda: messages.errors > 0)
    own_redis.start()
    until(lambda: heard[:1] == [None])
    own_redis.kill()
    until(lambda: not messages.listening)
    messages.close()


def test_a_url_that_is_none_is_a_mistake_in_the_configuration() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Invalidation("localhost:6379")
