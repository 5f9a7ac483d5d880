"""The process that workers are forked from, as its parent sees it; see ``esper.tezzeret.forkserver``."""

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
from contextlib import suppress
from pathlib import Path

from esper.errors import CompilationError
from esper.tezzeret.forkserver import STATUS
from esper.tezzeret.jobs import CompileJob, Job, Outcome, understand
from esper.tezzeret.limits import ANSWER_BYTES, Limits
from esper.tezzeret.targets import TARGETS

START_SECONDS = 60
"""How long PyTorch may take to be imported; two seconds are usual."""
CLOSE_SECONDS = 1
"""How long the server may take to end its workers before it is killed; a few hundredths are usual."""
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
"""What workers see of the environment; keys and passwords stay here."""


class ForkServer:
    """The process that workers are forked from. Threads may share it."""

    def __init__(self, nice: int) -> None:
        """Starts it; it becomes ready in a while."""
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(START_SECONDS)
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        # Without a GPU to find, PyTorch starts no threads; a worker may have but one.
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        # What lies in large pages is forked sooner: there are fewer to note.
        environment["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        environment["PYTHONPATH"] = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "esper.tezzeret.forkserver", str(theirs.fileno()), str(nice)],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # a terminal's Ctrl-C is for its parent, which ends it
            )
        self._starting = threading.Lock()
        self._ready = False
        self._refusal = ""

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def wait_until_ready(self) -> None:
        """Wait until it takes jobs; ``CompilationError`` where it does not come so far."""
        with self._starting:
            if not self._ready and not self._refusal:
                with suppress(OSError):
                    self._ready = self._control.recv(64) == b"ready"
                if not self._ready:
                    self._refusal = self._last_words()
        if self._refusal:
            raise CompilationError(
                f"worker processes cannot be started: {self._refusal}",
                stage="parse",
                hint="compile in this process: tezzeret.workers=0",
            )

    def close(self) -> None:
        """End it, and its workers with it, whatever it is doing; whoever waits for it is woken."""
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        self._process.terminate()
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()  # the system kills its workers then
            self._process.wait()
        self._control.close()
        with self._starting:
            assert self._process.stderr is not None
            self._process.stderr.close()

    def work(self, job: Job, limits: Limits) -> tuple[Outcome, str | None]:
        """What came of ``job`` under ``limits``, which count from now; and why no calls were filtered."""
        began = time.monotonic()
        request, data = f"job {_target(job)}".encode(), pickle.dumps((job, limits))
        connection, theirs = socket.socketpair()
        status, told = os.pipe()
        try:
            with theirs:
                try:
                    socket.send_fds(self._control, [request], [theirs.fileno(), told])
                except OSError:
                    return Outcome("parse", 0.0, _NO_SERVER, lost=True), None
                finally:
                    os.close(told)
            connection.settimeout(limits.wall_seconds)
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it has ended; its status says how
            return self._watch(connection, status, began, limits)
        finally:
            connection.close()
            os.close(status)

    def _last_words(self) -> str:
        self._process.kill()
        _, errors = self._process.communicate()
        return (errors.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]

    def _watch(
        self, connection: socket.socket, status: int, began: float, limits: Limits
    ) -> tuple[Outcome, str | None]:
        answer = bytearray()
        over: str | None = None
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        poll.register(status, select.POLLIN)
        connection.setblocking(False)
        pid, ended = 0, False
        while True:
            left = max(0.0, began + limits.wall_seconds - time.monotonic())
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
                outcome, _, unfiltered = _understood(answer)
                if outcome is not None and pid and not over:
                    self._end(pid)  # it has told all; to be taken down takes it longer than to be told so
                    return outcome, unfiltered
            if status in ready:
                number = os.read(status, STATUS.size)
                if number and not pid:
                    pid, *_ = STATUS.unpack(number)
                    continue
                while _receive(connection, answer):
                    pass
                ending, lost = _ending(limits, *STATUS.unpack(number)) if number else (_NO_SERVER, True)
                outcome, stage, unfiltered = _understood(answer)
                failed = Outcome(stage, time.monotonic() - began, over or ending, lost=lost and not over)
                return outcome or failed, unfiltered

    def _end(self, pid: int) -> None:
        with suppress(OSError):  # the server has ended, and its workers with it
            self._control.send(b"end %d" % pid)


def _understood(answer: bytes | bytearray) -> tuple[Outcome | None, str, str | None]:
    try:
        return understand(bytes(answer))
    except Exception:  # whatever it told, it was not an outcome
        return None, "parse", None


def _target(job: Job) -> str:
    """The target that ``job`` compiles to, for the server to be ready for; a name that ships."""
    name = job.pipeline.target.name if isinstance(job, CompileJob) else "torchscript"
    return name if name in TARGETS else "torchscript"


_NO_SERVER = "the process that workers are forked from has ended, or can fork no more"


def _receive(connection: socket.socket, answer: bytearray) -> bool:
    """Take what has come over ``connection``; whether there was anything."""
    try:
        data = connection.recv(1 << 20)
    except (BlockingIOError, ConnectionResetError):
        return False
    answer += data
    return bool(data)


def _ending(limits: Limits, status: int, cpu_seconds: float, peak_kib: int) -> tuple[str, bool]:
    """Why a worker ended before it told an outcome, and whether from outside.

    ``status`` is an exit code, or minus a signal; ``cpu_seconds`` and ``peak_kib`` are what it used.
    """
    killed = status == -signal.SIGKILL
    over = killed and cpu_seconds >= limits.cpu_seconds  # it ignored SIGXCPU
    if status == -signal.SIGXCPU or over:
        return f"over its limit of {limits.cpu_seconds} s of CPU time (tezzeret.limits.cpu_seconds)", False
    if killed:
        held = f"when it held {peak_kib >> 10:,} MiB"
        return f"its worker was killed (SIGKILL) {held}, perhaps for want of memory on this machine", True
    ended = signal.Signals(-status).name if status < 0 else f"exit code {status}"
    return f"its worker ended with {ended}", False
