"""Targets that do what no compiler should, for workers to do; found there under this module's name."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from esper.blueprint import Blueprint, load_blueprints
from esper.messages import Slot
from esper.tezzeret.forkserver import WORKER
from esper.tezzeret.torchscript import TorchScriptTarget

MLP: Blueprint = load_blueprints(Path(__file__).parents[1] / "blueprints" / "bottleneck_mlp.yaml")[0]
SLOT = Slot("features", 8, 6)


class Hostile(TorchScriptTarget):
    """Does ``deed`` instead of compiling."""

    def __init__(self, deed: Callable[..., Any], *arguments: Any) -> None:
        self.deed = deed
        self.arguments = arguments

    def compile(self, module: nn.Module) -> nn.Module:
        self.deed(*self.arguments)
        return super().compile(module)


def spin() -> None:
    while True:
        pass


def spin_on() -> None:
    """Past the limit that a signal tells of."""
    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    spin()


def sleep(seconds: float = 60) -> None:
    time.sleep(seconds)


def hoard_objects() -> None:
    kept = []
    while True:
        kept.append(bytearray(1 << 22))


def hoard_tensors() -> None:
    kept = []
    while True:
        kept.append(torch.ones(1 << 22))


def read(path: str) -> None:
    Path(path).read_bytes()


def write(path: str) -> None:
    Path(path).write_text("written")


def connect(port: int) -> None:
    socket.socket().connect(("127.0.0.1", port))


def fork_for_ever() -> None:
    while True:
        os.fork()


def start_thread() -> None:
    import threading

    threading.Thread(target=spin).start()


def signal_parent(pid: int) -> None:
    os.kill(pid, 9)


def tell_and_stay() -> None:
    """Tells an outcome as a worker does, and does not end."""
    os.write(3, b'{"reason": "told", "seconds": 0}\n')
    os.close(3)
    time.sleep(60)


def crash() -> None:
    ctypes.string_at(0)


def workers(called: str = WORKER) -> list[int]:
    """The processes that do jobs for this one: children of its fork server, by what /proc says.

    Those that are called SPARE wait for a job.
    """
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    servers: set[int] = set()  # a database server of other tests has children too
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            number_and_name, _, rest = path.read_text().rpartition(")")
            if b"esper.tezzeret.forkserver" in (path.parent / "cmdline").read_bytes():
                servers.add(int(path.parent.name))
        except OSError:
            continue  # it has ended
        state, parent, *_ = rest.split()
        if state != "Z":
            parents[int(path.parent.name)] = int(parent)
            names[int(path.parent.name)] = number_and_name.partition("(")[2]
    return [
        pid
        for pid, parent in parents.items()
        if parent in servers and parents.get(parent) == os.getpid() and names[pid] == called
    ]
