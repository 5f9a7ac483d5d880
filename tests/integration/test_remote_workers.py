"""Compile workers over a real broker: once, in order, for holders of the keys; what is lost is done again."""

from __future__ import annotations

import os
import re
import signal
import sys
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from urllib.parse import quote

import forked
import pytest
from celery.exceptions import Reject
from drills.compile_workers import SMALL, drill, durable_redis
from servers.redis import RedisServer, started
from tezzeret_support import workers
from waiting import LONG, until

from esper.assembly.keys import build_envelope
from esper.assembly.workers import build_workers
from esper.errors import CompilationError, ConfigError, SealBroken
from esper.messages import Slot
from esper.security import Envelope
from esper.tezzeret.broker import TASK, Broker
from esper.tezzeret.forkserver import SPARE
from esper.tezzeret.jobs import TRIES, CompileJob, Outcome
from esper.tezzeret.limits import Limits
from esper.tezzeret.pipeline import Pipeline
from esper.tezzeret.pool import WorkerPool
from esper.tezzeret.remote import RemoteWorkers
from esper.tezzeret.remote_worker import RemoteWorker
from esper.tezzeret.torchscript import TorchScriptTarget
from esper.tezzeret.wire import Wire, encoded
from esper_cli.config import compose

SLOT = Slot("features", 8, 6)
GOOD = CompileJob(Pipeline(TorchScriptTarget()), SMALL, SLOT)
BAD = replace(GOOD, slot=replace(SLOT, in_features=10**7))
PASSWORD = "pass word/of the tests"


class Own(TorchScriptTarget):
    """A target that does not ship."""

    name = "own"


def sized(size: int) -> CompileJob:
    return replace(GOOD, slot=replace(SLOT, out_features=size))


@dataclass
class Place:
    """A queue of its own on a server, and keys that those have who use it."""

    url: str
    folder: Path
    queue: str
    envelope: Envelope

    @property
    def wire(self) -> Wire:
        return Wire(self.envelope)

    def broker(self) -> Broker:
        return Broker(self.url, self.queue)

    def client(self, **settings: float) -> RemoteWorkers:
        return RemoteWorkers(self.broker(), self.wire, **settings)  # type: ignore[arg-type]

    @contextmanager
    def worker(self) -> Iterator[BaseProcess]:
        """An ``esper worker`` with one process, which has ended afterwards."""
        env = os.environ | {"ESPER_BROKER_URL": self.url, "ESPER_HOME": str(self.folder)}
        given = ("--workers", "1", f"tezzeret.engine.queue={self.queue}", "tezzeret.nice=0")
        process = forked.begun("worker", *given, log=self.log, env=env)
        try:
            yield process
        finally:
            process.kill()
            process.join()

    @property
    def log(self) -> Path:
        """What the worker says."""
        return self.folder / "worker.log"

    def end(self, worker: BaseProcess, known: str = "") -> str:
        """Ctrl-C to ``worker``, and what it has said beyond what is known."""
        os.kill(worker.pid or 0, signal.SIGINT)
        worker.join(LONG)
        said = self.log.read_text().removeprefix(known)
        assert worker.exitcode == 0, said
        assert "Traceback" not in said
        return said


def place(url: str, folder: Path) -> Place:
    envelope = build_envelope(compose([f"security.path={folder}/keys.json"]))
    envelope.authenticate(b"")  # makes the key
    return Place(url, folder, f"tests-{uuid.uuid4().hex}", envelope)


@pytest.fixture
def here(redis_server: RedisServer, tmp_path: Path) -> Place:
    return place(redis_server.url, tmp_path)


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(1, nice=0, tries=1) as pool:
        yield pool


@pytest.fixture
def serve(here: Place, pool: WorkerPool) -> Iterator[Callable[[CompileJob, str], None]]:
    """Has this process do one message of the queue, as Celery does."""
    with closing(here.broker()) as broker:
        RemoteWorker(broker, here.wire, pool)

        def do(job: CompileJob, attempt: str) -> None:
            key, data = encoded(job)
            sealed = here.wire.seal_job(data, key, attempt)
            broker.celery.tasks[TASK](key, attempt, b64encode(sealed).decode())

        yield do


def until_in_queue(broker: Broker, messages: int, priority: str = "") -> None:
    """Wait until there are so many of that priority, as Celery names its lists."""
    until(lambda: broker.ask(("LLEN", broker.queue + priority)) == [messages])


def test_hot_first_and_what_many_ask_for_once(here: Place) -> None:
    with here.client() as first, here.client() as second, here.broker() as broker:
        asked = [first.submit(sized(size)) for size in (4, 5, 6)]
        until_in_queue(broker, 3, "\x06\x169")
        asked += [second.submit(sized(size)) for size in (4, 5)]
        asked += [second.submit(sized(6), hot=True), second.submit(sized(7), hot=True)]
        assert first.submit(sized(5)) is asked[1]
        until_in_queue(broker, 2)
        with here.worker() as worker:
            outcomes = [future.result(LONG) for future in asked]
            said = here.end(worker)
    assert all(outcome.artefact for outcome in outcomes)
    assert outcomes[0] == outcomes[3]
    done = [line.partition(":")[0] for line in said.splitlines() if "compiled (" in line]
    assert done == [f"small for features 8->{size}" for size in (6, 7, 4, 5)]


def test_over_tls_with_a_password_that_nobody_sees(tmp_path: Path) -> None:
    for server in started(RedisServer(tls=True, password=PASSWORD)):
        there = place(server.url, tmp_path)
        with there.worker() as worker:
            with there.client() as client:
                outcome = client.submit(GOOD).result(LONG)
                again = [client.submit(BAD).result(LONG) for _ in range(2)]  # a failure is tried anew
            assert outcome.artefact is not None
            assert outcome.artefact.weights == GOOD.pipeline.compile(SMALL, SLOT).weights
            assert all("the budget is" in str(each.reason) for each in again)
            server.kill()
            until(lambda log=there.log: "Cannot connect to" in log.read_text())
            said = there.log.read_text()
            server.start()
            said += there.end(worker, said)
    assert said.count("failed in build") == 2
    assert not re.search("of.{1,3}the.{1,3}tests", said)


def test_a_broker_that_comes_later_is_waited_for(tmp_path: Path) -> None:
    with closing(RedisServer(password=PASSWORD)) as server:
        there = place(server.url, tmp_path)
        there.log.touch()
        with pytest.raises(CompilationError, match="did not answer"):
            there.client()
        with there.worker() as worker:
            until(lambda: "asked again" in there.log.read_text())
            server.start()
            with there.client() as client:
                assert client.submit(GOOD).result(LONG).artefact is not None
            said = there.end(worker)
    assert said.count("asked again") == 1
    assert f"the Redis broker 127.0.0.1:{server.port} did not answer as it should" in said
    assert not re.search("of.{1,3}the.{1,3}tests", said)


def test_a_broker_that_refuses_is_not_waited_for(tmp_path: Path) -> None:
    for server in started(RedisServer(tls=True, password=PASSWORD)):
        password = quote(PASSWORD, safe="")
        for url, why in (
            (server.url.replace(password, "another"), "WRONGPASS|invalid username-password"),
            (server.url.replace(f":{password}@", ""), "NOAUTH|Authentication required"),
            (server.url.partition("?")[0], "certificate verify failed"),
        ):
            with Broker(url, "jobs") as broker, pytest.raises(CompilationError, match=why):
                broker.wait_for_server(pytest.fail)


def test_settings_that_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = "tezzeret/engine=celery"
    monkeypatch.delenv("ESPER_BROKER_URL", raising=False)
    with pytest.raises(ConfigError, match="ESPER_BROKER_URL, which is not set"):
        build_workers(compose([engine]), pytest.fail)
    monkeypatch.setenv("ESPER_BROKER_URL", "redis://broker.example:6379/0")
    with pytest.raises(ConfigError, match="is on another machine, and redis:// hides nothing"):
        build_workers(compose([engine]), pytest.fail)
    with pytest.raises(ConfigError, match="visibility_seconds must be above"):
        build_workers(compose([engine, "tezzeret.engine.visibility_seconds=30"]), pytest.fail)
    for given in ("tezzeret.tries=0", "tezzeret.tries=101"):
        with pytest.raises(ConfigError, match=r"tezzeret\.tries must be between 1 and 100"):
            build_workers(compose(["tezzeret.workers=1", given]), pytest.fail)
    with pytest.raises(ConfigError, match="compile for the CPU"):
        build_workers(compose([engine, "tezzeret.device=cuda"]), pytest.fail)
    own = f"tezzeret.target._target_={__name__}.Own", f"allow_targets=[esper.,{__name__}.]"
    with pytest.raises(ConfigError, match="have no target 'own', which is one of your own"):
        build_workers(compose([engine, *own]), pytest.fail)
    monkeypatch.setitem(sys.modules, "celery", None)
    monkeypatch.delitem(sys.modules, "celery.app.base", raising=False)
    with pytest.raises(ConfigError, match=r"esper-morph\[celery\]"):
        Broker("redis://localhost/0", "jobs")


def test_nobody_answers(here: Place) -> None:
    with (
        here.client(silence_seconds=0.5) as client,
        pytest.raises(CompilationError, match=r"answered for 0\.5 s"),
    ):
        client.submit(GOOD).result(LONG)


def test_the_broker_goes_away(own_redis: RedisServer, tmp_path: Path) -> None:
    with place(own_redis.url, tmp_path).client(outage_seconds=1) as client:
        future = client.submit(GOOD)
        own_redis.kill()
        with pytest.raises(CompilationError, match="did not answer for 1 s"):
            future.result(LONG)


def test_an_outcome_of_another_job_is_not_taken(
    here: Place, serve: Callable[[CompileJob, str], None]
) -> None:
    """Whoever can write to the broker claims a job for an attempt at another one."""
    attempt = "a" * 32
    serve(sized(4), attempt)
    with here.client() as client, here.broker() as broker:
        broker.ask(("SET", broker.key("asked", encoded(GOOD)[0]), attempt))
        with pytest.raises(SealBroken):
            client.submit(GOOD).result(LONG)


def test_messages_that_are_not_to_be_done(here: Place, serve: Callable[[CompileJob, str], None]) -> None:
    attempt, key = "b" * 32, encoded(GOOD)[0]
    with here.broker() as broker:
        outcome, begun = broker.key("outcome", attempt), broker.key("begun", attempt)
        serve(GOOD, attempt)
        (first,) = broker.ask(("GET", outcome))
        serve(GOOD, attempt)  # given out again, though it was done
        assert broker.ask(("GET", outcome), ("GET", begun)) == [first, b"1"]
        broker.ask(("DEL", outcome), ("SET", begun, TRIES))  # each time its worker died
        serve(GOOD, attempt)
        (sealed,) = broker.ask(("GET", outcome))
        assert here.wire.open_outcome(sealed, key, attempt) == Outcome(
            "queue", 0.0, "it was begun 5 times, and each time its worker ended without an outcome"
        )


def test_a_job_whose_process_is_killed_is_given_out_again_a_number_of_times(
    here: Place, pool: WorkerPool
) -> None:
    told: list[str] = []
    key, data = encoded(GOOD)
    message = key, "e" * 32, b64encode(here.wire.seal_job(data, key, "e" * 32)).decode()
    pool.start()
    with here.broker() as broker, ThreadPoolExecutor(1) as thread:
        RemoteWorker(broker, here.wire, pool, tries=2, tell=told.append)
        for lost in (True, False):
            spare = until(lambda: workers(SPARE))[0]
            os.kill(spare, signal.SIGSTOP)  # it takes the job and does not begin
            done = thread.submit(broker.celery.tasks[TASK], *message)
            until(lambda: pool._asked)
            os.kill(spare, signal.SIGKILL)
            if lost:
                with pytest.raises(Reject):
                    done.result(LONG)
                assert broker.depth().waiting == 1
        done.result(LONG)
        (sealed,) = broker.ask(("GET", broker.key("outcome", message[1])))
    assert [line.partition(":")[0] for line in told] == ["small for features 8->6 is given out again"]
    reason = str(here.wire.open_outcome(sealed, key, message[1]).reason)
    assert "begun 2 times, and each time its worker ended without an outcome: its worker was killed" in reason


def test_a_job_that_others_sealed_is_left_out(here: Place, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = place(here.url, tmp_path_factory.mktemp("other"))
    told: list[str] = []
    key, data = encoded(GOOD)
    with here.broker() as broker, WorkerPool(1, Limits()) as pool:
        RemoteWorker(broker, here.wire, pool, tell=told.append)
        for sealed in (other.wire.seal_job(data, key, "c"), b"no seal", here.wire.seal_job(data, key, "d")):
            broker.celery.tasks[TASK](key, "c", b64encode(sealed).decode())
        assert broker.ask(("EXISTS", broker.key("begun", "c"))) == [0]
    assert len(told) == 3
    assert all(line.startswith("left out a job: ") for line in told)


def test_workers_and_the_broker_are_killed_and_no_kernel_is_lost_or_stored_twice(tmp_path: Path) -> None:
    for server in started(durable_redis()):
        report = drill(tmp_path, server, jobs=12, kills=1, broker_kills=1)
        assert (report.workers_killed, report.broker_killed) == (1, 1)
        assert (report.lost, report.duplicates, report.damaged) == (0, 0, 0), report
