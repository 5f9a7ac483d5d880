"""How deep the compile queue is: of one piece of work, and of a broker that many ask over."""

from __future__ import annotations

import threading
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from drills.compile_workers import SMALL
from servers.redis import RedisServer
from urza_support import open_sealed
from waiting import LONG, until

from esper.assembly.keys import build_envelope
from esper.assembly.workers import queue_check, watched_broker
from esper.errors import TierUnavailable
from esper.messages import CompileQueue, Slot
from esper.nissa.api.monitor import Monitor
from esper.nissa.runs import RunStore
from esper.tezzeret.broker import PRESENT_SECONDS, TASK, Broker
from esper.tezzeret.jobs import CompileJob
from esper.tezzeret.pipeline import Pipeline
from esper.tezzeret.pool import WorkerPool
from esper.tezzeret.remote import RemoteWorkers
from esper.tezzeret.remote_worker import RemoteWorker
from esper.tezzeret.torchscript import TorchScriptTarget
from esper.tezzeret.wire import Wire, encoded
from esper.tezzeret.worker import compile_missing
from esper_cli.config import compose

SLOT = Slot("features", 8, 6)
JOB = CompileJob(Pipeline(TorchScriptTarget()), SMALL, SLOT)


@pytest.fixture
def reach(redis_server: RedisServer) -> Callable[[], Broker]:
    """Makes one more connection to a queue of its own."""
    return partial(Broker, redis_server.url, f"tests-{uuid.uuid4().hex}")


@pytest.fixture
def broker(reach: Callable[[], Broker]) -> Iterator[Broker]:
    with closing(reach()) as broker:
        yield broker


@pytest.fixture
def wire(tmp_path: Path) -> Wire:
    return Wire(build_envelope(compose([f"security.path={tmp_path}/keys.json"])))


def test_what_waits_at_a_broker_is_counted_once_and_falls_as_it_is_done(
    broker: Broker, reach: Callable[[], Broker], wire: Wire
) -> None:
    job = replace(JOB, slot=replace(SLOT, out_features=5))
    with (
        RemoteWorkers(reach(), wire) as asking,
        RemoteWorkers(reach(), wire) as another,
        WorkerPool(1) as pool,
    ):
        asked = [asking.submit(JOB), asking.submit(job), another.submit(job)]
        until(lambda: broker.depth().waiting == 2)
        depth = broker.depth()
        assert (depth.compiling, depth.workers) == (0, 0)
        assert depth.oldest is not None
        serving = RemoteWorker(broker, wire, pool)
        ended = threading.Event()
        present = threading.Thread(target=serving._be_present, args=(ended,))
        present.start()
        until(lambda: asking.serving == 1)
        held = threading.Event()
        do, pool.submit = pool.submit, lambda each: (held.wait(), do(each))[1]  # type: ignore[method-assign]
        key, data = encoded(JOB)
        (attempt,) = broker.ask(("GET", broker.key("asked", key)))
        sealed = b64encode(wire.seal_job(data, key, attempt.decode())).decode()
        work = threading.Thread(target=broker.celery.tasks[TASK], args=(key, attempt.decode(), sealed))
        work.start()
        until(asked[0].running)
        assert not asked[1].running()
        assert replace(broker.depth(), oldest=None) == CompileQueue(1, 1, 1)
        held.set()
        assert asked[0].result(LONG).artefact is not None
        work.join()
        assert replace(broker.depth(), oldest=None) == CompileQueue(1, 0, 1)
        ended.set()
        present.join()
        assert broker.depth().workers == 0
    assert asked[1].cancelled()  # nobody waits any more


def test_who_waits_for_what_is_under_way_learns_that_the_client_is_closed(
    broker: Broker, reach: Callable[[], Broker], wire: Wire
) -> None:
    with RemoteWorkers(reach(), wire) as asking:
        asked = asking.submit(JOB)
        until(lambda: broker.depth().waiting == 1)
        (attempt,) = broker.ask(("GET", broker.key("asked", encoded(JOB)[0])))
        broker.ask(("INCR", broker.key("begun", attempt.decode())))
        until(asked.running)
    assert asked.done()


def test_workers_that_are_gone_and_words_that_are_none_of_ours_are_not_counted(broker: Broker) -> None:
    (now, _), *_ = broker.ask(("TIME",))
    gone = int(now) - PRESENT_SECONDS - 1
    words = [(now, "here:3"), (gone, "gone:8"), (now, "odd"), (now, "odd:-4"), (now, b"\xff:" + b"9" * 40)]
    broker.ask(*(("ZADD", f"{broker.queue}:workers", at, word) for at, word in words))
    begun_long_ago = int(now) - broker.visibility_seconds - 1
    broker.ask(("ZADD", f"{broker.queue}:compiling", begun_long_ago, "lost"))
    assert broker.depth() == CompileQueue(0, 0, 3)


def test_a_server_shows_what_waits_at_the_broker_and_that_it_is_gone(
    broker: Broker, redis_server: RedisServer, reach: Callable[[], Broker], wire: Wire,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("ESPER_BROKER_URL", redis_server.url)
    cfg = compose(["tezzeret/engine=celery", f"tezzeret.engine.queue={broker.queue}"])
    with RemoteWorkers(reach(), wire) as asking, watched_broker(cfg) as depth:
        asking.submit(JOB)
        until(lambda: broker.depth().waiting == 1)
        server = Monitor(RunStore(tmp_path / "runs"), lambda: (), broker=depth, components=queue_check(depth))
        status = server.status()
        assert status["compile_queue"]["broker"].waiting == 1
        details = {check["name"]: check["detail"] for check in status["checks"]}
        assert details["compile queue"] == "1 waits, 0 are being compiled by 0 workers"
        metrics = server.metrics("")[0].decode()
        assert "\nesper_broker_up 1.0\n" in metrics
        assert "\nesper_broker_waiting 1.0\n" in metrics

    def gone() -> CompileQueue:
        raise TierUnavailable("the Redis broker does not answer")

    without = Monitor(RunStore(tmp_path / "runs"), lambda: (), broker=gone, components=queue_check(gone))
    assert "\nesper_broker_up 0.0\n" in (metrics := without.metrics("")[0].decode())
    assert "\nesper_broker_waiting" not in metrics
    assert without.status()["compile_queue"] == {"runs": {}, "broker": None}
    assert "compile queue: the Redis broker does not answer" in without.status()["reasons"]
    with watched_broker(compose([])) as none:
        assert none is None


@pytest.mark.parametrize("workers", [0, 2])
def test_the_depth_falls_while_it_is_compiled(tmp_path: Path, workers: int) -> None:
    told: list[CompileQueue] = []
    pairs = [(SMALL, replace(SLOT, out_features=size)) for size in range(4, 9)]
    first = threading.Event()
    with (
        open_sealed(f"sqlite:///{tmp_path}/kernels.db", TorchScriptTarget().load) as library,
        WorkerPool(max(1, workers)) as pool,
    ):

        def stored(_: object) -> None:
            if not first.is_set():
                first.set()
                until(lambda: len(told) > 1)  # the thread that tells comes once a second

        compile_missing(
            JOB.pipeline, library, pairs, stored, on_queue=told.append, workers=pool if workers else None
        )
        assert told[0].waiting == len(pairs)
        assert len(told) >= 3
        assert all(each.workers == max(1, workers) for each in told)
        assert 0 < told[1].waiting < len(pairs)
        assert told[-1] == CompileQueue(0, 0, max(1, workers))
        again: list[CompileQueue] = []
        compile_missing(JOB.pipeline, library, [], on_queue=again.append)
        assert again == []
