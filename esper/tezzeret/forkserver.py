"""A process that has imported and warmed PyTorch, and forks a worker for each job that it is asked for.

A process of its own, and one thread: to fork one that has run PyTorch with threads, or that holds a database
or keys, is not safe. ``multiprocessing`` has such a server as well, but its workers run the main module of
the program again, it is shared by all that the program does, and it stays until the program ends.

Run by ``esper.tezzeret.pool`` as ``python -m esper.tezzeret.forkserver FD NICE``. Over the socket FD come
``job`` with the name of a target and two descriptors, the worker's connection and where its process id and
then its exit status are told, and ``end`` with a process id. When the socket closes, all workers end.
"""

from __future__ import annotations

import importlib
import linecache
import os
import select
import signal
import socket
import struct
import sys
from contextlib import suppress
from typing import get_args

STATUS = struct.Struct("=q")


def main(descriptor: int, nice: int) -> None:
    """Give way by ``nice``, warm up, say so, and serve until the socket closes."""
    os.nice(nice)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    _warm_up("torchscript")
    _keep_sources("torch.nn.modules.", "torch.nn.functional", "torch.functional", "torch._jit_internal")
    warm = {"torchscript"}
    workers: dict[int, int] = {}
    bell, ringer = os.pipe()
    os.set_blocking(bell, False)
    os.set_blocking(ringer, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(ringer, warn_on_full_buffer=False)
    with socket.socket(fileno=descriptor) as control:
        control.send(b"ready")
        while True:
            ready, _, _ = select.select([control.fileno(), bell], [], [])
            if bell in ready:
                os.read(bell, 512)
                _reap(workers)
            if control.fileno() not in ready:
                continue
            message, descriptors, _, _ = socket.recv_fds(control, 64, 2)
            if not message:
                break
            if message.startswith(b"job "):
                target = message.removeprefix(b"job ").decode()
                if target not in warm:
                    with suppress(Exception):  # the job will meet it, and tell
                        _warm_up(target)
                    warm.add(target)
                _start(workers, *descriptors)
            elif (pid := int(message.removeprefix(b"end "))) in workers:
                os.kill(pid, signal.SIGKILL)
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        while workers:
            _reap(workers, wait=True)
    os._exit(0)  # to take PyTorch down in good order takes a second


def _start(workers: dict[int, int], connection: int, status: int) -> None:
    try:
        pid = os.fork()
    except OSError:
        os.close(connection)
        os.close(status)  # nothing is told: there is no worker
        return
    if pid == 0:
        try:
            _work(connection)
        finally:
            os._exit(1)
    os.close(connection)
    workers[pid] = status
    _tell(status, pid)


def _work(connection: int) -> None:
    from esper.tezzeret.jobs import serve
    from esper.tezzeret.limits import die_with_parent

    die_with_parent()
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(connection, 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.close(nowhere)
    serve(3)
    os._exit(0)


def _reap(workers: dict[int, int], *, wait: bool = False) -> None:
    while workers:
        pid, status = os.waitpid(-1, 0 if wait else os.WNOHANG)
        if pid == 0:
            return
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what it may have started where calls are not filtered
        place = workers.pop(pid)
        _tell(place, os.waitstatus_to_exitcode(status))
        os.close(place)


def _tell(place: int, number: int) -> None:
    with suppress(BrokenPipeError):  # the parent no longer waits for it
        os.write(place, STATUS.pack(number))


def _warm_up(target: str) -> None:
    """Compile a kernel of each layout: no job pays for what PyTorch does at first, and none may import."""
    import torch

    from esper.blueprint import parse_blueprint
    from esper.messages import Layout, Slot
    from esper.tezzeret.pipeline import Pipeline
    from esper.tezzeret.targets import target_named

    torch.set_num_threads(1)
    nodes = [{"id": "a", "op": "linear", "inputs": ["x"], "params": {"out": "out"}}]
    layouts = get_args(Layout)
    blueprint = parse_blueprint(
        {"version": 1, "name": "warm", "layouts": layouts, "nodes": nodes, "output": "a"}
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
