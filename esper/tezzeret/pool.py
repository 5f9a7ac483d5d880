"""Worker processes on this machine: each job in a process of its own, under limits."""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from heapq import heappop, heappush
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

from esper.errors import CompilationError, ConfigError
from esper.tezzeret.forkserver import STATUS
from esper.tezzeret.jobs import CompileJob, Job, Outcome, understand
from esper.tezzeret.limits import ANSWER_BYTES, Limits
from esper.tezzeret.targets import TARGETS

MAX_WORKERS = 256
NICE = 10
"""How much worker processes give way to others unless told otherwise, see nice(2)."""
START_SECONDS = 60
"""How long PyTorch may take to be imported; two seconds are usual."""
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
"""What workers see of the environment; keys and passwords stay here."""


class WorkerPool:
    """Does up to ``workers`` jobs at once, each in a process of its own that ends with it.

    The first job starts the server that workers are forked from, which takes seconds. They give way to other
    processes by ``nice``, 0 to 19. ``on_unfiltered`` is told once if system calls cannot be filtered, and
    why; the resource limits stand then all the same. Threads may share a pool.
    """

    def __init__(
        self,
        workers: int,
        limits: Limits | None = None,
        *,
        nice: int = NICE,
        on_unfiltered: Callable[[str], None] = lambda _: None,
    ) -> None:
        if not 0 <= nice <= 19:
            raise ConfigError(f"tezzeret.nice must be between 0 and 19, not {nice}")
        if not 1 <= workers <= MAX_WORKERS:
            raise ConfigError(f"the number of workers must be between 1 and {MAX_WORKERS}, not {workers}")
        if sys.platform != "linux":
            raise ConfigError("worker processes need Linux", hint="compile without them: tezzeret.workers=0")
        self.workers = workers
        self._limits = limits or Limits()
        self._nice = nice
        self._on_unfiltered = on_unfiltered
        self._told = False
        self._server: _Server | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(workers, "compile")
        self._numbers = count()
        # A heap: hot ones first, then by age.
        self._waiting: list[tuple[bool, int, Job, Future[Outcome]]] = []
        self._asked: dict[Hashable, Future[Outcome]] = {}

    @property
    def serving(self) -> int:
        """How many jobs are done at once."""
        return self.workers

    def submit(self, job: Job, *, hot: bool = False) -> Future[Outcome]:
        """Have ``job`` done, ahead of others if it is ``hot``; its outcome holds what goes wrong in it.

        Who asks for what another has asked for gets the same future, which nobody should cancel. Raises
        ``CompilationError``, there or here, only where no worker can be started.
        """
        with self._lock:
            future = self._asked.get(job.key)
            if future is None or hot:
                self._threads.submit(self._do_next)
                future = self._asked.setdefault(job.key, future or Future())
                heappush(self._waiting, (not hot, next(self._numbers), job, future))
            return future

    def start(self) -> None:
        """Start the server now rather than with the first job; raises ``CompilationError``."""
        self._server_running()

    def close(self) -> None:
        """End every worker and their server at once."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._closed = True
            server, self._server = self._server, None
            for _, _, _, future in self._waiting:
                future.cancel()
        if server is not None:
            server.close()
        self._threads.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _do_next(self) -> None:
        with self._lock:
            _, _, job, future = heappop(self._waiting)
            if future.running() or self._asked.get(job.key) is not future:
                return  # it was asked for again as a hot one, and is under way or done
            if not future.set_running_or_notify_cancel():
                return
        try:
            outcome = self._do(job)
        except BaseException as error:
            self._forget(job)
            future.set_exception(error)
        else:
            self._forget(job)
            future.set_result(outcome)

    def _forget(self, job: Job) -> None:
        with self._lock:
            del self._asked[job.key]

    def _do(self, job: Job) -> Outcome:
        began = time.perf_counter()
        ended, answer = self._server_running().work(
            pickle.dumps((job, self._limits)), self._limits, _target(job)
        )
        try:
            outcome, stage, unfiltered = understand(answer)
        except Exception:  # whatever it told, it was not an outcome
            outcome, stage, unfiltered = None, "parse", None
        with self._lock:
            tell = unfiltered is not None and not self._told
            self._told |= tell
        if tell:
            self._on_unfiltered(str(unfiltered))
        lost = ended in (_NO_SERVER, _KILLED)
        return outcome or Outcome(stage, time.perf_counter() - began, ended, lost=lost)

    def _server_running(self) -> _Server:
        with self._lock:
            if self._closed:
                raise CompilationError("the pool of workers is closed", stage="parse")
            if self._server is not None and not self._server.running:
                self._server.close()
                self._server = None
            self._server = self._server or _Server(self._nice)
            return self._server


class _Server:
    """The process that workers are forked from, as its parent sees it."""

    def __init__(self, nice: int) -> None:
        """Starts it and waits until it is ready; ``CompilationError`` where it does not become so."""
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        # Without a GPU to find, PyTorch starts no threads; a worker may have but one.
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "esper.tezzeret.forkserver", str(theirs.fileno()), str(nice)],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        self._control.settimeout(START_SECONDS)
        try:
            ready = self._control.recv(64)
        except OSError:
            ready = b""
        if ready != b"ready":
            self._control.close()
            self._process.kill()
            _, errors = self._process.communicate()
            last = (errors.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            raise CompilationError(
                f"worker processes cannot be started: {last}",
                stage="parse",
                hint="compile in this process: tezzeret.workers=0",
            )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        self._control.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def work(self, job: bytes, limits: Limits, target: str) -> tuple[str, bytes]:
        """Have a job for ``target`` done: why its worker ended without outcome, if so, and what it told."""
        deadline = time.monotonic() + limits.wall_seconds
        connection, theirs = socket.socketpair()
        status, told = os.pipe()
        try:
            with theirs:
                try:
                    socket.send_fds(self._control, [f"job {target}".encode()], [theirs.fileno(), told])
                except OSError:
                    return _NO_SERVER, b""
                finally:
                    os.close(told)
            connection.settimeout(limits.wall_seconds)
            try:
                connection.sendall(job)
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it has ended; its status says how
            return self._watch(connection, status, deadline, limits)
        finally:
            connection.close()
            os.close(status)

    def _watch(
        self, connection: socket.socket, status: int, deadline: float, limits: Limits
    ) -> tuple[str, bytes]:
        answer = bytearray()
        over: str | None = None
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        poll.register(status, select.POLLIN)
        connection.setblocking(False)
        pid, ended = 0, False
        while True:
            left = max(0.0, deadline - time.monotonic())
            if over is None and (left <= 0 or len(answer) > ANSWER_BYTES):
                over = (
                    f"over its limit of {limits.wall_seconds:g} s (tezzeret.limits.wall_seconds)"
                    if left <= 0
                    else f"it answered with more than {ANSWER_BYTES >> 20} MiB"
                )
            if over and pid and not ended:
                self._end(pid)
                ended = True
            ready = dict(poll.poll(None if over else 1e3 * left))
            if connection.fileno() in ready and not _receive(connection, answer):
                poll.unregister(connection)
            if status in ready:
                number = os.read(status, STATUS.size)
                if number and not pid:
                    (pid,) = STATUS.unpack(number)
                    continue
                while _receive(connection, answer):
                    pass
                if not number:
                    return over or _NO_SERVER, bytes(answer)
                return over or _ending(STATUS.unpack(number)[0], limits), bytes(answer)

    def _end(self, pid: int) -> None:
        with suppress(OSError):  # the server has ended, and its workers with it
            self._control.send(b"end %d" % pid)


def _target(job: Job) -> str:
    """The target that ``job`` compiles to, for the server to be ready for; a name that ships."""
    name = job.pipeline.target.name if isinstance(job, CompileJob) else "torchscript"
    return name if name in TARGETS else "torchscript"


_NO_SERVER = "the process that workers are forked from has ended, or can fork no more"
_KILLED = "its worker was killed (SIGKILL), perhaps for want of memory on this machine"


def _receive(connection: socket.socket, answer: bytearray) -> bool:
    """Take what has come over ``connection``; whether there was anything."""
    try:
        data = connection.recv(1 << 20)
    except (BlockingIOError, ConnectionResetError):
        return False
    answer += data
    return bool(data)


def _ending(status: int, limits: Limits) -> str:
    """Why a worker ended before it told an outcome; ``status`` is an exit code, or minus a signal."""
    if status == -signal.SIGXCPU:
        return f"over its limit of {limits.cpu_seconds} s of CPU time (tezzeret.limits.cpu_seconds)"
    if status == -signal.SIGKILL:
        return _KILLED
    return f"its worker ended with {signal.Signals(-status).name if status < 0 else f'exit code {status}'}"
