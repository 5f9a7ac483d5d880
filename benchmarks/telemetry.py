"""Messages a second through the buffer and its writer into Redis, against redis-py's own pipelined XADD; and
what a step of training costs with all of telemetry, against the same step with none.

A message is the packed health of a layer of four seeds. The peer adds the same entry to a stream of the same
bound, 500 commands a pipeline. Goals: at least 100,000 a second, not below 1.0x; at most 1 % a step. The
steps are those of ``esper train``: epochs of one run in turn with journal, Redis, JSON lines and TensorBoard,
and with none of them; one thread trains. Times are those of the wall. Starts a server of its own.

Run: python benchmarks/telemetry.py [--messages N] [--rounds N] [--experiment NAME] [--pairs N]
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
import torch

from esper.assembly.training import build_training
from esper.kasmina import observe
from esper.messages import SeedState
from esper.nissa.telemetry.health_record import pack
from esper.nissa.telemetry.redis_stream import SIGNALS_KEPT, RedisStreams
from esper.nissa.telemetry.telemetry import CAPACITY, Telemetry
from esper.tolaria.trainer import Trainer
from esper.urza.redis_client import BoundedRedis
from esper_cli.config import compose

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from servers.redis import RedisServer

LEAST_RATE, LEAST_RATIO, MOST_COST = 100_000, 1.0, 1.0
PIPELINE = 500
RECORD = pack("stage1.conv2", 3, 8, 2, [SeedState.TRAINING] * 4, np.ones((4, 6), np.float32))
SINKS = "nissa/sinks=[redis,jsonl,tensorboard]"


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
    telemetry = Telemetry([sink], folder / "journal.jsonl", lambda: 0, allow=lambda _, fields: fields)
    with closing(telemetry):
        began = time.perf_counter()
        for sent in range(messages):
            telemetry.health(RECORD)
            while sent % 1000 == 0 and sent - telemetry.counts()["redis"].written > CAPACITY // 2:
                time.sleep(0.001)
        while telemetry.counts()["redis"].written < messages:
            time.sleep(0.0005)
        took = time.perf_counter() - began
        counts = telemetry.counts()["redis"]
    assert (counts.dropped, counts.errors) == (0, 0), counts
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


def epoch_seconds(trainer: Trainer, epoch: int, *, told: bool) -> tuple[float, float]:
    """Seconds of an epoch, told to journal and sinks or to nobody: by the wall, and of all threads."""
    recorder = trainer.recorder
    kept = recorder.journal, recorder.telemetry
    if not told:
        recorder.journal = recorder.telemetry = None
    wall, cpu = time.perf_counter(), time.process_time()
    trainer.run_epoch(epoch)
    took = time.perf_counter() - wall, time.process_time() - cpu
    recorder.journal, recorder.telemetry = kept
    return took


def watched_seconds(trainer: Trainer, calls: int = 500) -> float:
    """Seconds that training spends in telling of a step that is watched."""
    observe(trainer.model, True)
    trainer.model(trainer.batches.x[:16]).sum().backward()
    observe(trainer.model, False)
    began = time.perf_counter()
    for step in range(calls):
        trainer.recorder.emit("step", epoch=0, step=step, steps=calls, loss=1.0)
        trainer.recorder.health(0, step, trainer.model)
    return (time.perf_counter() - began) / calls


def cost(server: RedisServer, folder: Path, experiment: str, count: int) -> bool:
    """The share of a step that telemetry takes; whether the goal is reached."""
    os.environ["ESPER_REDIS_URL"] = server.url
    places = [f"runs={folder}", f"security.path={folder}/keys.json", "urza=memory", "tamiyo=never"]
    cfg = compose([f"+experiment={experiment}", SINKS, f"tolaria.epochs={2 * count + 1}", *places])
    trainer = build_training(cfg).trainer
    with closing(trainer.recorder):
        epoch_seconds(trainer, 0, told=True)
        steps = trainer.progress.global_step
        pairs = []
        for pair in range(count):
            took = {}
            for place, told in enumerate((True, False) if pair % 2 else (False, True)):
                trainer.progress.epochs_done = epoch = 1 + 2 * pair + place
                took[told] = epoch_seconds(trainer, epoch, told=told)
            pairs.append((took[True], took[False]))
        watched = watched_seconds(trainer)
        counts = trainer.recorder.telemetry.counts() if trainer.recorder.telemetry else {}
    assert all(sink.errors == sink.dropped == 0 for sink in counts.values()), counts
    print(
        f"  {experiment}, {steps} steps an epoch of {1000 * pairs[-1][1][0] / steps:.1f} ms; "
        f"{1e6 * watched:.0f} us in a step that is watched, one of {trainer.settings.observe_every}"
    )
    medians = []
    for index, clock in enumerate(("by the wall", "of all threads, sinks' own too")):
        ratios = [100 * (told[index] / untold[index] - 1) for told, untold in pairs]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"    with telemetry {middle:+.2f} % ({low:+.2f} to {high:+.2f}) {clock}, {count} pairs")
        medians.append(middle)
    return medians[0] <= MOST_COST


def main() -> None:
    """Compare, print, and exit with 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--experiment", default="resnet")
    parser.add_argument("--pairs", type=int, default=30)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"telemetry; load of this machine {os.getloadavg()[0]:.1f}")
    with closing(RedisServer()) as server, tempfile.TemporaryDirectory() as name:
        server.start()
        fast = rates(server, Path(name), asked.messages, asked.rounds)
        cheap = cost(server, Path(name), asked.experiment, asked.pairs)
    goal = f"at least {LEAST_RATE:,} a second and {LEAST_RATIO}x; at most {MOST_COST:.0f} % a step"
    print(f"  goal: {goal}: {'reached' if fast and cheap else 'MISSED'}")
    raise SystemExit(not (fast and cheap))


if __name__ == "__main__":
    main()
