"""Jobs for compile workers on other machines, over a broker: ``esper.tezzeret.worker.Workers`` with Celery.

One thread asks and collects. Whoever asks first for a job claims it and sends it; others wait for the same
attempt. What nobody answers is sent again now and then: a message that a broker lost with its memory, or that
a worker could not read, costs time and nothing else, for an attempt that has an outcome is not begun again.
"""

from __future__ import annotations

import base64
import secrets
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from esper.errors import CompilationError, ConfigError, EsperError, TierUnavailable
from esper.tezzeret.broker import HOT, SWEEP, TASK, Broker
from esper.tezzeret.jobs import CompileJob, Outcome
from esper.tezzeret.wire import Wire, encoded

POLL_SECONDS: Final = 0.02
OUTAGE_POLL_SECONDS: Final = 0.5
LOOK_SECONDS: Final = 1.0
"""How often it is asked who works, and at what."""
QUIET_SECONDS: Final = 15
"""Without a word from any worker for so long, the user is told."""
MAX_AT_ONCE: Final = 10_000


@dataclass(slots=True)
class _Asked:
    """A job that somebody waits for, and the attempt at it once there is one."""

    job: bytes
    key: str
    hot: bool
    future: Future[Outcome] = field(default_factory=Future)
    attempt: str = ""
    kernel_id: str = ""
    sent: float = 0.0


class RemoteWorkers:
    """Has jobs done by whatever workers serve ``broker``. Threads may share it.

    ``at_once`` is how many jobs are best under way; the workers may be fewer or more. A job whose workers are
    silent for ``silence_seconds``, or whose broker does not answer for ``outage_seconds``, ends with
    ``CompilationError``. ``tell`` gets a line for the user when there is cause to look.
    """

    def __init__(
        self,
        broker: Broker,
        wire: Wire,
        *,
        at_once: int = 32,
        silence_seconds: float = 600,
        outage_seconds: float = 60,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Raises ``CompilationError`` if the broker does not answer now."""
        if not 1 <= at_once <= MAX_AT_ONCE:
            raise ConfigError(f"tezzeret.engine.at_once must be between 1 and {MAX_AT_ONCE:,}, not {at_once}")
        broker.check()
        self.workers = at_once
        self.serving = 0
        """How many jobs all the workers do at once, as was heard last."""
        self._looked = -LOOK_SECONDS
        self._broker = broker
        self._wire = wire
        self._silence = silence_seconds
        self._outage = outage_seconds
        self._tell = tell
        self._lock = threading.Lock()
        self._asked: dict[Hashable, _Asked] = {}
        self._wake = threading.Event()
        self._closed = False
        self._heard = time.monotonic()
        self._told = False
        self._thread = threading.Thread(target=self._serve, name="compile jobs", daemon=True)
        self._thread.start()

    def submit(self, job: CompileJob, *, hot: bool = False) -> Future[Outcome]:
        """Have ``job`` done; see ``Workers``."""
        key, data = encoded(job)
        with self._lock:
            if self._closed:
                raise CompilationError("the workers' client is closed", stage="queue")
            if not self._asked:
                self._heard, self._told = time.monotonic(), False  # nobody owed us a word until now
            asked = self._asked.get(key)
            if asked is None:
                asked = self._asked[key] = _Asked(
                    data, key, hot, kernel_id=job.pipeline.kernel_id(job.blueprint, job.slot)
                )
            elif hot and not asked.hot:
                asked.hot, asked.sent = True, 0.0
        self._wake.set()
        return asked.future

    def close(self) -> None:
        """Wait for no outcome any more, and close the broker. What was asked for is done all the same."""
        with self._lock:
            self._closed = True
            left, self._asked = list(self._asked.values()), {}
        self._wake.set()
        self._thread.join()
        for asked in left:
            if not asked.future.cancel():  # a worker has begun with it
                asked.future.set_exception(CancelledError())
        self._broker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self) -> None:
        from kombu.exceptions import OperationalError

        lost: float | None = None
        while not self._closed:
            try:
                for asked in self._snapshot():
                    self._ask(asked)
                self._look()
                if self._collect():
                    self._heard, self._told = time.monotonic(), False
                lost = None
            except (TierUnavailable, OperationalError, OSError) as error:
                lost = lost or time.monotonic()
                reason = error.message if isinstance(error, TierUnavailable) else type(error).__name__
                if time.monotonic() - lost > self._outage:
                    self._fail_all(f"the broker did not answer for {self._outage:g} s: {reason}")
            except Exception as error:  # whoever waits is to have it: nobody else looks at this thread
                self._end_all(error)
            self._notice_silence()
            self._wake.wait(OUTAGE_POLL_SECONDS if lost else POLL_SECONDS)
            self._wake.clear()

    def _snapshot(self) -> list[_Asked]:
        with self._lock:
            return list(self._asked.values())

    def _ask(self, asked: _Asked) -> None:
        """Send a job that is new, or was sent long ago, unless somebody else has asked for it."""
        broker, now, hot = self._broker, time.monotonic(), asked.hot
        again = broker.visibility_seconds
        if asked.sent and now - asked.sent < again:
            return
        claim = broker.key("asked", asked.key)
        fresh = asked.attempt or secrets.token_hex(16)
        first, claimed, _ = broker.ask(
            ("SET", claim, fresh, "NX", "EX", 2 * again), ("GET", claim), ("EXPIRE", claim, 2 * again)
        )
        if claimed is None:
            return  # it expired in between: the next round claims it
        attempt = claimed.decode("ascii", "replace")
        others = first is None and attempt != asked.attempt
        if others and (len(attempt) != 32 or not attempt.isalnum()):
            raise CompilationError(f"the broker's {claim} is none of ours", stage="queue")
        asked.attempt = attempt
        if not others or (asked.hot and self._is_first_hot(attempt)):
            self._send(asked)
        asked.sent = now if asked.hot == hot else 0.0  # it became hot meanwhile: once more

    def _is_first_hot(self, attempt: str) -> bool:
        """Whether nobody has sent the attempt as a hot one."""
        key = self._broker.key("hot", attempt)
        return (
            self._broker.ask(("SET", key, 1, "NX", "EX", 2 * self._broker.visibility_seconds))[0] is not None
        )

    def _send(self, asked: _Asked) -> None:
        self._broker.ask(*self._broker.note_waiting(asked.attempt))
        sealed = base64.b64encode(self._wire.seal_job(asked.job, asked.key, asked.attempt)).decode()
        self._broker.celery.send_task(
            TASK,
            args=[asked.key, asked.attempt, sealed],
            priority=HOT if asked.hot else SWEEP,
            ignore_result=True,
            retry=False,
        )

    def _look(self) -> None:
        """Learn now and then how many workers there are, and with which jobs they have begun."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        self.serving = self._broker.depth().workers
        waiting = [asked for asked in self._snapshot() if asked.attempt and not asked.future.running()]
        begun = self._broker.begun([asked.attempt for asked in waiting]) if waiting else []
        for asked, has_begun in zip(waiting, begun, strict=True):
            if has_begun:
                asked.future.set_running_or_notify_cancel()

    def _collect(self) -> bool:
        """Hand out the outcomes that have come; whether there were any."""
        waiting = [asked for asked in self._snapshot() if asked.attempt]
        if not waiting:
            return False
        keys = [self._broker.key("outcome", asked.attempt) for asked in waiting]
        (found,) = self._broker.ask(("MGET", *keys))
        for asked, sealed in zip(waiting, found, strict=True):
            if sealed is not None:
                self._hand_out(asked, sealed)
        return any(sealed is not None for sealed in found)

    def _hand_out(self, asked: _Asked, sealed: bytes) -> None:
        try:
            outcome = self._wire.open_outcome(sealed, asked.key, asked.attempt)
            made = outcome.artefact.metadata.kernel_id if outcome.artefact else asked.kernel_id
            if made != asked.kernel_id:
                raise CompilationError(f"a worker made {made} of {asked.kernel_id}", stage="queue")
        except EsperError as error:
            self._finish(asked, error)
        else:
            self._finish(asked, outcome)

    def _finish(self, asked: _Asked, end: Outcome | Exception) -> None:
        with self._lock:
            if self._asked.pop(asked.key, None) is None:
                return
        if isinstance(end, Outcome):
            asked.future.set_result(end)
        else:
            asked.future.set_exception(end)

    def _end_all(self, error: Exception) -> None:
        for asked in self._snapshot():
            self._finish(asked, error)

    def _fail_all(self, reason: str) -> None:
        hint = f"see that {self._broker.where} runs, and workers too: esper worker"
        self._end_all(CompilationError(reason, stage="queue", hint=hint))

    def _notice_silence(self) -> None:
        if not self._snapshot():
            return
        silent = time.monotonic() - self._heard
        if silent > self._silence:
            self._fail_all(f"no compile worker has answered for {self._silence:g} s")
        elif silent > QUIET_SECONDS and not self._told:
            self._told = True
            self._tell(
                f"no compile worker has answered for {QUIET_SECONDS} s: is one running, with the same keys? "
                "(start one: esper worker)"
            )
