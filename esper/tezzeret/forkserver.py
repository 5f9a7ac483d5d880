"""A process that has imported and warmed PyTorch, and has each job that it is asked for done by a fork of it.

A process of its own, and one thread: to fork one that has run PyTorch with threads, or that holds a database
or keys, is not safe. ``multiprocessing`` has such a server as well, but its workers run the main module of
the program again, it is shared by all that the program does, and it stays until the program ends.

Run by ``esper.tezzeret.forks`` as ``python -m esper.tezzeret.forkserver FD NICE``. Over the socket FD come
``job`` with the name of a target and two descriptors, the worker's connection and where its process id and
then its exit status are told, and ``end`` with a process id. A worker does one job. The next one, the spare,
is forked before there is a job for it, so that no job waits for that. When the socket closes, or at SIGTERM,
all end.
"""

from __future__ import annotations

import importlib
import linecache
import os
import resource
import select
import signal
import socket
import struct
import sys
from contextlib import suppress
from typing import NoReturn, get_args

STATUS = struct.Struct("=qdq")
"""A process id or how it ended, and then the seconds of CPU that it took and the most KiB that it held."""
SPARE, WORKER = "esper spare", "esper worker"
"""What the system calls a process that waits for a job, and one that does it."""


def main(descriptor: int, nice: int) -> None:
    """Give way by ``nice``, warm up, say so, and serve until the socket closes."""
    os.nice(nice)
    forks = _Forks()
    signal.signal(signal.SIGTERM, lambda *_: forks.end())
    _warm_up("torchscript")
    _keep_sources("torch.nn.modules.", "torch.nn.functional", "torch.functional", "torch._jit_internal")
    warm = {"torchscript"}
    bell, ringer = os.pipe()
    os.set_blocking(bell, False)
    os.set_blocking(ringer, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(ringer, warn_on_full_buffer=False)
    with socket.socket(fileno=descriptor) as control:
        control.send(b"ready")
        forks.make_spare()
        while True:
            ready, _, _ = select.select([control.fileno(), bell], [], [])
            if bell in ready:
                os.read(bell, 512)
                forks.reap()
            if control.fileno() not in ready:
                continue
            message, descriptors, _, _ = socket.recv_fds(control, 64, 2)
            if not message:
                break
            if message.startswith(b"job "):
                target = message.removeprefix(b"job ").decode()
                if target not in warm:
                    forks.discard_spare()  # it would not be warm
                    with suppress(Exception):  # the job will meet it, and tell
                        _warm_up(target)
                    warm.add(target)
                forks.start(*descriptors)
                forks.make_spare()
            else:
                forks.kill(int(message.removeprefix(b"end ")))
    forks.end()


class _Forks:
    """The children of this process."""

    def __init__(self) -> None:
        self._workers: dict[int, int] = {}
        """Where to tell how each ends that has a job, by process id."""
        self._spare: tuple[int, socket.socket] | None = None
        """The one that waits for a job, and over what it gets it."""

    def make_spare(self) -> None:
        """Have a process wait for a job, unless one does or none can be made."""
        if self._spare is not None:
            return
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                pid = os.fork()
            except OSError:
                ours.close()
                return
            if pid == 0:
                try:
                    _wait_and_work(theirs.fileno())
                finally:
                    os._exit(1)
        self._spare = pid, ours

    def discard_spare(self) -> None:
        """Have no process wait for a job."""
        if self._spare is not None:
            pid, line = self._spare
            self._spare = None
            line.close()
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start(self, connection: int, status: int) -> None:
        """Have a process do the job that comes over ``connection``; without one, nothing is told."""
        for _ in range(2):  # the spare may just have been killed
            self.make_spare()
            if self._spare is None:
                break
            pid, line = self._spare
            try:
                socket.send_fds(line, [b"j"], [connection])
            except OSError:
                self.discard_spare()
                continue
            self._spare = None
            line.close()
            self._workers[pid] = status
            _tell(status, pid)
            os.close(connection)
            return
        os.close(connection)
        os.close(status)

    def kill(self, pid: int) -> None:
        """End a worker, if it has not ended."""
        if pid in self._workers:
            os.kill(pid, signal.SIGKILL)

    def reap(self) -> None:
        """Take note of those that have ended."""
        with suppress(ChildProcessError):
            while (ended := os.wait4(-1, os.WNOHANG))[0]:
                self._ended(*ended)

    def end(self) -> NoReturn:
        """End them all, and this process."""
        try:
            self.discard_spare()
            for pid in self._workers:
                os.kill(pid, signal.SIGKILL)
            for pid in list(self._workers):
                self._ended(*os.wait4(pid, 0))
        finally:  # whatever was under way: those that are left die with this process
            os._exit(0)  # to take PyTorch down in good order takes a second

    def _ended(self, pid: int, status: int, used: resource.struct_rusage) -> None:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what it may have started where calls are not filtered
        if self._spare is not None and self._spare[0] == pid:
            self._spare[1].close()
            self._spare = None
        place = self._workers.pop(pid, None)
        if place is not None:
            _tell(place, os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss)
            os.close(place)


def _wait_and_work(line: int) -> None:
    """Do the one job whose connection comes over ``line``."""
    from esper.tezzeret.jobs import serve
    from esper.tezzeret.limits import die_with_parent, name_process

    die_with_parent()
    os.setsid()
    name_process(SPARE)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _keep_only(line)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.close(nowhere)
    with socket.socket(fileno=3) as waiting:
        _, connection, _, _ = socket.recv_fds(waiting, 1, 1)
    if not connection:
        os._exit(0)  # the server has ended
    name_process(WORKER)
    _keep_only(connection[0])
    serve(3)
    os._exit(0)


def _keep_only(descriptor: int) -> None:
    """Make ``descriptor`` number 3, and close all others but the first three."""
    os.dup2(descriptor, 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))


def _tell(place: int, number: int, cpu_seconds: float = 0.0, peak_kib: int = 0) -> None:
    with suppress(BrokenPipeError):  # the parent no longer waits for it
        os.write(place, STATUS.pack(number, cpu_seconds, peak_kib))


def _warm_up(target: str) -> None:
    """Compile a kernel of each layout: no job pays for what PyTorch does at first, and none may import."""
    import torch

    from esper.blueprint import parse_blueprint
    from esper.messages import Layout, Slot
    from esper.tezzeret.pipeline import Pipeline
    from esper.tezzeret.targets import target_named

    torch.set_num_threads(1)
    nodes = [
        {"id": "a", "op": "linear", "inputs": ["x"], "params": {"out": "out"}},
        {"id": "b", "op": "relu", "inputs": ["a"]},  # to trace any function, all that there are are listed
    ]
    layouts = get_args(Layout)
    blueprint = parse_blueprint(
        {"version": 1, "name": "warm", "layouts": layouts, "nodes": nodes, "output": "b"}
    )
    for layout in layouts:
        Pipeline(target_named(target)).compile(blueprint, Slot(layout, 2, 2))
    if target == "export":
        for name in ("sympy.physics.units", "sympy.sets.setexpr"):  # what sizes in a graph need now and then
            importlib.import_module(name)


def _keep_sources(*names: str) -> None:
    """Have Python remember the source of modules whose names begin so: to script a module is to read it."""
    for name, module in list(sys.modules.items()):
        if name.startswith(names) and module.__file__ is not None:
            linecache.getlines(module.__file__)
    for path, entry in linecache.cache.items():
        if len(entry) == 4:
            size, _, lines, full = entry
            linecache.cache[path] = (size, None, lines, full)  # without a date its file is not looked at


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
