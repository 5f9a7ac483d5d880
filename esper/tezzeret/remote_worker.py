"""A compile worker for other machines: Celery takes jobs from a broker, worker processes of this one do them.

A message is acknowledged when its outcome is stored. A worker that dies before that leaves it to be given out
again, and one that gets it although there is an outcome lets it be, so an outcome is written once.
"""

from __future__ import annotations

import base64
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from types import FrameType
from typing import Any, Final

from esper.errors import CompilationError, EsperError, TierUnavailable
from esper.tezzeret.broker import OUTCOME_SECONDS, PRESENT_SECONDS, TASK, Broker, Command
from esper.tezzeret.jobs import TRIES, CompileJob, Outcome, given_up
from esper.tezzeret.pool import WorkerPool
from esper.tezzeret.wire import Wire

OUTCOME_BYTES: Final = 256 * 2**20
STORE_SECONDS: Final = 60
"""How long a broker may be away before an outcome is given up; who asked for it asks again."""

OnOutcome = Callable[[CompileJob, Outcome], None]


class RemoteWorker:
    """Serves ``broker`` with the processes of ``pool``, until it is stopped.

    A job that ends its workers is begun ``tries`` times, here and elsewhere; the pool should try it once.
    ``on_outcome`` sees what became of each job, in any of several threads, and ``tell`` lines for the user.
    """

    def __init__(
        self,
        broker: Broker,
        wire: Wire,
        pool: WorkerPool,
        *,
        tries: int = TRIES,
        on_outcome: OnOutcome = lambda _, __: None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._broker = broker
        self._wire = wire
        self._pool = pool
        self._tries = tries
        self._on_outcome = on_outcome
        self._tell = tell

        def work(key: str, attempt: str, sealed: str) -> None:
            self._work(key, attempt, sealed)

        # Not shared: Celery would put it into every other broker's application as well.
        broker.celery.task(work, name=TASK, shared=False)

    def serve(self) -> None:
        """Work until SIGINT or SIGTERM, which let what is under way end; a second one does not.

        For the main thread. A broker that is away is waited for. Raises ``CompilationError`` for one that
        refuses the password or has a certificate that is refused, and if no worker process can be started.
        """
        from celery.worker import WorkController, state

        def stop(_signal: int, _frame: FrameType | None) -> None:
            if state.should_stop is None:
                state.should_stop = 0
                self._tell("what is under way ends first; once more to stop at once")
            else:
                threading.Thread(target=self._pool.close, daemon=True).start()

        self._broker.wait_for_server(self._tell)
        self._pool.start()
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        errors = _Errors(self._broker, self._tell)
        logger = logging.getLogger("celery")
        logger.addHandler(errors)
        ended = threading.Event()
        present = threading.Thread(target=self._be_present, args=(ended,), daemon=True)
        present.start()
        try:
            state.should_stop = None
            self._broker.celery.set_default()  # where its threads look for tasks
            WorkController(
                app=self._broker.celery,
                hostname=f"esper@{socket.gethostname()}.{os.getpid()}",
                pool_cls="threads",
                concurrency=self._pool.workers,
                without_gossip=True,
                without_mingle=True,
                without_heartbeat=True,
                quiet=True,
                ready_callback=lambda _: self._tell(f"waiting for jobs from {self._broker.where}"),
            ).start()
        finally:
            ended.set()
            present.join()
            state.should_stop = None
            logger.removeHandler(errors)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _be_present(self, ended: threading.Event) -> None:
        """Say now and then that this worker is there, until it ends; others count who said so."""
        named = secrets.token_hex(8), self._pool.workers
        while not ended.is_set():
            with suppress(TierUnavailable):
                self._broker.ask(*self._broker.note_present(*named))
            ended.wait(PRESENT_SECONDS / 3)
        with suppress(TierUnavailable):
            self._broker.ask(*self._broker.note_gone(*named))

    def _work(self, key: str, attempt: str, sealed: str) -> None:
        """One message of the queue; raises Celery's ``Reject`` where others should have it."""
        from celery.exceptions import Reject

        try:
            job = self._wire.open_job(base64.b64decode(sealed), key, attempt)
        except (EsperError, ValueError) as error:
            self._tell(f"left out a job: {error}")  # the one who asked asks again, and another may take it
            return
        begun_key = self._broker.key("begun", attempt)
        try:
            if self._patiently(("EXISTS", self._broker.key("outcome", attempt)))[0]:
                self._patiently(*self._broker.note_ended(attempt))
                return
            begun, *_ = self._patiently(
                ("INCR", begun_key), ("EXPIRE", begun_key, OUTCOME_SECONDS), *self._broker.note_begun(attempt)
            )
            outcome = given_up(begun - 1) if begun > self._tries else self._pool.submit(job).result()
            if outcome.lost and begun == self._tries:
                outcome = given_up(begun, outcome.reason)
            if outcome.lost:
                self._tell(f"{job.blueprint.name} for {job.slot} is given out again: {outcome.reason}")
                self._patiently(*self._broker.note_ended(attempt), *self._broker.note_waiting(attempt))
                raise Reject(outcome.reason, requeue=True)
            self._store(job, outcome, key, attempt)
        except (TierUnavailable, CompilationError, CancelledError) as error:
            self._tell(f"{job.blueprint.name} for {job.slot} is left to others: {error}")
            raise Reject(str(error), requeue=True) from None

    def _store(self, job: CompileJob, outcome: Outcome, key: str, attempt: str) -> None:
        sealed = self._wire.seal_outcome(outcome, key, attempt)
        if len(sealed) > OUTCOME_BYTES:
            reason = f"the kernel takes {len(sealed) >> 20} MiB, and a broker {OUTCOME_BYTES >> 20} at most"
            outcome = Outcome("queue", outcome.seconds, reason)
            sealed = self._wire.seal_outcome(outcome, key, attempt)
        name, claim = self._broker.key("outcome", attempt), self._broker.key("asked", key)
        if outcome.artefact is None and self._patiently(("GET", claim))[0] == attempt.encode():
            # Before the outcome is there: whoever asks once it is has it tried again.
            self._patiently(("DEL", claim))
        written = ("SET", name, sealed, "NX", "EX", OUTCOME_SECONDS)
        if self._patiently(written, *self._broker.note_ended(attempt))[0]:
            self._on_outcome(job, outcome)

    def _patiently(self, *commands: Command) -> list[Any]:
        """The broker's replies, also where it is away for a while; raises ``TierUnavailable``."""
        until = time.monotonic() + STORE_SECONDS
        while True:
            try:
                return self._broker.ask(*commands)
            except TierUnavailable:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)


class _Errors(logging.Handler):
    """Tells the first line of each error that Celery logs, without the broker's password."""

    def __init__(self, broker: Broker, tell: Callable[[str], None]) -> None:
        super().__init__(logging.ERROR)
        self._broker = broker
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage().strip().partition("\n")[0]
        self._tell(self._broker.without_password(line))
