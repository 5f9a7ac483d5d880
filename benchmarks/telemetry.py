"""Messages a second through the buffer and its writer into Redis, against redis-py's own pipelined XADD.

A message is the packed health of a layer of four seeds. The peer adds the same entry to a stream of the same
bound, 500 commands a pipeline. Goals: at least 100,000 a second, not below 1.0x. Times are those of the wall.
Starts a server of its own.

Run: python benchmarks/telemetry.py [--messages N] [--rounds N]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np

from esper.messages import SeedState
from esper.nissa.telemetry.health_record import pack
from esper.nissa.telemetry.redis_stream import SIGNALS_KEPT, RedisStreams
from esper.nissa.telemetry.telemetry import CAPACITY, Telemetry
from esper.urza.redis_client import BoundedRedis

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from servers.redis import RedisServer
from telemetry_support import everything

LEAST_RATE, LEAST_RATIO = 100_000, 1.0
PIPELINE = 500
RECORD = pack("stage1.conv2", 3, 8, 2, [SeedState.TRAINING] * 4, np.ones((4, 6), np.float32))


def peer_rate(server: RedisServer, messages: int) -> float:
    """Messages a second of redis-py alone."""
    with server.client() as client:
        began = time.perf_counter()
        for _ in range(messages // PIPELINE):
            pipeline = client.pipeline(transaction=False)
            for _ in range(PIPELINE):
                entry = {"name": "health", "at": int(1000 * time.time()), "place": 0, "record": RECORD}
                pipeline.xadd("peer", entry, maxlen=SIGNALS_KEPT, approximate=True)
            pipeline.execute()
        return messages / (time.perf_counter() - began)


def our_rate(server: RedisServer, folder: Path, messages: int) -> float:
    """Messages a second from the call that training makes to the server's last reply; none is dropped."""
    sink = RedisStreams(BoundedRedis(server.url), "run")
    telemetry = Telemetry([sink], folder / "journal.jsonl", lambda: 0, allow=everything)
    with closing(telemetry):
        began = time.perf_counter()
        for sent in range(messages):
            telemetry.health(RECORD)
            while sent % 1000 == 0 and sent - telemetry.counts()["redis"].written > CAPACITY // 2:
                time.sleep(0.001)
    took = time.perf_counter() - began
    counts = telemetry.counts()["redis"]
    assert (counts.written, counts.dropped, counts.errors) == (messages, 0, 0), counts
    return messages / took


def rates(server: RedisServer, folder: Path, messages: int, rounds: int) -> bool:
    """Compare the two in turn; whether the goals are reached."""
    pairs = []
    for turn in range(rounds):
        if turn % 2:
            ours, peer = our_rate(server, folder, messages), peer_rate(server, messages)
        else:
            peer, ours = peer_rate(server, messages), our_rate(server, folder, messages)
        pairs.append((peer, ours))
    peer, ours = (statistics.median(rate) for rate in zip(*pairs, strict=True))
    ratio = statistics.median(ours / peer for peer, ours in pairs)
    print(f"  messages a second: redis-py {peer:,.0f}, telemetry {ours:,.0f}, ratio {ratio:.2f}")
    return ours >= LEAST_RATE and ratio >= LEAST_RATIO


def main() -> None:
    """Compare, print, and exit with 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    print(f"telemetry; load of this machine {os.getloadavg()[0]:.1f}")
    with closing(RedisServer()) as server, tempfile.TemporaryDirectory() as name:
        server.start()
        fast = rates(server, Path(name), asked.messages, asked.rounds)
    goal = f"at least {LEAST_RATE:,} a second and {LEAST_RATIO}x"
    print(f"  goal: {goal}: {'reached' if fast else 'MISSED'}")
    raise SystemExit(not fast)


if __name__ == "__main__":
    main()
